"""Accuracy and calibration of a classifier."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TOP = 5


@dataclass(frozen=True)
class Quality:
    """Metrics of a classifier on one split."""

    accuracy: float  # fraction of correct predictions
    nll: float  # mean negative log-likelihood of the correct class, in nats
    brier: float  # mean squared distance of the probabilities to the one-hot label, 0 to 2
    balanced_accuracy: float  # mean of the accuracies of all classes that have items
    class_accuracy: list[float | None]  # of each class; None: no items
    ece: float  # expected calibration error, 15 bins of equal width (Guo et al. 2017, arXiv:1706.04599)
    top5_accuracy: float | None  # fraction with the correct class among the five most probable; None: five classes or fewer


@torch.no_grad()
def quality(outputs: Tensor, labels: Tensor, bins: int = 15) -> Quality:
    """Accuracy, likelihood and calibration. outputs: logits (N, classes); labels: (N,)."""
    probability = outputs.double().softmax(1)
    confidence, predicted = probability.max(1)
    right = (predicted == labels).double()
    # Each gap is weighted by the bin's size, which cancels its mean.
    gaps = _sums(confidence - right, _bins(confidence, bins), bins)
    brier = (probability - F.one_hot(labels, outputs.shape[1])).square().sum(1)
    counts, hits = labels.bincount(minlength=outputs.shape[1]), labels.bincount(right, minlength=outputs.shape[1])
    by_class = [hit / count if count else None for hit, count in zip(hits.tolist(), counts.tolist(), strict=True)]
    known = [value for value in by_class if value is not None]
    return Quality(
        accuracy=right.mean().item(),
        nll=F.nll_loss(probability.clamp(min=1e-12).log(), labels).item(),
        brier=brier.mean().item(),
        balanced_accuracy=sum(known) / len(known),
        class_accuracy=by_class,
        ece=(gaps.abs().sum() / len(labels)).item(),
        top5_accuracy=_in_top(outputs, labels) if outputs.shape[1] > TOP else None,
    )


def _in_top(outputs: Tensor, labels: Tensor) -> float:
    return (outputs.topk(TOP)[1] == labels[:, None]).any(1).double().mean().item()


@torch.no_grad()
def calibration(outputs: Tensor, labels: Tensor, bins: int = 15) -> list[dict[str, Any]]:
    """The rows of a reliability diagram, one for each bin that has items; arguments as for `quality`.

    Keys: `above` and `up_to`, the bounds of the probability of the predicted class; `confidence`, the mean of that
    probability; `accuracy`; `count`. The mean of |confidence - accuracy|, weighted by `count`, is `Quality.ece`.
    """
    confidence, predicted = outputs.double().softmax(1).max(1)
    index = _bins(confidence, bins)
    count, sums, hits = (
        _sums(values, index, bins).tolist()
        for values in (torch.ones_like(confidence), confidence, (predicted == labels).double())
    )
    return [
        {
            "above": i / bins,
            "up_to": (i + 1) / bins,
            "confidence": sums[i] / count[i],
            "accuracy": hits[i] / count[i],
            "count": int(count[i]),
        }
        for i in range(bins)
        if count[i]
    ]


def _bins(confidence: Tensor, bins: int) -> Tensor:
    """The bin of each confidence: bin i is (i / bins, (i + 1) / bins]."""
    return (confidence * bins).ceil().long().clamp(1, bins) - 1


def _sums(values: Tensor, index: Tensor, bins: int) -> Tensor:
    """The sum of the values in each bin, float64."""
    return torch.zeros(bins, dtype=torch.float64, device=values.device).index_add_(0, index, values)
