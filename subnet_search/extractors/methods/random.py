"""Random: the baseline no comparison may leave out.

A random topology, fixed before the first step; then the weights in it are trained. With ERK densities it is a strong
one: Liu et al. 2022, "The Unreasonable Effectiveness of Random Pruning", arXiv:2202.02643. `er` is Mocanu et al.
2018 (arXiv:1707.04780), `erk` Evci et al. 2020 (arXiv:1911.11134). Counts are exact, not Bernoulli draws. For the
random mask of an untrained network, train for no epochs.
"""

from typing import Annotated

from subnet_search.core.search_domains import Real
from subnet_search.extractors.base import (
    Allocation,
    Change,
    Clock,
    Density,
    Extractor,
    Network,
    Paper,
    Paradigm,
    Probe,
    Published,
    chances,
)
from subnet_search.extractors.registry import register
from subnet_search.topology.units import EVERY_KIND, Units


@register("random")
class Random(Extractor):
    """Keep weights at random, then train them."""

    paper = Paper(
        "Liu, Chen, Chen, Shen, Mocanu, Wang & Pechenizkiy",
        2022,
        "2202.02643",
        "The Unreasonable Effectiveness of Random Pruning",
        "mask_l uniform over all masks with exactly k_l ones; k by uniform, ER or ERK",
    )
    paradigm = Paradigm("random, before training", "trained", "fixed", True, EVERY_KIND)
    published = Published(
        "VITA-Group/Random_Pruning CIFAR/main.py (CIFAR)",
        {"lr": 0.1, "nesterov": True, "weight_decay": 5e-4, "schedule": "step", "milestones": (0.5, 0.75)},
        epochs=160,
    )

    density: Annotated[Density, Real(0.01, 0.5, log=True)] = 0.1
    """Fraction of prunable weights kept."""
    allocation: Allocation = "erk"
    """How the density is shared among layers."""

    def check(self, units: Units, clock: Clock) -> None:
        units.check(self.density, self.allocation)

    def begin(self, net: Network, clock: Clock, probe: Probe) -> Change:
        return Change(net.units.keep(chances(net, clock), self.density, self.allocation))
