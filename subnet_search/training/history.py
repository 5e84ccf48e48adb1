"""What the history of a run holds beside its metrics: how the topology changed in an epoch, and a histogram of the scores."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from subnet_search.topology.masks import Masks, alive, unpack
from subnet_search.training.supernet import Supernet

BINS = 24
DEVIATIONS = 4.0  # from the mean to the lowest and the highest bin, which also hold what is beyond them


def changes(masks: Masks, bits: Mapping[str, Tensor]) -> dict[str, float]:
    """The units dropped and grown since an earlier topology, as fractions of those that it kept; empty without one.

    bits: the earlier topology, of `pack`
    """
    if not bits or bits.keys() != masks.keys():
        return {}
    dropped, grown, kept = 0, 0, 0
    for name, mask in masks.items():
        now, before = mask.cpu(), unpack(bits[name], tuple(mask.shape))
        dropped, grown, kept = dropped + alive(before & ~now), grown + alive(now & ~before), kept + alive(before)
    return {"dropped": dropped / max(1, kept), "grown": grown / max(1, kept)}


@torch.no_grad()
def histogram_of(supernet: Supernet) -> dict[str, Any] | None:
    """A histogram of the relevance of all units, or of the kept weights where no relevance is learned.

    Returns `of`, the edges `low` and `high`, and the `counts` of bins of equal width; None where values are not finite.
    """
    if supernet.relevance:
        found = _histogram([value.detach() for value in supernet.relevance.values()])
    else:
        found = _histogram([weight.detach()[supernet.gates[name] != 0] for name, weight in supernet.weights.items()])
    return found and {"of": "relevance" if supernet.relevance else "weights", **found}


def _histogram(values: Iterable[Tensor]) -> dict[str, Any] | None:
    parts = [part for part in values if part.numel()]
    count = sum(part.numel() for part in parts)
    if not count:
        return None
    mean = sum(float(part.sum(dtype=torch.float64)) for part in parts) / count
    square = sum(float(part.square().sum(dtype=torch.float64)) for part in parts) / count
    if not math.isfinite(square):
        return None
    half = DEVIATIONS * math.sqrt(max(0.0, square - mean**2)) or 1e-3 * abs(mean) or 1e-3
    low = max(mean - half, min(float(part.min()) for part in parts))
    high = min(mean + half, max(float(part.max()) for part in parts))
    if not high > low:
        low, high = mean - half, mean + half
    counts = torch.zeros(BINS, dtype=torch.long)
    for part in parts:
        places = ((part.float() - low) * (BINS / (high - low))).long().clamp_(0, BINS - 1)
        counts += places.reshape(-1).bincount(minlength=BINS).cpu()
    return {"low": low, "high": high, "counts": counts.tolist()}
