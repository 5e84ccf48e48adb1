"""Time several calls alternately, so that other load on the machine affects all of them equally."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WARM_UP = 5  # untimed rounds at first: memory allocation and kernel selection


@dataclass(frozen=True)
class Latency:
    """Time of a call, such as a forward pass of one batch, in milliseconds."""

    median: float
    low: float  # first quartile
    high: float  # third quartile
    count: int  # calls that were timed


def in_turn(calls: Sequence[Callable[[], object]], seconds: float, passes: int) -> list[Latency]:
    """Run rounds of one call each, up to `passes` timed rounds or `seconds` in all; one result for each call.

    The first rounds (at most `WARM_UP`) are not timed. At least two rounds are run.
    """
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
