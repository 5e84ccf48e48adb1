"""One class for each pixel: cross-entropy or Dice loss on logits (batch, classes, height, width)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, PrivateAttr
from torch import Tensor

from subnet_search.core.errors import RunError, UserError
from subnet_search.data import Data
from subnet_search.evaluation.items import Items
from subnet_search.nets import call, logits_of, outputs_hint
from subnet_search.tasks.base import (
    ClassWeights,
    LogitsTask,
    Network,
    cross_entropy,
    got_output,
    in_parts,
    label_values,
    part_name,
    unfit,
)
from subnet_search.tasks.predictions import SegmentationPrediction

WANTED = "labels that are class indices with shape (N, height, width)"
DIMS = 3


class Segmentation(LogitsTask):
    """Classify each pixel: labels (N, height, width) of class indices, of the size of the logits.

    Metrics over all pixels, from sums over the items:

    miou             mean over classes of intersection over union
    pixel_accuracy   fraction of pixels with the right class
    dice             mean over classes of 2 TP / (2 TP + FP + FN)

    Means are over the classes that a label or a prediction has.
    """

    name: Literal["segmentation"] = "segmentation"
    classes: int | None = Field(default=None, ge=2)
    """Number of classes. Default: the largest label of the training items, plus 1."""
    ignore_index: int | None = None
    """Label of pixels that neither the loss nor the metrics count, such as 255."""
    class_weights: ClassWeights = None
    """Weight of each class in the cross-entropy: one number for each class, or balanced, in inverse proportion to its number
    of pixels. Default: all classes have weight 1."""
    terms: Literal["cross_entropy", "dice", "both"] = Field(default="cross_entropy", alias="loss")
    """The loss: cross_entropy, dice (1 minus the mean Dice coefficient of the batch's classes), or both, their sum."""

    leading: ClassVar[str] = "miou"
    directions: ClassVar = {"miou": "maximize", "pixel_accuracy": "maximize", "dice": "maximize"}
    predicted_at_once: ClassVar[int] = 16
    _weights: Tensor | None = PrivateAttr(default=None)

    def check_data(self, data: Data) -> None:
        classes = self.outputs(data)
        for part in data.values:
            values, name = label_values(data, part, self.name, WANTED), part_name(data, part)
            counts = self._counts(data, part)
            if values.dims != DIMS:
                raise unfit(data, part, self.name, WANTED, values)
            if not len(counts):
                raise UserError(f"{name}: all pixels have the label {self.ignore_index}, which does not count")
            below = values.low < 0 and values.low != self.ignore_index
            if below or len(counts) > classes:
                label = values.low if below else len(counts) - 1
                raise UserError(
                    f"{name}: label {label:.0f} is outside the classes 0 to {classes - 1}: if such pixels do not count, set "
                    "task.ignore_index"
                )

    def fitted(self, data: Data, device: torch.device | str) -> Self:
        self.check_data(data)
        weights, found = self.weights(data), self.model_copy()
        found._weights = None if weights is None else weights.to(device)
        return found

    def outputs(self, data: Data) -> int:
        return self.classes or max(2, len(self._counts(data, "train")))

    def weights(self, data: Data) -> Tensor | None:
        """The weight of each class (classes,), with a mean of 1 over the pixels if they are balanced.

        Raises UserError when there is not one weight for each class.
        """
        classes = self.outputs(data)
        if self.class_weights is None:
            return None
        if self.class_weights == "balanced":
            counts = F.pad(counts := self._counts(data, "train"), (0, classes - len(counts)))
            return (counts.sum() / (counts.count_nonzero() * counts.clamp(min=1))).float()
        if len(self.class_weights) != classes:
            raise UserError(f"task.class_weights has {len(self.class_weights)} weights, but there are {classes} classes")
        return torch.tensor(self.class_weights)

    def _counts(self, data: Data, part: str) -> Tensor:
        """The number of pixels of each class up to the largest label, without pixels that do not count."""
        values = label_values(data, part, self.name, WANTED)
        if values.counts is None:
            many = not values.dtype.startswith("float")
            raise unfit(data, part, self.name, WANTED, f"label {values.high:.0f}" if many else values)
        counts = values.counts.clone()
        if self.ignore_index is not None and 0 <= self.ignore_index < len(counts):
            counts[self.ignore_index] = 0
        return counts[: int(counts.nonzero().max()) + 1] if counts.any() else counts[:0]

    @property
    def _ignored(self) -> int:
        return -100 if self.ignore_index is None else self.ignore_index

    def criterion(self, logits: Tensor, labels: Any, label_smoothing: float = 0.0) -> Tensor:
        """The mean over pixels that count: of weight times cross-entropy, of the Dice loss, or the sum of both.

        Cross-entropy is divided by the number of pixels, and not by their weights. The Dice loss has no label smoothing.
        """
        last, found = self.class_last(logits), logits.new_zeros(())
        if self.terms != "dice":
            total, pixels = cross_entropy(last, labels, self._ignored, self._weights, label_smoothing)
            found = found + total / pixels.clamp(min=1)
        return found if self.terms == "cross_entropy" else found + self._dice(last, labels.long())

    def _dice(self, logits: Tensor, labels: Tensor) -> Tensor:
        """1 - mean over the batch's classes of 2 sum(p y) / sum(p + y), p the probability of the class, y 1 where it is."""
        counted = labels != self._ignored
        probability = logits.softmax(-1)[counted]  # (pixels, classes)
        truth = F.one_hot(labels[counted], logits.shape[-1]).to(probability.dtype)
        there = truth.any(0)
        dice = 2 * (probability * truth).sum(0) / (probability + truth).sum(0).clamp(min=1e-12)
        return 1 - (dice * there).sum() / there.sum().clamp(min=1)

    def scores(self, output: Any) -> Any:
        """The logits: also "out" of a mapping, as torchvision's segmentation networks return it."""
        found = logits_of(output)
        return found.get("out", found) if isinstance(found, Mapping) else found

    def averaged(self, outputs: Sequence[Any]) -> Tensor:
        return super().averaged(outputs).movedim(-1, 1)

    def class_last(self, logits: Tensor) -> Tensor:
        return logits.movedim(1, -1)

    def measure(self, network: Network, batches: Iterable[Any]) -> dict[str, Any]:
        return self._metrics(self._predicted(network, batches))

    def measure_items(self, network: Network, batches: Iterable[Any]) -> tuple[dict[str, Any], Items]:
        rows: list[Tensor] = []

        def counted() -> Iterator[tuple[Tensor, Tensor, int]]:
            for predicted, labels, classes in self._predicted(network, batches):
                rows.append(_pixels(predicted, labels, classes, self._ignored))
                yield predicted, labels, classes

        return self._metrics(counted()), Items(torch.cat(rows), _miou)

    def _predicted(self, network: Network, batches: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Predicted and right classes (items, height, width) of a part of the items, and the number of classes."""
        for inputs, labels in self._parts(batches):
            logits = self.scores(call(network, inputs))
            self._check_range(labels, logits.shape[1])
            yield logits.argmax(1), labels.long(), logits.shape[1]

    def _metrics(self, parts: Iterable[tuple[Tensor, Tensor, int]]) -> dict[str, Any]:
        from torchmetrics import MetricCollection
        from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassJaccardIndex

        metrics = None
        for predicted, labels, classes in parts:
            if metrics is None:
                settings: dict[str, Any] = {
                    "num_classes": classes,
                    "ignore_index": self.ignore_index,
                    "validate_args": False,
                }
                each: Any = {
                    "miou": MulticlassJaccardIndex(average="macro", **settings),
                    "pixel_accuracy": MulticlassAccuracy(average="micro", **settings),
                    "dice": MulticlassF1Score(average="macro", **settings),
                }
                metrics = MetricCollection(each, compute_groups=False).to(labels.device)
            metrics.update(predicted, labels)
        assert metrics is not None
        return {name: float(value) for name, value in metrics.compute().items()}

    def _parts(self, batches: Iterable[Any]) -> Iterable[tuple[Any, Tensor]]:
        """Inputs and labels, few enough for their logits to fit in memory."""
        for batch in batches:
            labels = self.split(batch)[1]
            classes = self.classes or int(labels.max()) + 1
            yield from map(self.split, in_parts([batch], labels[0].numel(), classes))

    def _check_range(self, labels: Tensor, classes: int) -> None:
        """Raise RunError for a label without an output, in items that no run has checked before."""
        counted = labels[labels != self._ignored]
        if counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) < classes:
            low = int(counted.min())
            raise RunError(f"label {low if low < 0 else int(counted.max())} is outside the classes 0 to {classes - 1}")

    def check_output(self, output: Any, batch: Any, outputs: int | None, name: str, when: str = "") -> None:
        logits, (_, labels) = self.scores(output), self.split(batch)
        wanted = f"(batch, classes, height, width) = {(len(labels), outputs or 2, *labels.shape[1:])}"
        if not isinstance(logits, Tensor) or logits.dim() != 4 or (len(logits), *logits.shape[2:]) != tuple(labels.shape):
            raise UserError(f"{name} must return logits of shape {wanted}{when}, got {got_output(output)}")
        if logits.shape[1] < (outputs or 1):
            raise UserError(
                f"{name} has {logits.shape[1]} outputs for each pixel{when}, but there are {outputs} classes: if the largest "
                f"label does not count, set task.ignore_index{outputs_hint(name, outputs)}"
            )

    def prediction(self, answers: Any, outputs: int, names: tuple[str, ...] | None) -> SegmentationPrediction:
        probabilities = (answers[:, :outputs] if outputs else answers).float().softmax(1)
        known = names if names and len(names) == probabilities.shape[1] else None
        return SegmentationPrediction(probabilities.argmax(1), probabilities, known)


def _pixels(predicted: Tensor, labels: Tensor, classes: int, ignored: int) -> Tensor:
    """For each item the pixels of each class but the ignored one that are right, predicted and there (items, 3 classes)."""
    counts = labels != ignored
    masks = (counts & (predicted == labels), counts, counts)
    found = [
        torch.stack([(mask & (values == one)).sum((1, 2)) for one in range(classes) if one != ignored], 1)
        for mask, values in zip(masks, (labels, predicted, labels), strict=True)
    ]
    return torch.cat(found, 1).double().cpu()


def _miou(sums: Any) -> Any:
    """The mean over the classes that a label or a prediction has of intersection over union. sums: as in `_pixels`."""
    right, predicted, there = np.split(sums, 3, -1)
    union = predicted + there - right
    return (right / np.maximum(union, 1)).sum(-1) / (union > 0).sum(-1)
