"""Supermasks: Bernoulli masks over an untrained network.

Zhou, Lan, Liu & Yosinski 2019, "Deconstructing Lottery Tickets", arXiv:1905.01067, section 4.2. A scalar a for each
weight; every step draws z ~ Bernoulli(sigma(a)) and passes the gradient straight through to sigma(a). At their best
the weights are signed constants and each layer is multiplied by numel / nnz ("dynamic weight rescaling", the default
here). In the end a weight is kept when sigma(a) >= 1/2; the authors average ten sampled evaluations instead. A density
is our addition: the most relevant weights over all layers.

Trap: their weights are Glorot's (network.init: glorot_constant). At one half kept, numel / nnz turns Glorot's variance
of about 1 / fan_in into the 2 / fan_in that rectifiers need; on kaiming's it gives 4 / fan_in, a signal that doubles
in power with every layer, and the method fails on deeper networks: use another rescale there.
"""

from typing import Annotated

import torch
from torch import Tensor

from subnet_search.domains import OneOf, Real
from subnet_search.extractors.base import (
    Clock,
    Density,
    Network,
    Paper,
    Paradigm,
    PlainScope,
    Published,
    RelevanceLearner,
    register,
)
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
