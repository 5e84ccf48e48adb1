"""Accuracy and calibration of a classifier."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Quality:
    """Metrics of a classifier on one split."""

    accuracy: float  # fraction of correct predictions
    nll: float  # mean negative log-likelihood of the correct class, in nats
    brier: float  # mean squared distance of the probabilities to the one-hot label, 0 to 2
    balanced_accuracy: float  # mean of the accuracies of all classes that have items
    class_accuracy: list[float | None]  # of each class; None: no items
    ece: float  # expected calibration error, 15 bins of equal width (Guo et al. 2017, arXiv:1706.04599)


@torch.no_grad()
def quality(outputs: Tensor, labels: Tensor, bins: int = 15) -> Quality:
    """Accuracy, likelihood and calibration. outputs: logits (N, classes); labels: (N,)."""
    probability = outputs.double().softmax(1)
    confidence, predicted = probability.max(1)
    right = (predicted == labels).double()
    # Bins are (i / bins, (i + 1) / bins]. Each gap is weighted by the bin's size, which cancels its mean.
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.float64, device=outputs.device).index_add_(0, index, confidence - right)
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
    )
