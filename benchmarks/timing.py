"""What every benchmark shares: interleaved timing, numbers with their spread, and targets."""

import gc
import operator
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Self

THREADS = 2  # of every contender, so that ratios compare like with like
COMPARISONS = {"<=": operator.le, "<": operator.lt, ">=": operator.ge}


Better = Literal["higher", "lower"]


class Measured(float):
    """A table cell that `run.py --compare` holds against earlier runs: a number, its spread, and which way it is better."""

    low: float
    high: float
    better: Better
    text: str

    def __new__(cls, value: float, low: float, high: float, better: Better, text: str | None = None) -> Self:
        self = super().__new__(cls, value)
        self.low, self.high, self.better, self.text = min(low, value), max(high, value), better, text or f"{value:.2f}"
        return self

    def __str__(self) -> str:
        return self.text


class Times(dict[str, float]):
    """Median seconds of each contender, out of the seconds of every round."""

    def __init__(self, rounds: Mapping[str, Sequence[float]]) -> None:
        super().__init__({name: statistics.median(times) for name, times in rounds.items()})
        self.rounds = rounds

    def ratio(self, above: str, below: str, better: Better, digits: int = 2) -> Measured:
        """How many times the seconds of `below` those of `above` are; its spread are the quartiles over rounds."""
        each = [a / b for a, b in zip(self.rounds[above], self.rounds[below], strict=True)]
        low, _, high = statistics.quantiles(each, n=4)
        value = self[above] / self[below]
        return Measured(value, low, high, better, f"{value:.{digits}f}")


def medians(contenders: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 3) -> Times:
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
    return Times(taken)


def spread(value: float, values: Sequence[float], better: Better, digits: int = 2) -> Measured:
    """A mean or median with the lowest and the highest of its values, as over seeds."""
    low, high = min(values), max(values)
    return Measured(value, low, high, better, f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})")


def verdict(value: float, comparison: str, limit: float, unit: str = "") -> str:
    """A table cell that says whether a target is met: `verdict(1.3, "<=", 1.25)` is "<= 1.25: missed"."""
    met = COMPARISONS[comparison](value, limit)
    return f"{comparison} {limit:g}{unit}: {'met' if met else 'missed'}"
