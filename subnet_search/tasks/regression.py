"""One or several numbers for each input: squared, absolute or Huber error of outputs (batch, targets)."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from subnet_search.core.errors import UserError
from subnet_search.data import Data
from subnet_search.evaluation.items import Items, ratio
from subnet_search.nets import call, logits_of, outputs_hint
from subnet_search.tasks.base import LogitsTask, Network, got_output, label_values, part_name, unfit
from subnet_search.tasks.predictions import RegressionPrediction

WANTED = "labels that are numbers with shape (N,) or (N, targets)"
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss}


class Regression(LogitsTask):
    """Predict numbers: labels (N,) or (N, targets). Outputs are (batch, targets), or (batch,) for one target.

    Metrics over all items and targets: mse (mean squared error), rmse (its square root), mae (mean absolute error) and r2
    (coefficient of determination, the mean over targets; not for fewer than two items). The best epoch is chosen by rmse: it
    has the unit of the labels, orders epochs as mse does, and is also defined where all labels are equal.
    """

    name: Literal["regression"] = "regression"
    error: Literal["mse", "l1", "huber"] = Field(default="mse", alias="loss")
    """The loss: mse (squared error), l1 (absolute error), or huber (half the squared error up to 1, then linear)."""

    leading: ClassVar[str] = "rmse"
    directions: ClassVar = {"rmse": "minimize", "mse": "minimize", "mae": "minimize", "r2": "maximize"}

    def check_data(self, data: Data) -> None:
        targets = self.outputs(data)
        for part in data.values:
            values = label_values(data, part, self.name, WANTED)
            if values.shape is None or len(values.shape) > 1:
                raise unfit(data, part, self.name, WANTED, values)
            if (found := values.shape[0] if values.shape else 1) != targets:
                raise UserError(f"{part_name(data, part)}: labels have {found} targets, but {targets} in training")

    def outputs(self, data: Data) -> int:
        shape = label_values(data, "train", self.name, WANTED).shape
        return shape[0] if shape else 1

    def criterion(self, logits: Tensor, labels: Any, label_smoothing: float = 0.0) -> Tensor:
        """The mean error over items and targets. There are no classes, so `label_smoothing` changes nothing."""
        values, targets = _columns(logits), _columns(labels).to(logits.dtype)
        if values.shape != targets.shape:  # the error functions would broadcast them
            raise UserError(f"outputs of shape {tuple(logits.shape)} do not fit labels of shape {tuple(labels.shape)}")
        return LOSSES[self.error](values, targets)

    def measure(self, network: Network, batches: Iterable[Any]) -> dict[str, Any]:
        return self._metrics(self._pairs(network, batches))

    def measure_items(self, network: Network, batches: Iterable[Any]) -> tuple[dict[str, Any], Items]:
        pairs = list(self._pairs(network, batches))
        errors = torch.cat([(values - targets).square().mean(1) for values, targets in pairs])
        items = Items(torch.stack([errors, torch.ones_like(errors)], 1), lambda sums: ratio(sums) ** 0.5)
        return self._metrics(pairs), items

    def _pairs(self, network: Network, batches: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
        """Outputs and labels of each batch (batch, targets), on the CPU."""
        for inputs, labels in map(self.split, batches):
            # float64, since r2 is made of sums of squares, whose difference is small where labels are far from 0
            values, targets = (_columns(one).cpu().double() for one in (logits_of(call(network, inputs)), labels))
            yield values.contiguous(), targets.contiguous()

    def _metrics(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Any]:
        from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError, R2Score

        metrics = {"mse": MeanSquaredError(), "mae": MeanAbsoluteError(), "r2": R2Score()}
        metrics = {name: metric.set_dtype(torch.float64) for name, metric in metrics.items()}
        items = 0
        for values, targets in pairs:
            for metric in metrics.values():
                metric.update(values, targets)
            items += len(targets)
        found = {name: float(metric.compute()) for name, metric in metrics.items() if name != "r2" or items > 1}
        return {"rmse": math.sqrt(found["mse"]), **found}

    def check_output(self, output: Any, batch: Any, outputs: int | None, name: str, when: str = "") -> None:
        values, (_, labels) = logits_of(output), self.split(batch)
        wanted = tuple(_columns(labels).shape)
        if not isinstance(values, Tensor) or values.dim() not in (1, 2) or tuple(_columns(values).shape) != wanted:
            one = f" or ({wanted[0]},)" if wanted[1] == 1 else ""
            raise UserError(
                f"{name} must return values of shape (batch, targets) = {wanted}{one}{when}, got {got_output(output)}"
                f"{outputs_hint(name, outputs)}"
            )

    def distance(self, output: Any, teacher: Any, temperature: float) -> Tensor:
        """The mean squared difference. The temperature changes nothing."""
        values, target = (_columns(logits_of(one).float()) for one in (output, teacher))
        return (values - target).square().mean()

    def averaged(self, outputs: Sequence[Any]) -> Tensor:
        """The mean of the values, float64."""
        return torch.stack([logits_of(one).double() for one in outputs]).mean(0)

    def prediction(self, answers: Any, outputs: int, names: tuple[str, ...] | None) -> RegressionPrediction:
        values = answers.float()
        return RegressionPrediction(values.squeeze(1) if values.dim() == 2 and values.shape[1] == 1 else values)


def _columns(values: Tensor) -> Tensor:
    """Numbers (batch,) as (batch, 1), so that no shape broadcasts to another."""
    return values.unsqueeze(1) if values.dim() == 1 else values
