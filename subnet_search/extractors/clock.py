"""The clock: where a run stands, how long things last in it, and the only source of random numbers."""

from dataclasses import dataclass
from typing import Annotated, TypeAlias

import torch
from annotated_types import Ge, Le
from torch import Tensor

from subnet_search.errors import UserError
from subnet_search.seeds import derive, generator
from subnet_search.topology.samplers import uniform_noise

SHORTEST = 10  # steps: fractions of a run that come to shorter intervals are raised to this

Span: TypeAlias = Annotated[int, Ge(0)] | Annotated[float, Ge(0), Le(1)]
"""A length of training, or a point in it: a whole number counts steps, a decimal is a fraction of the run."""


@dataclass(frozen=True)
class Clock:
    """Where a run stands, and the only source of random numbers at that point."""

    step: int  # training steps done, over the whole run
    total: int  # steps in the whole run
    seed: int

    @property
    def progress(self) -> float:
        """From 0 at the first step to 1 at the last."""
        return self.step / max(1, self.total - 1)

    @property
    def next(self) -> "Clock":
        """The clock once the step under way is done."""
        return Clock(self.step + 1, self.total, self.seed)

    def steps(self, span: Span) -> int:
        """A span in steps: as it is, or the fraction of this run that it stands for, rounded to the nearest."""
        return span if isinstance(span, int) else round(span * self.total)

    def interval(self, every: Span) -> int:
        """The steps between two changes. A fraction that comes to fewer than min(10, total // 4) steps is raised to it.

        Between changes a network has to train: in a run of 60 steps, 0.02 would be a change after every step.
        """
        return max(1, self.steps(every), 0 if isinstance(every, int) else min(SHORTEST, self.total // 4))

    def due(self, every: Span, until: Span = 1.0) -> bool:
        """Whether an event that comes every so often, the first time after `every` steps, falls on this step."""
        return self.step > 0 and self.step % self.interval(every) == 0 and self.step < self.steps(until)

    def ramp(self, every: Span, start: Span, end: Span) -> float | None:
        """How far a ramp has come, above 0 and up to 1, if it moves at this step: every so often, and at its end."""
        first, last = self.steps(start), min(self.steps(end), self.total - 1)
        if self.step == last:
            return 1.0
        moves = first < self.step < last and (self.step - first) % self.interval(every) == 0
        return (self.step - first) / (last - first) if moves else None

    def check_interval(self, name: str, every: Span, least: int = 1) -> None:
        """Raise UserError for an interval that never ends in this run, or is too short to train between two changes.

        least: the steps from one change to the next that include one of training; 2 where a change replaces a step.
        """
        steps = every if isinstance(every, int) else self.interval(every)
        interval = f"{name}: an interval of {steps} step{'' if steps == 1 else 's'}"
        if steps >= max(2, self.total):
            raise UserError(f"{interval} is longer than the run of {self.total}")
        if steps < least:
            needed = f"it must be at least {least}" if isinstance(every, int) else "train for longer"
            raise UserError(f"{interval} leaves no training step between two changes: {needed}")

    def check_end(self, name: str, start: Span, end: Span) -> None:
        """Raise UserError for a phase that ends before it starts, or after the run."""
        first, last = self.steps(start), self.steps(end)
        if self.total == 0:
            raise UserError(f"{name}: this method works while it trains, and recipe.epochs is 0")
        if last > self.total:
            raise UserError(f"{name}: step {last} is after the end of the run of {self.total} steps")
        if last < first:
            raise UserError(f"{name}: step {last} is before the start, step {first}")

    def generator(self, *names: str, device: torch.device | str = "cpu") -> torch.Generator:
        """A generator for this step and these names: the same on every rank and after every resume."""
        return generator(self.seed, "step", self.step, *names, device=device)

    def uniform(self, name: str, like: Tensor) -> Tensor:
        """Uniform random numbers in (0, 1), of the shape, type and device of `like`."""
        return uniform_noise(like, derive(self.seed, "step", self.step, name))
