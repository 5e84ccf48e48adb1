"""What a batch is made of: inputs for the network, and labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from subnet_search.core.errors import UserError
from subnet_search.core.nested import map_tensors
from subnet_search.data.normalisation import prepare

LABELS = ("labels", "label", "targets", "target", "y")
"""Keys of the labels in a batch that is a mapping; the first that is there."""


@dataclass(frozen=True)
class Labels:
    """What the labels of a data set are."""

    classes: bool = True  # one class index for each item
    key: str | None = None  # of the labels in items that are mappings; None: the first of LABELS


def split_batch(batch: Any, labels: str | None = None) -> tuple[Any, Any]:
    """The inputs and the labels of a batch; labels are None where it has none.

    A mapping: the labels are taken out by their key. A tuple or list: the last is the labels; of more than two parts, the
    others are a tuple of inputs. Anything else is inputs only.
    labels: their key in a mapping; default: the first of LABELS. Raises UserError when the mapping has no such key.
    """
    if isinstance(batch, Mapping):
        key = labels or next((key for key in LABELS if key in batch), None)
        if labels and labels not in batch:
            raise UserError(f"the batch has no key {labels!r} for the labels, only {', '.join(map(str, batch))}")
        return {name: value for name, value in batch.items() if name != key}, batch[key] if key else None
    if isinstance(batch, tuple | list) and len(batch) > 1:
        *inputs, found = batch
        return inputs[0] if len(inputs) == 1 else tuple(inputs), found
    if isinstance(batch, tuple | list) and len(batch) == 1:
        return batch[0], None
    return batch, None


def prepared(batch: Any, mean: Tensor | None, std: Tensor | None) -> Any:
    """A batch as a task gets it: images normalised by mean and std, other inputs of a pair as float32 or indices."""
    if isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[0], Tensor):
        return prepare(batch[0], mean, std), map_tensors(_single, batch[1])
    return map_tensors(_single, batch)


def _single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def instead(labels: Tensor, whole: bool) -> str:
    """What to do about labels (N, ...) that are no class indices, to end a message. whole: whether all are whole numbers."""
    if labels.is_floating_point() and not labels.isfinite().all():
        return ", some of them NaN or infinite: leave these items out"
    if labels.dim() == 2 and labels.shape[1] == 1 and whole:
        return ": pass labels.flatten().long() (in a Dataset, int(label))"
    if _one_hot(labels):
        return " of one-hot rows: pass labels.argmax(1) (in a Dataset, label.argmax()), or set task: multi_label"
    if labels.dim() == 1 and whole:
        return ": pass labels.long() (in a Dataset, int(label)), or set another task, such as regression"
    return ": for others set task, such as regression"


def _one_hot(labels: Tensor) -> bool:
    """Whether each row of labels (N, classes) has a single 1 and otherwise 0."""
    return (
        labels.dim() == 2 and labels.shape[1] > 1 and bool(((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all())
    )
