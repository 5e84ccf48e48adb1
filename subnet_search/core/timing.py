"""Measured time of a few calls, taken in turn, so that whatever else the machine does meets all of them alike."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WARM_UP = 5  # rounds, while memory and kernels are set up


@dataclass(frozen=True)
class Latency:
    """The time of a call, such as a forward pass of one batch, in milliseconds."""

    median: float
    low: float  # first quartile
    high: float  # third quartile
    count: int  # calls that were timed


def in_turn(calls: Sequence[Callable[[], object]], seconds: float, passes: int) -> list[Latency]:
    """Time rounds of one call each: so many, or until `seconds` are over; at least one after one to warm up."""
    rounds: list[list[float]] = []
    end = time.perf_counter() + seconds
    while len(rounds) < 2 or (len(rounds) < WARM_UP + passes and time.perf_counter() < end):
        rounds.append([_milliseconds(call) for call in calls])
    timed = rounds[min(WARM_UP, len(rounds) // 2) :]
    return [_summary(times) for times in zip(*timed, strict=True)]


def _milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1000


def _summary(times: Sequence[float]) -> Latency:
    import numpy as np

    low, median, high = np.percentile(times, (25, 50, 75)).tolist()
    return Latency(median, low, high, len(times))
