"""RigL: drop the smallest weights, grow where the dense gradient is largest.

Evci, Gale, Menick, Castro & Elsen 2020, "Rigging the Lottery: Making All Tickets Winners", arXiv:1911.11134, algorithm 1.
From a random ERK topology, every so often each layer drops the fraction alpha / 2 (1 + cos(pi t / T_end)) of its weights
and grows as many where |gradient| of the batch is largest; grown weights begin at zero. A change takes the place of the
optimizer's step. Changes stop at T_end = 0.75 T. What is dropped and grown in one change keeps its value and momentum, as in
the authors' code (google-research/rigl); that rounds the number dropped down, ours rounds it up, as other methods do. Their
ERK masks have exact counts, as ours. Another `grow` makes it SET with a decaying fraction (random) or a
relative of sparse momentum (Dettmers & Zettlemoyer 2019, arXiv:1907.04840).
"""

from typing import Annotated

from annotated_types import Gt, Le

from subnet_search.core.search_domains import OneOf, Real
from subnet_search.extractors.base import (
    Allocation,
    Change,
    Clock,
    Density,
    Every,
    Extractor,
    Grow,
    Network,
    Paper,
    Paradigm,
    Probe,
    Published,
    Span,
    chances,
    growth,
)
from subnet_search.extractors.registry import register
from subnet_search.topology.schedules import cosine
from subnet_search.topology.units import EVERY_KIND, Units


@register("rigl")
class RigL(Extractor):
    """Drop the smallest weights and grow where the gradient is largest, while the network trains."""

    paper = Paper(
        "Evci, Gale, Menick, Castro & Elsen",
        2020,
        "1911.11134",
        "Rigging the Lottery: Making All Tickets Winners",
        "each layer: drop the lowest alpha / 2 (1 + cos(pi t / T_end)) of |w|, grow as many by |dL/dw|",
    )
    paradigm = Paradigm("drop and grow, during training", "trained", "fixed", True, EVERY_KIND)
    published = Published(
        "google-research/rigl rigl/cifar_resnet/resnet_train_eval.py (CIFAR-10, wide ResNet)",
        {
            "lr": 0.1,
            "nesterov": True,
            "weight_decay": 5e-4,
            "schedule": "step",
            "milestones": (0.307, 0.614, 0.922),
            "gamma": 0.2,
        },
        epochs=250,
        note="The authors divide by 5 at steps 30,000, 60,000 and 90,000 of 97,656.",
    )
    replaces_step = True

    density: Annotated[Density, Real(0.01, 0.5, log=True)] = 0.1
    """Fraction of prunable weights kept."""
    allocation: Allocation = "erk"
    """How the density is shared among layers."""
    every: Every = 0.02
    """Between two changes: steps, or a fraction of the run."""
    until: Annotated[Span, Real(0.5, 1.0)] = 0.75
    """When changes stop (T_end)."""
    drop_fraction: Annotated[float, Gt(0), Le(1), Real(0.05, 0.6)] = 0.3
    """Fraction of each layer's weights that is moved at first (alpha); it falls to 0 along a cosine."""
    grow: Annotated[Grow, OneOf("gradient", "momentum", "random")] = "gradient"
    """What dead weights grow by."""

    @property
    def needs_momentum(self) -> bool:
        return self.grow == "momentum"

    def check(self, units: Units, clock: Clock) -> None:
        units.check(self.density, self.allocation)
        clock.check_end("rigl.until", 0, self.until)
        clock.check_interval("rigl.every", self.every, least=2)

    def begin(self, net: Network, clock: Clock, probe: Probe) -> Change:
        return Change(net.units.keep(chances(net, clock), self.density, self.allocation))

    def step(self, net: Network, clock: Clock) -> Change | None:
        if not clock.due(self.every, self.until):
            return None
        fraction = cosine(self.drop_fraction, 0.0, clock.step / clock.steps(self.until))
        return Change(
            net.units.regrow(net.masks, net.units.pool_magnitude(net.weights), growth(net, clock, self.grow), fraction)
        )
