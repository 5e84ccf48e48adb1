"""IteRand: edge-popup that gives pruned weights another chance.

Chijiwa, Yamaguchi, Ida, Umakoshi & Inoue 2021, "Pruning Randomly Initialized Neural Networks with Iterative
Randomization", arXiv:2106.09269. Every `every` steps, each weight outside the top `density` of its layer is
re-drawn with probability `redraw`; kept weights stay as they are. Scores are compared with their sign and begin as
kaiming_uniform, U(-b, b) with b = sqrt(6 / fan_in), both as in the authors' code (edge-popup proper compares |s|). The
paper's interval is 300 of 35000 steps on CIFAR-10; its ImageNet runs keep 30 % of signed constant weights (network.init).

Where we differ: the paper draws from the initial distribution, which is not known for a network that was handed in, so
re-drawn weights swap values at random among themselves. A layer keeps exactly the values it began with, whatever the
initialisation, and its spread cannot drift.
"""

import math
from collections.abc import Mapping
from typing import Annotated

import torch
from annotated_types import Gt, Le
from torch import Tensor

from subnet_search.core.search_domains import Real
from subnet_search.extractors.base import (
    Change,
    Clock,
    Density,
    Every,
    Network,
    Paper,
    Paradigm,
    PlainAllocation,
    Published,
    RelevanceLearner,
)
from subnet_search.extractors.registry import register
from subnet_search.topology.masks import Masks
from subnet_search.topology.samplers import straight_through
from subnet_search.topology.units import Units


@register("iterand")
class IteRand(RelevanceLearner):
    """Keep the highest scores of every layer of an untrained network, and re-draw pruned weights now and then."""

    paper = Paper(
        "Chijiwa, Yamaguchi, Ida, Umakoshi & Inoue",
        2021,
        "2106.09269",
        "Pruning Randomly Initialized Neural Networks with Iterative Randomization",
        "z = 1[s in the top k of its layer]; every K steps w <- z w + (1 - z) (b w' + (1 - b) w), b ~ Bernoulli(r)",
    )
    paradigm = Paradigm("learned on frozen weights", "initial, pruned ones re-drawn", "fixed", False)
    published = Published(
        "dchiji-ntt/iterand config.yaml, figure2_conv6_sc_iterand (CIFAR-10, Conv6)",
        {"lr": 0.3, "weight_decay": 1e-4, "schedule": "cosine"},
        epochs=100,
        note="ResNet-18 and ResNet-34 on CIFAR-10: lr 0.1, weight decay 5e-4. ImageNet: lr 0.1, weight decay 1e-4, 5 epochs of "
        "warm-up, 105 epochs.",
    )

    keeps_count = True
    changes_weights = True

    density: Annotated[Density, Real(0.05, 0.7)] = 0.5
    """Fraction of prunable weights kept."""
    allocation: PlainAllocation = "uniform"
    """How the density is shared among layers."""
    every: Every = 0.01
    """Between two re-drawings: steps, or a fraction of the run."""
    redraw: Annotated[float, Gt(0), Le(1), Real(0.01, 1, log=True)] = 0.1
    """Probability that a pruned weight is re-drawn."""

    def check(self, units: Units, clock: Clock) -> None:
        units.check(self.density, self.allocation)
        clock.check_interval("iterand.every", self.every)

    def initial(self, weight: Tensor, rng: torch.Generator) -> Tensor:
        bound = math.sqrt(6 / weight[0].numel())
        return torch.empty_like(weight).uniform_(-bound, bound, generator=rng)

    def sample(self, net: Network, clock: Clock) -> dict[str, Tensor]:
        masks = self._select(net, net.relevance)
        return {name: straight_through(s, masks[name]) for name, s in net.relevance.items()}

    def step(self, net: Network, clock: Clock) -> Change | None:
        if not clock.due(self.every):
            return None
        kept = self._select(net, net.relevance)
        return Change(weights={name: self._redrawn(name, w, kept[name], clock) for name, w in net.weights.items()})

    def finish(self, net: Network) -> Masks:
        return self._select(net, net.relevance)

    def _redrawn(self, name: str, weight: Tensor, kept: Tensor, clock: Clock) -> Tensor:
        rng = clock.generator("redraw", name, device=weight.device)
        drawn = torch.rand(weight.shape, generator=rng, device=weight.device) < self.redraw
        values = weight.detach()[drawn & ~kept]
        order = torch.randperm(len(values), generator=rng, device=weight.device)
        return weight.detach().masked_scatter(drawn & ~kept, values[order])

    def _select(self, net: Network, scores: Mapping[str, Tensor]) -> Masks:
        return net.units.keep(scores, self.density, self.allocation)
