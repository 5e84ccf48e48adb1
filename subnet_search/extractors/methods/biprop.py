"""Biprop: the top scores of every layer of an untrained network, with weights of one magnitude.

Diffenderfer & Kailkhura 2021, "Multi-Prize Lottery Ticket Hypothesis: Finding Accurate Binary Neural Networks by Pruning
A Randomly Weighted Network", arXiv:2103.09377. Edge-popup, but the network computes with alpha * sign(w) on
the top `density` of |s| of each layer, alpha = ||z * w||_1 / ||z||_1: a subnetwork of binary weights. As in the authors'
code, the backward pass knows nothing of alpha: ds = dL/d(effective weight) * w * sign(s).

A gate is alpha / |w| here, and settled in the weights in the end, so the file holds one magnitude a layer (to the last
bit or two: w * alpha / |w| is rounded). Their configurations train small nets with sgd, those with binary activations
with adam; activations stay real here. Our counts add up to the exact total.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from torch import Tensor

from subnet_search.core.search_domains import OneOf, Real
from subnet_search.extractors.base import Clock, Density, Network, Paper, Paradigm, PlainAllocation, Published, RelevanceLearner
from subnet_search.extractors.registry import register
from subnet_search.topology.masks import Masks
from subnet_search.topology.samplers import straight_through
from subnet_search.topology.units import Units


@register("biprop")
class Biprop(RelevanceLearner):
    """Keep the highest scores of every layer of an untrained network, at one magnitude, and learn the scores."""

    paper = Paper(
        "Diffenderfer & Kailkhura",
        2021,
        "2103.09377",
        "Multi-Prize Lottery Ticket Hypothesis",
        "w_hat = alpha z sign(w), alpha = ||z w||_1 / ||z||_1, z = 1[|s| in the top k of its layer]; dL/ds = w dL/dw_hat",
    )
    paradigm = Paradigm("learned on frozen weights", "initial signs, one magnitude a layer", "fixed", False)
    published = Published(
        "chrundle/biprop configs/smallscale/conv6/conv6_usc_unsigned.yml (CIFAR-10, Conv6)",
        {"lr": 0.1, "weight_decay": 1e-4, "schedule": "cosine"},
        epochs=100,
        note="ResNet-18: weight decay 5e-4, batch 256.",
    )

    changes_weights = True

    density: Annotated[Density, Real(0.05, 0.7)] = 0.5
    """Fraction of prunable weights kept."""
    allocation: PlainAllocation = "uniform"
    """How the density is shared among layers."""
    # Counting factors would take gates for counts.
    rescale: Annotated[Literal["none", "learned"], OneOf("none", "learned")] = "none"
    """Factor on each layer beside its magnitude alpha: none, or learned (a scalar)."""

    def check(self, units: Units, clock: Clock) -> None:
        units.check(self.density, self.allocation)

    def initial(self, weight: Tensor, rng: torch.Generator) -> Tensor:
        bound = 1 / math.sqrt(weight[0].numel())
        return torch.empty_like(weight).uniform_(-bound, bound, generator=rng)

    def sample(self, net: Network, clock: Clock) -> dict[str, Tensor]:
        scores = {name: s.abs() for name, s in net.relevance.items()}
        gates = self.gates(net, self._select(net, scores))
        return {name: straight_through(score, gates[name]) for name, score in scores.items()}

    def finish(self, net: Network) -> Masks:
        return self._select(net, {name: s.detach().abs() for name, s in net.relevance.items()})

    def gates(self, net: Network, masks: Masks) -> dict[str, Tensor]:
        return {name: _binarising(net.weights[name].detach(), mask) for name, mask in masks.items()}

    def _select(self, net: Network, scores: Mapping[str, Tensor]) -> Masks:
        return net.units.keep(scores, self.density, self.allocation)


def _binarising(weight: Tensor, mask: Tensor) -> Tensor:
    """The gates that give every kept weight the mean magnitude of those kept; 0 where there is no sign to keep."""
    size = weight.abs()
    alpha = (size * mask).sum() / mask.sum()
    return torch.where(mask & (size > 0), alpha / size, 0.0)
