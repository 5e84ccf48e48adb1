"""Schedules: values as a function of progress, from 0 (first step) to 1 (last step). Progress is clamped to that range."""

import math


def linear(start: float, end: float, progress: float) -> float:
    """Linear from `start` to `end`. progress: 0 to 1, as in all schedules; other values are clamped to that range."""
    return start + (end - start) * _within(progress)


def cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine wave from `start` (at `progress` 0) to `end` (at 1), flat at both ends.

    Loshchilov & Hutter 2017, arXiv:1608.03983.
    """
    return end + (start - end) * (1 + math.cos(math.pi * _within(progress))) / 2


def geometric(start: float, end: float, progress: float) -> float:
    """Exponential from `start` (at `progress` 0) to `end` (at 1), both above 0: the same factor at every step."""
    return float(start * (end / start) ** _within(progress))


def cubic(start: float, end: float, progress: float) -> float:
    """Cubic from `start` (at `progress` 0) to `end` (at 1), fastest at first.

    Zhu & Gupta 2017, arXiv:1710.01878, equation 1, for densities.
    """
    return end + (start - end) * (1 - _within(progress)) ** 3


def sigmoid(start: float, end: float, progress: float, steepness: float = 12.0) -> float:
    """Logistic from `start` (at `progress` 0) to `end` (at 1), scaled so that both ends are exact.

    Zhang et al. 2025, arXiv:2501.19107, section 3.3. Their k = 6 is for half of the run, so `steepness` is 12
    (biomedical-cybernetics/Cannistraci-Hebb-Training-Soft-Rule- llm/dst_scheduler.py).
    """
    edge = 1 / (1 + math.exp(steepness / 2))
    curve = 1 / (1 + math.exp(-steepness * (_within(progress) - 0.5)))
    return start + (end - start) * (curve - edge) / (1 - 2 * edge)


def _within(progress: float) -> float:
    return min(1.0, max(0.0, progress))
