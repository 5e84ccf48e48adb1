"""Edge-popup: the top scores of every layer of an untrained network.

Ramanujan, Wortsman, Kembhavi, Farhadi & Rastegari 2020, "What's Hidden in a Randomly Weighted Neural Network?",
arXiv:1911.13299, section 3. A score s for each weight; each layer computes with the weights of its top `density` of
|s|, and the gradient passes straight through the selection: ds = dL/d(w z) * w (equation 4). Scores begin as
kaiming_uniform(a = sqrt 5), so U(-b, b) with b = 1 / sqrt(fan_in). Signed constant weights are the paper's best
(network.init: signed_constant); `scaled` is its scaled Kaiming normal.

The authors' `prune_rate` is the fraction *kept*; here it is called density. They drop int((1 - density) * n) weights of each
layer, which rounds what is kept up; our counts add up to the exact total.
"""

import math
from collections.abc import Mapping
from typing import Annotated

import torch
from torch import Tensor

from subnet_search.core.search_domains import Real
from subnet_search.extractors.base import Clock, Density, Network, Paper, Paradigm, PlainAllocation, Published, RelevanceLearner
from subnet_search.extractors.registry import register
from subnet_search.topology.masks import Masks
from subnet_search.topology.samplers import straight_through
from subnet_search.topology.units import EVERY_KIND, Units


@register("edge_popup")
class EdgePopup(RelevanceLearner):
    """Keep the highest scores of every layer of an untrained network, and learn the scores."""

    paper = Paper(
        "Ramanujan, Wortsman, Kembhavi, Farhadi & Rastegari",
        2020,
        "1911.13299",
        "What's Hidden in a Randomly Weighted Neural Network?",
        "z = 1[|s| in the top k of its layer]; dL/ds = dL/dz",
    )
    paradigm = Paradigm("learned on frozen weights", "initial", "fixed", False, EVERY_KIND)
    published = Published(
        "allenai/hidden-networks configs/smallscale/conv6/conv6_usc_unsigned.yml (CIFAR-10, Conv6)",
        {"lr": 0.1, "weight_decay": 1e-4, "schedule": "cosine"},
        epochs=100,
        note="ResNet-18 on CIFAR-10: weight decay 5e-4, batch 256. ImageNet: lr 0.256, momentum 0.875, weight decay 3.05e-5, "
        "batch 256, label smoothing 0.1, 5 epochs of warm-up.",
    )

    keeps_count = True

    density: Annotated[Density, Real(0.05, 0.7)] = 0.5
    """Fraction of prunable weights kept."""
    allocation: PlainAllocation = "uniform"
    """How the density is shared among layers."""

    def check(self, units: Units, clock: Clock) -> None:
        units.check(self.density, self.allocation)

    def initial(self, weight: Tensor, rng: torch.Generator) -> Tensor:
        bound = 1 / math.sqrt(weight[0].numel())
        return torch.empty_like(weight).uniform_(-bound, bound, generator=rng)

    def sample(self, net: Network, clock: Clock) -> dict[str, Tensor]:
        # The straight-through gradient is with respect to |s|, so its sign is that of s.
        scores = {name: s.abs() for name, s in net.relevance.items()}
        masks = self._select(net, scores)
        return {name: straight_through(score, masks[name]) for name, score in scores.items()}

    def finish(self, net: Network) -> Masks:
        return self._select(net, {name: s.detach().abs() for name, s in net.relevance.items()})

    def _select(self, net: Network, scores: Mapping[str, Tensor]) -> Masks:
        return net.units.keep(scores, self.density, self.allocation)
