"""Supermasks: Bernoulli masks over an untrained network.

Zhou, Lan, Liu & Yosinski 2019, "Deconstructing Lottery Tickets", arXiv:1905.01067, section 4.2. A scalar a for each
weight; every step draws z ~ Bernoulli(sigma(a)) and passes the gradient straight through to sigma(a). At their best
the weights are signed constants and each layer is multiplied by numel / nnz ("dynamic weight rescaling", the default
here). In the end a weight is kept when sigma(a) >= 1/2; the authors average ten sampled evaluations instead. A density
is our addition: the most relevant weights over all layers.

The factor numel / nnz is differentiated, as in both public implementations (uber-research/deconstructing-lottery-tickets,
N0ciple/ASLP): a weight that is dropped makes the others of its layer larger, and its relevance has to know.

Their weights are Glorot's (network.init: glorot_constant), for which numel / nnz gives rectifiers the variance that they
need; on kaiming's it gives twice that. Measured on digits, rate 50, batch 128, test %: LeNet-5, 400 steps, two seeds,
glorot_constant 97.2 and 96.7, kaiming_normal 88.0 and 85.2 (46.8 and 26.5 with the factor taken as a constant), and
kaiming_normal with rescale: learned 97.5 and 96.1; ResNet-20, 600 steps, kaiming_normal 43.5 (12.8).
"""

from typing import Annotated

import torch
from torch import Tensor

from subnet_search.core.search_domains import OneOf, Real
from subnet_search.extractors.base import Clock, Density, Network, Paper, Paradigm, PlainScope, Published, RelevanceLearner
from subnet_search.extractors.registry import register
from subnet_search.topology.masks import Masks
from subnet_search.topology.rescale import Rescale
from subnet_search.topology.samplers import bernoulli_gate
from subnet_search.topology.units import EVERY_KIND, Units


@register("supermask")
class Supermask(RelevanceLearner):
    """Learn a Bernoulli mask over an untrained network."""

    paper = Paper(
        "Zhou, Lan, Liu & Yosinski",
        2019,
        "1905.01067",
        "Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask",
        "z ~ Bernoulli(sigma(a)); straight-through to sigma(a); w * z * numel / nnz",
    )
    paradigm = Paradigm("learned on frozen weights", "initial, rescaled", "free, or ranked in the end", False, EVERY_KIND)
    published = Published(
        "uber-research/deconstructing-lottery-tickets README.md and train_supermask.py (MNIST, fully connected)",
        {"batch_size": 250, "lr": 100.0},
        epochs=2000,
        note="The settings of the convolutional networks were not verified.",
    )

    density: Annotated[Density | None, Real(0.05, 0.5, log=True)] = None
    """Fraction of prunable weights kept. None: those with P(keep) >= 1/2, as published."""
    scope: PlainScope = "global"
    """Whether weights compete over all layers, or each layer gets its share of the density."""
    rescale: Annotated[Rescale, OneOf("none", "learned", "dynamic", "fan_in")] = "dynamic"
    """Factor on each layer after weights are dropped: learned (a scalar), dynamic (numel/nnz), fan_in (per output)."""

    def check(self, units: Units, clock: Clock) -> None:
        units.check(self.density, self.scope)

    def initial(self, weight: Tensor, rng: torch.Generator) -> Tensor:
        return torch.zeros_like(weight)

    def sample(self, net: Network, clock: Clock) -> dict[str, Tensor]:
        return {name: bernoulli_gate(a, clock.uniform(name, a)) for name, a in net.relevance.items()}

    def finish(self, net: Network) -> Masks:
        return net.units.relevant(net.relevance, self.density, self.scope)
