"""MEST: memory-economic sparse training with elastic mutation.

Yuan et al. 2021, "MEST: Accurate and Fast Memory-Economic Sparse Training Framework on the Edge", arXiv:2110.14032,
section 3.1. Each layer drops its lowest |w| + lambda |gradient| and grows as many at random; the fraction that is moved
falls over the run (elastic mutation). The gradient of a living weight says which small weights are still growing. Growing
needs no dense gradient, so the method fits where memory is short; our loop has one anyway. All that grow begin at zero,
also those that were dropped in the same change.

Where we differ from the authors' code (boone891214/MEST): the fraction falls along a straight line, theirs in three levels
(20, 10 and 0 % of the living weights, with a change every 5 of 160 epochs); their scripts run with lambda 0, the paper with
its sum; momentum of a weight that grows is fresh, theirs is what an earlier life left; the soft memory bound, which holds
more weights for a while, is left out.
"""

from typing import Annotated

from annotated_types import Ge, Gt, Le

from subnet_search.core.search_domains import Real
from subnet_search.extractors.base import (
    Allocation,
    Change,
    Clock,
    Density,
    Every,
    Extractor,
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
from subnet_search.topology.regrow import drop
from subnet_search.topology.schedules import linear
from subnet_search.topology.scores import magnitude_and_gradient
from subnet_search.topology.units import EVERY_KIND, Units


@register("mest")
class MEST(Extractor):
    """Drop weights that are small and have small gradients, grow others at random, ever fewer of them."""

    paper = Paper(
        "Yuan, Ma, Niu, Li, Kong, Liu, Gong, Zhan, He, Jin, Wang, Qin, Ren, Wang, Liu & Lin",
        2021,
        "2110.14032",
        "MEST: Accurate and Fast Memory-Economic Sparse Training Framework on the Edge",
        "each layer: drop the lowest |w| + lambda |dL/dw|, grow as many at random",
    )
    paradigm = Paradigm("drop and grow, during training", "trained", "fixed", True, EVERY_KIND)
    published = Published(
        "boone891214/MEST scripts/resnet32/EM/run_mag_prune_irr_sp_EM.sh and main_sparse_train.py (CIFAR-10, ResNet-32)",
        {"lr": 0.1, "batch_size": 64, "weight_decay": 1e-4, "schedule": "cosine"},
        epochs=160,
    )

    density: Annotated[Density, Real(0.01, 0.5, log=True)] = 0.1
    """Fraction of prunable weights kept."""
    allocation: Allocation = "uniform"
    """How the density is shared among layers."""
    every: Every = 0.02
    """Between two changes: steps, or a fraction of the run."""
    until: Annotated[Span, Real(0.5, 1.0)] = 0.75
    """When changes stop."""
    drop_fraction: Annotated[float, Gt(0), Le(1), Real(0.05, 0.6)] = 0.3
    """Fraction of each layer's weights that is moved at first; it falls to 0 along a straight line."""
    gradient_weight: Annotated[float, Ge(0), Real(0.001, 1, log=True)] = 0.01
    """What gradients count beside magnitudes (lambda)."""

    def check(self, units: Units, clock: Clock) -> None:
        units.check(self.density, self.allocation)
        clock.check_end("mest.until", 0, self.until)
        clock.check_interval("mest.every", self.every)

    def begin(self, net: Network, clock: Clock, probe: Probe) -> Change:
        return Change(net.units.keep(chances(net, clock), self.density, self.allocation))

    def step(self, net: Network, clock: Clock) -> Change | None:
        if not clock.due(self.every, self.until):
            return None
        fraction = linear(self.drop_fraction, 0.0, clock.step / clock.steps(self.until))
        keep = net.units.pool(magnitude_and_gradient(net.weights, net.gradients, self.gradient_weight))
        kept = drop(net.masks, keep, fraction)
        return Change(net.units.grow(kept, growth(net, clock, "random"), net.masks), survivors=kept)
