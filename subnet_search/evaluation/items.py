"""Metrics from sums over items, their bootstrap intervals, and paired tests of two networks on the same items.

Intervals: the percentile bootstrap of `scipy.stats.bootstrap` over items. They hold the network as it is: how much a metric
differs between seeds of a run is not part of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from subnet_search.core.rng import derive

RESAMPLES, CONFIDENCE = 2000, 0.95
NUMBERS = 2**23  # in memory at once


@dataclass(frozen=True)
class Items:
    """What was measured for each item: a metric of any items is a function of the sum of their rows."""

    rows: Tensor  # (N, k), float64
    metric: Callable[[Any], Any]  # sums, an array (..., k), to metrics (...)
    logits: Tensor | None = None  # (N, classes), of a classifier
    labels: Tensor | None = None  # (N,), of a classifier

    def resampled(self, index: Any) -> Any:
        """The metric of items drawn with replacement. index: (..., N)."""
        rows = self.rows.cpu().numpy()
        return self.metric(np.stack([column[index].sum(-1) for column in rows.T], -1))


def interval(items: Items, other: Items | None = None, seed: int = 0) -> dict[str, float]:
    """The 95 % bootstrap interval of the metric, or of its difference to that of `other` on the same items.

    Keys: `low`, `high`, `confidence` and `resamples`; of a difference also `p_value`, two-sided: twice the share of
    resamples on the rarer side of 0. A single item gives its value, with 0 resamples.
    """
    from scipy.stats import bootstrap

    def statistic(index: Any, axis: int = -1) -> Any:
        found = items.resampled(index)
        return found if other is None else found - other.resampled(index)

    count, columns = items.rows.shape
    if count < 2:
        value = float(statistic(np.arange(count)))
        only = {"low": value, "high": value, "confidence": CONFIDENCE, "resamples": 0}
        return only if other is None else {**only, "p_value": 1.0}
    found = bootstrap(
        (np.arange(count),),
        statistic,
        n_resamples=RESAMPLES,
        batch=max(1, NUMBERS // (count * columns)),
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(derive(seed, "bootstrap")),
    )
    low, high = map(float, found.confidence_interval)
    record = {"low": low, "high": high, "confidence": CONFIDENCE, "resamples": RESAMPLES}
    if other is None:
        return record
    draws = found.bootstrap_distribution
    return {**record, "p_value": min(1.0, 2 * float(min((draws <= 0).mean(), (draws >= 0).mean())))}


def ratio(sums: Any) -> Any:
    """The first sum divided by the second: a mean."""
    return sums[..., 0] / sums[..., 1]


def mcnemar(right: Tensor, other_right: Tensor) -> dict[str, Any]:
    """McNemar's exact test of two classifiers on the same items. right, other_right: bool (N,).

    Keys: `only_this` and `only_other`, the numbers of items that one alone has right, and the two-sided `p_value`.
    """
    from scipy.stats import binomtest

    this, other = int((right & ~other_right).sum()), int((other_right & ~right).sum())
    p_value = float(binomtest(this, this + other).pvalue) if this + other else 1.0
    return {"test": "McNemar, exact", "only_this": this, "only_other": other, "p_value": p_value}
