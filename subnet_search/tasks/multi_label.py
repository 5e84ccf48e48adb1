"""Any number of labels for each input: binary cross-entropy on logits (batch, labels)."""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, PrivateAttr, field_validator
from torch import Tensor

from subnet_search.core.errors import UserError
from subnet_search.data import Data
from subnet_search.evaluation.items import Items
from subnet_search.nets import call, logits_of, outputs_hint
from subnet_search.tasks.base import LogitsTask, Network, got_output, label_values, part_name, unfit
from subnet_search.tasks.predictions import MultiLabelPrediction

WANTED = "labels of 0 and 1 with shape (N, labels)"


class MultiLabel(LogitsTask):
    """Find which labels each input has: labels (N, labels) of 0 and 1, of any type.

    The loss is the mean binary cross-entropy over all inputs and labels. Metrics:

    f1                        mean over labels of F1 at the threshold; 0 for a label that is never there and never predicted
    mean_average_precision    mean over the labels that are there of the area under the precision-recall curve
    exact_match               fraction of inputs with all labels right at the threshold
    nll                       mean binary cross-entropy without weights, in nats
    """

    name: Literal["multi_label"] = "multi_label"
    pos_weight: Literal["balanced"] | tuple[float, ...] | None = None
    """Weight of the ones of each label in the loss: one number for each label, or balanced, the number of zeros divided by
    that of ones in the training items. Default: all have weight 1."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """The probability from which on a label counts as predicted."""

    leading: ClassVar[str] = "f1"
    directions: ClassVar = {
        "f1": "maximize",
        "mean_average_precision": "maximize",
        "exact_match": "maximize",
        "nll": "minimize",
    }
    _weights: Tensor | None = PrivateAttr(default=None)

    @field_validator("pos_weight")
    @classmethod
    def _positive(cls, value: Any) -> Any:
        if isinstance(value, tuple) and (not value or min(value) <= 0):
            raise UserError("weights of labels must be above 0")
        return value

    def check_data(self, data: Data) -> None:
        labels = self.outputs(data)
        for part in data.values:
            values = label_values(data, part, self.name, WANTED)
            if values.shape is None or len(values.shape) != 1:
                raise unfit(data, part, self.name, WANTED, values)
            if not values.whole or values.low < 0 or values.high > 1:
                raise unfit(data, part, self.name, WANTED, f"values from {values.low:g} to {values.high:g}")
            if values.shape[0] != labels:
                raise UserError(f"{part_name(data, part)}: there are {values.shape[0]} labels, but {labels} in training")

    def fitted(self, data: Data, device: torch.device | str) -> Self:
        self.check_data(data)
        weights, found = self.weights(data), self.model_copy()
        found._weights = None if weights is None else weights.to(device)
        return found

    def outputs(self, data: Data) -> int:
        shape = label_values(data, "train", self.name, WANTED).shape
        return shape[-1] if shape else 1

    def weights(self, data: Data) -> Tensor | None:
        """The weight of the ones of each label (labels,). Raises UserError when there is not one weight for each label."""
        if self.pos_weight is None:
            return None
        values = label_values(data, "train", self.name, WANTED)
        if self.pos_weight == "balanced":
            assert values.sums is not None
            return ((values.items - values.sums).clamp(min=1) / values.sums.clamp(min=1)).float()
        if len(self.pos_weight) != self.outputs(data):
            raise UserError(f"task.pos_weight has {len(self.pos_weight)} weights, but the data has {self.outputs(data)} labels")
        return torch.tensor(self.pos_weight)

    def criterion(self, logits: Tensor, labels: Any, label_smoothing: float = 0.0) -> Tensor:
        """Binary cross-entropy: the mean over inputs and labels. Smoothed labels are label_smoothing / 2 away from 0 and 1."""
        targets = labels.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=self._weights)

    def measure(self, network: Network, batches: Iterable[Any]) -> dict[str, Any]:
        return self._metrics(*self._logits(network, batches))

    def measure_items(self, network: Network, batches: Iterable[Any]) -> tuple[dict[str, Any], Items]:
        logits, labels = self._logits(network, batches)
        predicted, there = logits.sigmoid() > self.threshold, labels.bool()
        return self._metrics(logits, labels), Items(torch.cat([predicted & there, predicted, there], 1).double(), _f1)

    def _logits(self, network: Network, batches: Iterable[Any]) -> tuple[Tensor, Tensor]:
        """The logits, float64, and labels of all items (N, labels), on the CPU."""
        parts = [(logits_of(call(network, inputs)), labels) for inputs, labels in map(self.split, batches)]
        logits, labels = (torch.cat([part.cpu() for part in one]) for one in zip(*parts, strict=True))
        return logits.double(), labels.long()

    def _metrics(self, logits: Tensor, labels: Tensor) -> dict[str, Any]:
        from torchmetrics.classification import MultilabelAveragePrecision, MultilabelExactMatch, MultilabelF1Score

        probabilities, count = logits.sigmoid(), logits.shape[1]
        found = {}
        for name, metric in (
            ("f1", MultilabelF1Score(count, self.threshold)),
            ("exact_match", MultilabelExactMatch(count, self.threshold)),
        ):
            found[name] = float(metric(probabilities, labels))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about labels that are never there, which are left out
            precision = MultilabelAveragePrecision(count, average="none")(probabilities, labels)
        there = labels.any(0)
        if there.any():
            found["mean_average_precision"] = float(precision[there].mean())
        return {**found, "nll": F.binary_cross_entropy_with_logits(logits, labels.double()).item()}

    def check_output(self, output: Any, batch: Any, outputs: int | None, name: str, when: str = "") -> None:
        logits, (_, labels) = logits_of(output), self.split(batch)
        if not isinstance(logits, Tensor) or logits.shape != labels.shape:
            wanted = f"(batch, labels) = {tuple(labels.shape)}"
            hint = outputs_hint(name, outputs)
            raise UserError(f"{name} must return logits of shape {wanted}{when}, got {got_output(output)}{hint}")

    def distance(self, output: Any, teacher: Any, temperature: float) -> Tensor:
        """Kullback-Leibler divergence of softened probabilities, times temperature squared: the mean over inputs and labels."""
        logits, target = (logits_of(one).float() / temperature for one in (output, teacher))
        found = torch.zeros_like(logits)
        for sign in (1, -1):  # a label that is there, and one that is not
            here, there = F.logsigmoid(sign * logits), F.logsigmoid(sign * target)
            found = found + there.exp() * (there - here)
        return found.mean() * temperature**2

    def averaged(self, outputs: Sequence[Any]) -> Tensor:
        """The logit of the mean probabilities, float64."""
        return torch.stack([logits_of(one).double().sigmoid() for one in outputs]).mean(0).logit(eps=1e-15)

    def prediction(self, answers: Any, outputs: int, names: tuple[str, ...] | None) -> MultiLabelPrediction:
        probabilities = answers.float().sigmoid()
        return MultiLabelPrediction(
            probabilities >= self.threshold, probabilities, names if names and len(names) == probabilities.shape[1] else None
        )


def _f1(sums: Any) -> Any:
    """The mean over labels of F1. sums: of those that are right, predicted and there, one after the other (..., 3 labels)."""
    right, predicted, there = np.split(sums, 3, -1)
    return (2 * right / np.maximum(predicted + there, 1)).mean(-1)
