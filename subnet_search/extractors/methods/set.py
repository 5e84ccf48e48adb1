"""SET: sparse evolutionary training.

Mocanu et al. 2018, "Scalable Training of Artificial Neural Networks with Adaptive Sparse Connectivity Inspired by Network
Science", arXiv:1707.04780. From a random Erdos-Renyi topology, every so often each layer drops a fraction zeta of its
weights, the smallest, and grows as many dead ones at random. All that grow begin at zero with fresh momentum, also those
that were dropped in the same change, as in the authors' code. We rank by |w| over both signs; the authors drop the smallest
positive and the largest negative ones separately, which differs only for skewed layers. Their topology is a Bernoulli draw,
ours has exact counts. They change it once an epoch, with zeta constant, and begin all optimizer state anew there.
"""

from typing import Annotated

from annotated_types import Gt, Le

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
from subnet_search.topology.units import EVERY_KIND, Units


@register("set")
class SET(Extractor):
    """Drop the smallest weights and grow others at random, while the network trains."""

    paper = Paper(
        "Mocanu, Mocanu, Stone, Nguyen, Gibescu & Liotta",
        2018,
        "1707.04780",
        "Scalable Training of Artificial Neural Networks with Adaptive Sparse Connectivity Inspired by Network Science",
        "each layer: drop the lowest zeta of |w|, grow as many at random",
    )
    paradigm = Paradigm("drop and grow, during training", "trained", "fixed", False, EVERY_KIND)
    published = Published(
        "dcmocanu/sparse-evolutionary-artificial-neural-networks SET-MLP-Keras-Weights-Mask/set_mlp_keras_cifar10.py "
        "(CIFAR-10, MLP)",
        {"batch_size": 100, "lr": 0.01},
        epochs=1000,
        note="The authors make a new optimizer at every change, so momentum begins at 0 there.",
    )

    density: Annotated[Density, Real(0.01, 0.5, log=True)] = 0.1
    """Fraction of prunable weights kept."""
    allocation: Allocation = "er"
    """How the density is shared among layers."""
    every: Every = 0.02
    """Between two changes: steps, or a fraction of the run."""
    until: Annotated[Span, Real(0.5, 1.0)] = 1.0
    """When changes stop."""
    drop_fraction: Annotated[float, Gt(0), Le(1), Real(0.05, 0.6)] = 0.3
    """Fraction of each layer's weights that is moved at a change (zeta)."""

    def check(self, units: Units, clock: Clock) -> None:
        units.check(self.density, self.allocation)
        clock.check_end("set.until", 0, self.until)
        clock.check_interval("set.every", self.every)

    def begin(self, net: Network, clock: Clock, probe: Probe) -> Change:
        return Change(net.units.keep(chances(net, clock), self.density, self.allocation))

    def step(self, net: Network, clock: Clock) -> Change | None:
        if not clock.due(self.every, self.until):
            return None
        kept = drop(net.masks, net.units.pool_magnitude(net.weights), self.drop_fraction)
        return Change(net.units.grow(kept, growth(net, clock, "random"), net.masks), survivors=kept)
