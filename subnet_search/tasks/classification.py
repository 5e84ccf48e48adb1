"""One class for each input: cross-entropy on logits (batch, classes)."""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import field_validator, model_validator
from torch import Tensor

from subnet_search.core.errors import UserError
from subnet_search.core.settings import Settings
from subnet_search.data import Data

Criterion = Callable[..., Tensor]
"""A loss: logits (batch, classes), labels (batch,) and `label_smoothing` to a scalar."""


class Classification(Settings):
    """Classify each input. A bare string is the name."""

    name: Literal["classification"] = "classification"
    class_weights: Literal["balanced"] | tuple[float, ...] | None = None
    """Weight of each class in the loss: one number for each class, or balanced, in inverse proportion to its number of
    training items. Default: all classes have weight 1."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("class_weights")
    @classmethod
    def _positive(cls, value: Any) -> Any:
        if isinstance(value, tuple) and (not value or min(value) < 0 or not any(value)):
            raise UserError("class weights must not be below 0, and not all be 0")
        return value

    def weights(self, data: Data) -> Tensor | None:
        """The weight of each class (classes,), with a mean of 1 over the training items if they are balanced.

        Raises UserError when there is not one weight for each class.
        """
        if self.class_weights is None:
            return None
        if self.class_weights == "balanced":
            counts = data.train.labels.bincount(minlength=data.classes)
            return len(data.train) / (counts.count_nonzero() * counts.clamp(min=1)).float()
        if len(self.class_weights) != data.classes:
            raise UserError(
                f"task.class_weights has {len(self.class_weights)} weights, but the data has {data.classes} classes"
            )
        return torch.tensor(self.class_weights)

    def criterion(self, data: Data, device: torch.device | str) -> Criterion:
        """The loss of a batch, on `device`: the mean over its items of weight times cross-entropy.

        It is divided by the number of items, and not by their weights, so a batch that is split over processes has the same
        loss.
        """
        weights = self.weights(data)
        if weights is None:
            return F.cross_entropy
        weights = weights.to(device)

        def weighted(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
            padded = F.pad(weights, (0, logits.shape[1] - len(weights)), value=1.0)  # the network may have more outputs
            return F.cross_entropy(logits, labels, padded, label_smoothing=label_smoothing, reduction="none").mean()

        return weighted
