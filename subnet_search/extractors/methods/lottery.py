"""Lottery tickets: iterative magnitude pruning with rewinding.

Frankle & Carbin 2019, "The Lottery Ticket Hypothesis", arXiv:1803.03635 (rewinding to the initial weights);
Frankle, Dziugaite, Roy & Carbin 2020, arXiv:1912.05671 (to the weights of step k); Renda, Frankle & Carbin 2020,
arXiv:2003.02389 (of the learning rate alone). Train, drop the smallest |w|, go back, train again, `rounds` times; round r
leaves density^(r / rounds). Rounds are changes on the run's one axis of steps, which they share equally: a ticket costs
as many steps as any other method's run, so each round is short. The learning rate runs its whole course in every round
when `rewind` includes it; otherwise once over the run. Momentum begins afresh after a rewind of weights.
"""

from typing import Annotated

from annotated_types import Ge

from subnet_search.core.errors import UserError
from subnet_search.core.search_domains import Int, OneOf, Real
from subnet_search.extractors.base import (
    Change,
    Clock,
    Density,
    Extractor,
    Network,
    Normalise,
    Paper,
    Paradigm,
    Published,
    Rewind,
    Scope,
    Span,
)
from subnet_search.extractors.registry import register
from subnet_search.topology.schedules import geometric
from subnet_search.topology.scores import magnitude
from subnet_search.topology.units import EVERY_KIND, Units


@register("lottery")
class Lottery(Extractor):
    """Train, drop the smallest weights, rewind, and train again, in rounds."""

    paper = Paper(
        "Frankle & Carbin",
        2019,
        "1803.03635",
        "The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks",
        "m_r = top density^(r / rounds) of |w_T|; w <- m_r * w_k",
    )
    paradigm = Paradigm("by magnitude, after training, in rounds", "rewound, then trained", "in steps", True, EVERY_KIND)
    published = Published(
        "facebookresearch/open_lth models/cifar_resnet.py (CIFAR-10, ResNet-20)",
        {"lr": 0.1, "weight_decay": 1e-4, "schedule": "step", "milestones": (0.5, 0.75)},
        epochs=160,
        note="The length is that of each training, of which there is one more than there are rounds.",
    )

    density: Annotated[Density, Real(0.01, 0.5, log=True)] = 0.1
    """Fraction of prunable weights kept."""
    rounds: Annotated[int, Ge(1), Int(1, 6)] = 3
    """Times that the network is pruned; it is trained once more than that."""
    rewind: Annotated[Rewind, OneOf("none", "weights", "schedule", "both")] = "both"
    """What goes back after each pruning: the weights, the learning rate's schedule, both, or nothing."""
    rewind_to: Annotated[Span, Real(0, 0.1)] = 0
    """The point of the run to go back to, in its first round: steps, or a fraction of the run."""
    scope: Scope = "global"
    """Whether weights compete over all layers, or each layer gets its share."""
    normalise: Normalise = "layer"

    def check(self, units: Units, clock: Clock) -> None:
        units.check(self.density, self.scope)
        if clock.total - clock.steps(self.rewind_to) <= self.rounds:
            raise UserError(f"lottery: {self.rounds} rounds need more than the run's {clock.total} steps")

    def rewinds_to(self, clock: Clock) -> int | None:
        return clock.steps(self.rewind_to) if self.rewind in ("weights", "both") else None

    def schedule_steps(self, clock: Clock) -> int:
        return clock.total if self.rewind in ("none", "weights") else self._prunings(clock)[0]

    def step(self, net: Network, clock: Clock) -> Change | None:
        points = self._prunings(clock)
        if clock.step not in points:
            return None
        density = geometric(1.0, self.density, (points.index(clock.step) + 1) / self.rounds)
        masks = net.units.keep(net.units.pool(magnitude(net.weights)), density, self.scope, net.masks, self.normalise)
        return Change(masks, rewind=self.rewind, schedule_to=clock.steps(self.rewind_to))

    def _prunings(self, clock: Clock) -> list[int]:
        """The steps at which the network is pruned: between them, every round trains from step k for equally long."""
        back = clock.steps(self.rewind_to)
        length = (clock.total - back) / (self.rounds + 1)
        return [int(back + length * (index + 1)) for index in range(self.rounds)]
