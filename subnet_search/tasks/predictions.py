"""What `predict` returns, for each task."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from subnet_search.core.nested import Brief


@dataclass(frozen=True, repr=False)
class Prediction(Brief):
    """The predicted classes of inputs, and the probabilities of all classes."""

    classes: Tensor  # (N,) int64
    probabilities: Tensor  # (N, classes) float32
    names: tuple[str, ...] | None  # of the classes, if the run's data had names

    def rows(self) -> list[dict[str, Any]]:
        """The class (name or number) and its probability for each input, in plain values."""
        chosen = self.probabilities.gather(1, self.classes.view(-1, 1)).view(-1).tolist()
        found = self.classes.tolist()
        return [
            {"class": self.names[index] if self.names else index, "probability": probability}
            for index, probability in zip(found, chosen, strict=True)
        ]

    def plain(self) -> list[dict[str, Any]]:
        """`rows` with the probabilities of all classes."""
        return [{**row, "probabilities": all_} for row, all_ in zip(self.rows(), self.probabilities.tolist(), strict=True)]


@dataclass(frozen=True, repr=False)
class MultiLabelPrediction(Brief):
    """The probability of each label, and which are at least the threshold."""

    labels: Tensor  # (N, labels) bool
    probabilities: Tensor  # (N, labels) float32
    names: tuple[str, ...] | None  # of the labels, if the run's data had names

    def rows(self) -> list[dict[str, Any]]:
        """The labels (names or numbers) of each input, in plain values."""
        names = self.names or range(self.labels.shape[1])
        return [{"labels": [name for name, is_one in zip(names, row, strict=True) if is_one]} for row in self.labels.tolist()]

    def plain(self) -> list[dict[str, Any]]:
        """`rows` with the probabilities of all labels."""
        return [{**row, "probabilities": all_} for row, all_ in zip(self.rows(), self.probabilities.tolist(), strict=True)]


@dataclass(frozen=True, repr=False)
class RegressionPrediction(Brief):
    """The predicted values of inputs."""

    values: Tensor  # (N,) float32, or (N, targets)

    def rows(self) -> list[dict[str, Any]]:
        """The value, or the list of values, of each input."""
        return [{"value": value} for value in self.values.tolist()]

    def plain(self) -> list[dict[str, Any]]:
        """As `rows`."""
        return self.rows()


@dataclass(frozen=True, repr=False)
class SegmentationPrediction(Brief):
    """The class of each pixel, and the probabilities of all classes."""

    classes: Tensor  # (N, H, W) int64
    probabilities: Tensor  # (N, classes, H, W) float32
    names: tuple[str, ...] | None  # of the classes, if the run's data had names

    def rows(self) -> list[dict[str, Any]]:
        """The fraction of the pixels of each input that each class has, the largest first, in plain values."""
        return [{"pixels": self._fractions(one)} for one in self.classes]

    def plain(self) -> list[dict[str, Any]]:
        """`rows` with the class of each pixel."""
        return [{**row, "classes": one.tolist()} for row, one in zip(self.rows(), self.classes, strict=True)]

    def _fractions(self, classes: Tensor) -> dict[str, float]:
        counts = classes.reshape(-1).bincount()
        order = counts.argsort(descending=True, stable=True).tolist()
        return {
            self.names[index] if self.names else str(index): counts[index].item() / classes.numel()
            for index in order
            if counts[index]
        }


@dataclass(frozen=True, repr=False)
class NextTokenPrediction(Brief):
    """The token that follows each input, and the probabilities of all tokens."""

    tokens: Tensor  # (N,) int64, the likeliest
    probabilities: Tensor  # (N, vocabulary) float32

    def rows(self) -> list[dict[str, Any]]:
        """The likeliest next token of each input and its probability, in plain values."""
        chosen = self.probabilities.gather(1, self.tokens.view(-1, 1)).view(-1).tolist()
        return [{"token": token, "probability": one} for token, one in zip(self.tokens.tolist(), chosen, strict=True)]

    def plain(self) -> list[dict[str, Any]]:
        """As `rows`: the probabilities of all tokens are many."""
        return self.rows()
