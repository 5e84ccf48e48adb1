"""GraNet: gradual pruning with zero-cost neuroregeneration.

Liu, Chen, Chen, Atashgahi, Yin, Kou, Shen, Pechenizkiy, Wang & Mocanu 2021, "Sparse Training via Boosting Pruning
Plasticity with Neuroregeneration", arXiv:2106.10404, algorithm 1 and equation 1. At every change (1) the smallest |w| of
all layers are dropped down to the cubic ramp's density, and (2) every layer drops a fraction p more and grows as many
where |gradient| is largest. p falls from 0.5 to 0.005 along a cosine over the whole run, and (2) goes on after (1) is done.
`initial_density` 1 is the paper's dense-to-sparse, 0.5 from an ERK topology its sparse-to-sparse.

A weight that the swap drops and grows in the same change keeps its value and momentum; one that the ramp drops and the swap
grows begins at zero, both as in the authors' code (Shiweiliuiiiiiii/GraNet). Where we differ from it: the ramp's last move
falls on `end`, so the density is met exactly (theirs stops one move early, and keeps one weight fewer at every move); ERK
masks have exact counts, theirs are Bernoulli draws.
"""

from typing import Annotated

from annotated_types import Gt, Le

from subnet_search.core.errors import UserError
from subnet_search.core.search_domains import OneOf, Real
from subnet_search.extractors.base import (
    Change,
    Clock,
    Density,
    Every,
    Extractor,
    Grow,
    Network,
    Normalise,
    Paper,
    Paradigm,
    PlainScope,
    Probe,
    Published,
    Span,
    chances,
    growth,
)
from subnet_search.extractors.registry import register
from subnet_search.topology.schedules import cosine, cubic
from subnet_search.topology.scores import magnitude
from subnet_search.topology.select import LayerShares, allocate
from subnet_search.topology.units import EVERY_KIND, Units


@register("granet")
class GraNet(Extractor):
    """Drop the smallest weights gradually, and at each change swap a part of the rest for those with large gradients."""

    paper = Paper(
        "Liu, Chen, Chen, Atashgahi, Yin, Kou, Shen, Pechenizkiy, Wang & Mocanu",
        2021,
        "2106.10404",
        "Sparse Training via Boosting Pruning Plasticity with Neuroregeneration",
        "d_t = d_f + (d_i - d_f) (1 - (t - t_0) / n)^3 by |w|; then each layer swaps p of |w| for as many by |dL/dw|",
    )
    paradigm = Paradigm("gradual, with regrowth, during training", "trained", "falling, cubic", False, EVERY_KIND)
    published = Published(
        "Shiweiliuiiiiiii/GraNet CIFAR/scripts/script and CIFAR/main.py (CIFAR-10, VGG-19 and ResNet-50)",
        {"lr": 0.1, "nesterov": True, "weight_decay": 5e-4, "schedule": "step", "milestones": (0.5, 0.75)},
        epochs=160,
    )

    density: Annotated[Density, Real(0.01, 0.5, log=True)] = 0.1
    """Fraction of prunable weights kept in the end."""
    initial_density: Annotated[Density, OneOf(0.5, 1.0)] = 1.0
    """Fraction kept at first; at least the density."""
    start: Span = 0
    """When the ramp begins: steps, or a fraction of the run."""
    end: Annotated[Span, Real(0.3, 0.8)] = 0.5
    """When it ends."""
    every: Every = 0.02
    """Between two changes: steps, or a fraction of the run."""
    drop_fraction: Annotated[float, Gt(0), Le(1), Real(0.1, 0.6)] = 0.5
    """Fraction of each layer's weights that is swapped at first (p)."""
    final_drop_fraction: Annotated[float, Gt(0), Le(1)] = 0.005
    """That fraction at the last step."""
    grow: Annotated[Grow, OneOf("gradient", "momentum", "random")] = "gradient"
    """What dead weights grow by."""
    scope: PlainScope = "global"
    """Whether weights compete over all layers, from an ERK topology, or each layer has its share, also at first."""
    normalise: Normalise = "layer"

    @property
    def needs_momentum(self) -> bool:
        return self.grow == "momentum"

    @property
    def _first_shares(self) -> str | LayerShares:
        return "erk" if self.scope == "global" else self.scope

    def check(self, units: Units, clock: Clock) -> None:
        if self.initial_density < self.density:
            raise UserError(f"granet.initial_density {self.initial_density:g} is below the density {self.density:g}")
        units.check(self.density, self.scope)
        allocate(units.shapes, self.initial_density, self._first_shares)
        clock.check_end("granet.end", self.start, self.end)
        clock.check_interval("granet.every", self.every)

    def begin(self, net: Network, clock: Clock, probe: Probe) -> Change:
        if self.initial_density == 1:
            return Change()
        return Change(net.units.keep(chances(net, clock), self.initial_density, self._first_shares))

    def step(self, net: Network, clock: Clock) -> Change | None:
        ramp = clock.ramp(self.every, self.start, self.end)
        ramping = clock.steps(self.start) < clock.step < clock.steps(self.end)
        if ramp is None and (ramping or not clock.due(self.every)):
            return None
        kept = net.masks
        if ramp is not None:
            density = cubic(self.initial_density, self.density, ramp)
            kept = net.units.keep(net.units.pool(magnitude(net.weights)), density, self.scope, kept, self.normalise)
        fraction = cosine(self.drop_fraction, self.final_drop_fraction, clock.step / clock.total)
        swapped = net.units.regrow(kept, net.units.pool_magnitude(net.weights), growth(net, clock, self.grow), fraction)
        return Change(swapped, survivors=kept)
