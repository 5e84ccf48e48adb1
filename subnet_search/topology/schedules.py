"""Numbers that change over a run: a function of progress, which goes from 0 (first step) to 1 (last step)."""

import math


def linear(start: float, end: float, progress: float) -> float:
    """A straight line from `start` to `end`."""
    return start + (end - start) * _within(progress)


def cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine wave from `start` to `end`: flat at both ends (Loshchilov & Hutter 2017, arXiv:1608.03983)."""
    return end + (start - end) * (1 + math.cos(math.pi * _within(progress))) / 2


def geometric(start: float, end: float, progress: float) -> float:
    """The same factor at every step, from `start` to `end`, both above 0."""
    return float(start * (end / start) ** _within(progress))


def cubic(start: float, end: float, progress: float) -> float:
    """Fast first, then ever slower (Zhu & Gupta 2017, arXiv:1710.01878, equation 1, on densities)."""
    return end + (start - end) * (1 - _within(progress)) ** 3


def sigmoid(start: float, end: float, progress: float, steepness: float = 12.0) -> float:
    """Slow, fast, slow: a logistic curve, stretched so that it begins and ends exactly where it should.

    After Zhang et al. 2025, arXiv:2501.19107, section 3.3. Their k = 6 is for each half of the way, so 12 for all of it
    (biomedical-cybernetics/Cannistraci-Hebb-Training-Soft-Rule- llm/dst_scheduler.py).
    """
    edge = 1 / (1 + math.exp(steepness / 2))
    curve = 1 / (1 + math.exp(-steepness * (_within(progress) - 0.5)))
    return start + (end - start) * (curve - edge) / (1 - 2 * edge)


def _within(progress: float) -> float:
    return min(1.0, max(0.0, progress))
