"""What the inputs and labels of a data set hold, over all items: for tasks that check labels and count classes or tokens."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from subnet_search.core.nested import tensors_in
from subnet_search.data.batch import split_batch

LARGEST = 2**20  # whole numbers up to this are counted
IMAGE_DIMS = 4  # inputs of a batch with so many dimensions are no token ids


@dataclass(frozen=True)
class Values:
    """The values of one tensor of the batches, over all items."""

    dtype: str
    dims: int  # of the tensor in a batch, with that of the items
    shape: tuple[int, ...] | None  # of one item; None: it differs
    low: float
    high: float
    whole: bool  # whether all are whole numbers, of any type
    items: int
    counts: Tensor | None  # how often each whole number from 0 occurs (high + 1,); None: not whole, or larger than LARGEST
    sums: Tensor | None  # of each column (columns,) float64, of labels (N, columns)


class Tally:
    """Collects the values of labels, and of inputs that are indices, from one batch after the other."""

    def __init__(self) -> None:
        self.found: dict[str, Values] = {}

    def add(self, inputs: Any, labels: Any) -> None:
        """Count the inputs and labels of a batch."""
        for path, tensor in tensors_in({"inputs": inputs, "labels": labels}):
            if tensor.dim() and not tensor.is_complex() and (path.startswith("labels") or _indices(tensor)):
                now, before = _values(tensor, path), self.found.get(path)
                self.found[path] = now if before is None else _both(before, now)


def values_of(batches: Iterable[Any], label_key: str | None = None) -> dict[str, Values]:
    """The values of all batches by path: `labels`, `inputs`, or `inputs.input_ids` of inputs that are a mapping."""
    tally = Tally()
    for batch in batches:
        tally.add(*split_batch(batch, label_key))
    return tally.found


def _indices(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and tensor.dtype != torch.bool and tensor.dim() < IMAGE_DIMS


def _values(tensor: Tensor, path: str) -> Values:
    dtype, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape[1:])
    low, high = (float(tensor.min()), float(tensor.max())) if tensor.numel() else (0.0, 0.0)
    whole = not tensor.is_floating_point()
    counts = None
    if whole and high <= LARGEST:
        flat = tensor.reshape(-1).long()
        counts = flat[flat >= 0].bincount()
    sums = tensor.double().sum(0) if path == "labels" and tensor.dim() == 2 else None
    whole = whole or bool((tensor == tensor.round()).all())
    return Values(dtype, tensor.dim(), shape, low, high, whole, len(tensor), counts, sums)


def _both(one: Values, other: Values) -> Values:
    same = one.shape == other.shape
    counts = None
    if one.counts is not None and other.counts is not None:
        counts = torch.zeros(max(len(one.counts), len(other.counts)), dtype=torch.long)
        for part in (one.counts, other.counts):
            counts[: len(part)] += part
    return Values(
        one.dtype,
        max(one.dims, other.dims),
        one.shape if same else None,
        min(one.low, other.low),
        max(one.high, other.high),
        one.whole and other.whole,
        one.items + other.items,
        counts,
        one.sums + other.sums if same and one.sums is not None and other.sums is not None else None,
    )
