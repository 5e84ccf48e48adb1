"""What the hooks of an extractor are called with: the network, the clock of the run, and a probe of training data."""

from dataclasses import dataclass
from typing import Annotated, Protocol, TypeAlias

import torch
from annotated_types import Ge, Le
from torch import Tensor

from subnet_search.core.errors import UserError
from subnet_search.core.rng import derive, generator
from subnet_search.topology.masks import Masks
from subnet_search.topology.masks import Tensors as Tensors
from subnet_search.topology.samplers import uniform_noise
from subnet_search.topology.units import Units


class Network(Protocol):
    """The network as an extractor sees it. Implemented by `training.supernet.Supernet`."""

    @property
    def weights(self) -> Tensors:
        """Prunable weights by name, of the parameters' shapes. While only weights are learned, dead ones are exactly zero."""

    @property
    def relevance(self) -> Tensors:
        """Learned relevance of the units, of their shapes; empty unless relevance is learned."""

    @property
    def units(self) -> Units:
        """What is kept or dropped as one; pools scores of weights to units, and chooses among units."""

    @property
    def masks(self) -> Masks:
        """The current topology of units, as the last change set it; all units are alive before the first."""

    @property
    def gradients(self) -> Tensors:
        """In `step` and `adjust`: the gradient of the last batch's loss for every weight, dead ones included."""

    @property
    def momentum(self) -> Tensors:
        """The running mean of past gradients, dead weights included; kept only for extractors with `needs_momentum`."""

    @property
    def memory(self) -> Tensors:
        """Tensors that changes have stored for later steps, by name; empty at first."""

    @property
    def norms(self) -> Tensors:
        """The scales of the batch norms of each group of channels, (norms, channels); groups without one are left out."""

    @property
    def features(self) -> Tensors:
        """In a step that the extractor `looks_at`: channels as the next layers read them, (images, channels, numbers)."""

    @property
    def saliency(self) -> Tensors:
        """In `penalty`: how salient each layer's filters are to the inputs of this step, (inputs, filters), where dynamic."""


class Probe(Protocol):
    """Gradients on training data before the first step, by name. Every pass counts as training steps of the run.

    `weights` are values to compute with in place of the network's, such as masked ones; batch number `index` holds
    `images` training images (None: the recipe's batch). Raises UserError when that is more than there are.
    """

    def gradients(self, weights: Tensors, index: int = 0, images: int | None = None) -> dict[str, Tensor]:
        """The gradient of the loss, of the names and shapes of `weights`."""

    def hessian_gradients(
        self, weights: Tensors, temperature: float = 1.0, index: int = 0, images: int | None = None
    ) -> dict[str, Tensor]:
        """The product of the loss's Hessian with its gradient, of logits divided by `temperature`.

        Source: GraSP, Wang et al. 2020, arXiv:2002.07376.
        """

    def flow_gradients(self, weights: Tensors) -> dict[str, Tensor]:
        """The gradient, for |weights|, of the sum of outputs on one input of ones, every parameter made positive. No data.

        Source: SynFlow, Tanaka et al. 2020, arXiv:2006.05467.
        """


SHORTEST = 10  # steps: fractions of a run that come to shorter intervals are raised to this

Span: TypeAlias = Annotated[int, Ge(0)] | Annotated[float, Ge(0), Le(1)]
"""A length of training, or a point in it: a whole number counts steps, a decimal is a fraction of the run."""


@dataclass(frozen=True)
class Clock:
    """The current step of a run, and the only source of random numbers at that step."""

    step: int
    """Training steps done, over the whole run."""
    total: int
    """Steps in the whole run."""
    seed: int
    """The seed of the run."""

    @property
    def progress(self) -> float:
        """From 0 at the first step to 1 at the last."""
        return self.step / max(1, self.total - 1)

    @property
    def next(self) -> "Clock":
        """The clock after the current step."""
        return Clock(self.step + 1, self.total, self.seed)

    def steps(self, span: Span) -> int:
        """A span in steps: a fraction is of this run, rounded to the nearest step."""
        return span if isinstance(span, int) else round(span * self.total)

    def point(self, span: Span) -> int:
        """A span from the start of the run as a step: as `steps`, but the last step at the latest."""
        return min(self.steps(span), self.total - 1)

    def interval(self, every: Span) -> int:
        """The steps between two changes. A fraction of fewer than min(10, total // 4) steps is raised to that.

        A network has to train between changes: in a run of 60 steps, 0.02 would be a change after every step.
        """
        return max(1, self.steps(every), 0 if isinstance(every, int) else min(SHORTEST, self.total // 4))

    def due(self, every: Span, until: Span = 1.0) -> bool:
        """Whether an event at this interval, first after `every` steps and before `until`, falls on this step."""
        return self.step > 0 and self.step % self.interval(every) == 0 and self.step < self.steps(until)

    def ramp(self, every: Span, start: Span, end: Span) -> float | None:
        """Progress of a ramp from `start` to `end`, above 0 and up to 1, at steps where it moves; else None.

        It moves after every interval, `every`, and at its end.
        """
        first, last = self.steps(start), self.point(end)
        if self.step == last:
            return 1.0
        moves = first < self.step < last and (self.step - first) % self.interval(every) == 0
        return (self.step - first) / (last - first) if moves else None

    def check_interval(self, name: str, every: Span, least: int = 1) -> None:
        """Raise UserError for an interval `every` as long as the run, or too short to train between two changes.

        name: of the hyperparameter, for the message, as in the two below.
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
        """Raise UserError for a phase whose `end` is before its `start`, or after the run. name: as in `check_interval`."""
        first, last = self.steps(start), self.steps(end)
        if self.total == 0:
            raise UserError(f"{name}: this method works while it trains, and recipe.epochs is 0")
        if last > self.total:
            raise UserError(f"{name}: step {last} is after the end of the run of {self.total} steps")
        if last < first:
            raise UserError(f"{name}: step {last} is before the start, step {first}")

    def check_rounds(self, name: str, rounds: int, until: Span) -> None:
        """Raise UserError when `until` leaves fewer steps than there are rounds. name: as in `check_interval`."""
        if rounds > (search := self.point(until)):
            raise UserError(f"{name}: {rounds} rounds do not fit into {search} steps")

    def generator(self, *names: str, device: torch.device | str = "cpu") -> torch.Generator:
        """A generator on `device` for this step and these names: the same on every rank and after every resume."""
        return generator(self.seed, "step", self.step, *names, device=device)

    def uniform(self, name: str, like: Tensor) -> Tensor:
        """Uniform random numbers in (0, 1), of the shape, type and device of `like`.

        name: of what is drawn; another name gives other numbers at the same step.
        """
        return uniform_noise(like, derive(self.seed, "step", self.step, name))
