"""A split of a data set in memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from subnet_search.core.nested import Brief, length_of, map_tensors, moved, tensors_in

PER_BATCH = 1000  # items in each batch of a validation


@dataclass(frozen=True, repr=False)
class Split(Brief):
    """Inputs (N, ...) and labels (N, ...), each a tensor or nested tensors. Images are uint8; others are not normalised.

    Without labels, `inputs` are whole batches: a mapping that a task takes its labels from.
    """

    inputs: Any
    labels: Any
    weights: Tensor | None = None
    """Sampling weights of training items (N,) float64: an epoch draws N items with replacement. None: each item once."""

    def __len__(self) -> int:
        return length_of(self.inputs if self.labels is None else self.labels)

    @property
    def device(self) -> torch.device:
        """The device of the inputs."""
        return next(tensor for _, tensor in tensors_in(self.inputs)).device

    def to(self, device: torch.device | str) -> "Split":
        """The same items on `device`; sampling weights stay where they are."""
        return Split(moved(self.inputs, device), moved(self.labels, device), self.weights)

    def take(self, index: Tensor) -> "Split":
        """The items at these positions: indices, or a bool mask (N,)."""
        weights = None if self.weights is None else self.weights[index]
        return Split(_rows(self.inputs, index), _rows(self.labels, index), weights)

    def batch(self, index: Any) -> Any:
        """The batch of the items at `index`: (inputs, labels), or what the items are without labels."""
        inputs = _rows(self.inputs, index)
        return inputs if self.labels is None else (inputs, _rows(self.labels, index))

    def first(self, count: int) -> Any:
        """The batch of the first `count` items."""
        return self.batch(slice(count))

    def batches(self, epoch: int | str = "val", size: int = PER_BATCH) -> Iterator[Any]:
        """Batches of all items in order, at most `size` items each."""
        for start in range(0, len(self), size):
            yield self.batch(slice(start, start + size))


def _rows(value: Any, index: Any) -> Any:
    return map_tensors(lambda tensor: tensor[index], value)
