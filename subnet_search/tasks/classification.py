"""One class for each input: cross-entropy on logits (batch, classes)."""

import logging
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import PrivateAttr
from torch import Tensor

from subnet_search.core.errors import RunError, UserError
from subnet_search.data import Data
from subnet_search.evaluation.accuracy import calibration, quality
from subnet_search.evaluation.items import Items, ratio
from subnet_search.nets import call, check_logits, logits_of
from subnet_search.tasks.base import ClassWeights, LogitsTask, Network
from subnet_search.tasks.predictions import Prediction

log = logging.getLogger(__name__)


class Classification(LogitsTask):
    """Classify each input."""

    name: Literal["classification"] = "classification"
    class_weights: ClassWeights = None
    """Weight of each class in the loss: one number for each class, or balanced, in inverse proportion to its number of
    training items. Default: all classes have weight 1."""

    leading: ClassVar[str] = "accuracy"
    directions: ClassVar = {
        "accuracy": "maximize",
        "nll": "minimize",
        "brier": "minimize",
        "ece": "minimize",
        "balanced_accuracy": "maximize",
        "top5_accuracy": "maximize",
    }
    class_labels: ClassVar[bool] = True
    _weights: Tensor | None = PrivateAttr(default=None)
    _numbering: str = PrivateAttr(default="")  # as `Data.numbering`, for messages

    def check_data(self, data: Data) -> None:
        if not data.classes:
            raise UserError(f"{data.name}: labels must be one class index for each input")

    def fitted(self, data: Data, device: torch.device | str) -> Self:
        self.check_data(data)
        weights = self.weights(data)
        found = self.model_copy()
        found._weights = None if weights is None else weights.to(device)
        found._numbering = data.numbering()
        return found

    def outputs(self, data: Data) -> int:
        return data.classes

    def weights(self, data: Data) -> Tensor | None:
        """The weight of each class (classes,), with a mean of 1 over the training items if they are balanced.

        Raises UserError when there is not one weight for each class.
        """
        if self.class_weights is None:
            return None
        if self.class_weights == "balanced":
            counts = data.labels().bincount(minlength=data.classes)
            return len(data.train) / (counts.count_nonzero() * counts.clamp(min=1)).float()
        if len(self.class_weights) != data.classes:
            raise UserError(
                f"task.class_weights has {len(self.class_weights)} weights, but the data has {data.classes} classes"
            )
        return torch.tensor(self.class_weights)

    def criterion(self, logits: Tensor, labels: Any, label_smoothing: float = 0.0) -> Tensor:
        """Cross-entropy: the mean over the items of weight times loss.

        It is divided by the number of items, and not by their weights, so a batch that is split over processes has the same
        loss.
        """
        if self._weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        padded = F.pad(self._weights, (0, logits.shape[1] - len(self._weights)), value=1.0)  # the network may have more outputs
        return F.cross_entropy(logits, labels, padded, label_smoothing=label_smoothing, reduction="none").mean()

    def measure(self, network: Network, batches: Iterable[Any]) -> dict[str, Any]:
        return self._metrics(*self.logits(network, batches))

    def measure_items(self, network: Network, batches: Iterable[Any]) -> tuple[dict[str, Any], Items]:
        """`measure` with the rows of a reliability diagram under `calibration`, and the items."""
        logits, labels = (one.cpu() for one in self.logits(network, batches))
        right = (logits.argmax(1) == labels).double()
        items = Items(torch.stack([right, torch.ones_like(right)], 1), ratio, logits, labels)
        return {**self._metrics(logits, labels), "calibration": calibration(logits, labels)}, items

    @staticmethod
    def _metrics(logits: Tensor, labels: Tensor) -> dict[str, Any]:
        """The metrics that are known: no top5_accuracy of five classes or fewer."""
        return {name: value for name, value in asdict(quality(logits, labels)).items() if value is not None}

    def logits(self, network: Network, batches: Iterable[Any]) -> tuple[Tensor, Tensor]:
        """The logits (N, classes) and labels (N,) of all items."""
        found = [(logits_of(call(network, inputs)), labels) for inputs, labels in map(self.split, batches)]
        parts = zip(*found, strict=True)
        outputs, labels = map(torch.cat, parts)
        if labels.is_floating_point() or not 0 <= int(labels.min()) <= int(labels.max()) < outputs.shape[1]:
            raise RunError(f"the labels are not class indices from 0 to {outputs.shape[1] - 1}")
        return outputs, labels

    def check_output(self, output: Any, batch: Any, outputs: int | None, name: str, when: str = "") -> None:
        logits = check_logits(output, outputs or 1, name, when, self._numbering)
        if outputs and logits.shape[1] > outputs:
            _warn_of_outputs(name, logits.shape[1], outputs)

    def prediction(self, answers: Any, outputs: int, names: tuple[str, ...] | None) -> Prediction:
        probabilities = answers[:, :outputs].float().softmax(1)
        return Prediction(probabilities.argmax(1), probabilities, names)


@cache
def _warn_of_outputs(name: str, logits: int, classes: int) -> None:
    """Once in a process: a network may have outputs for classes that these data do not have."""
    log.warning("%s has %d outputs, but the data has %d classes", name, logits, classes)
