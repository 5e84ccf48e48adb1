"""What every benchmark shares: interleaved timing, and targets."""

import gc
import operator
import statistics
import time
from collections.abc import Callable, Mapping

THREADS = 2  # of every contender, so that ratios compare like with like
COMPARISONS = {"<=": operator.le, "<": operator.lt, ">=": operator.ge}


def medians(contenders: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 3) -> dict[str, float]:
    """Median seconds of each contender. Every round runs all of them, each time with another one first."""
    names = list(contenders)
    for name in names:
        for _ in range(warmup):
            contenders[name]()
    taken: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        for index in range(rounds):
            first = index % len(names)
            for name in names[first:] + names[:first]:
                started = time.perf_counter()
                contenders[name]()
                taken[name].append(time.perf_counter() - started)
    finally:
        gc.enable()
    return {name: statistics.median(times) for name, times in taken.items()}


def verdict(value: float, comparison: str, limit: float, unit: str = "") -> str:
    """A table cell that says whether a target is met: `verdict(1.3, "<=", 1.25)` is "<= 1.25: missed"."""
    met = COMPARISONS[comparison](value, limit)
    return f"{comparison} {limit:g}{unit}: {'met' if met else 'missed'}"
