"""Supermasks: Bernoulli masks over an untrained network.

Section 4.2. The paper's best weights are signed constants, with each layer multiplied by numel / nnz ("dynamic weight
rescaling", the default here). This factor is differentiated, as in both public implementations
(uber-research/deconstructing-lottery-tickets, N0ciple/ASLP). At the end a weight is kept when sigma(a) >= 1/2.

Where we differ: the authors average ten sampled evaluations. A density can be asked for, and keeps the most relevant weights
over all layers.

Their weights are Glorot's (network.init: glorot_constant), for which numel / nnz gives rectifiers the right variance; on
Kaiming's it gives twice that. Measured on digits, rate 50, batch 128, test %: LeNet-5, 400 steps, two seeds, glorot_constant
97.2 and 96.7, kaiming_normal 88.0 and 85.2 (46.8 and 26.5 with the factor taken as a constant), kaiming_normal with
rescale: learned 97.5 and 96.1; ResNet-20, 600 steps, kaiming_normal 43.5 (12.8).
"""

from typing import Annotated

import torch
from torch import Tensor

from subnet_search.extractors import author as ss


@ss.register("supermask")
class Supermask(ss.RelevanceLearner):
    """Learn a Bernoulli mask over an untrained network."""

    paper = ss.Paper(
        "Zhou, Lan, Liu & Yosinski",
        2019,
        "1905.01067",
        "Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask",
        "z ~ Bernoulli(sigma(a)); straight-through to sigma(a); w * z * numel / nnz",
    )
    paradigm = ss.Paradigm("learned on frozen weights", "initial, rescaled", "free, or ranked in the end", False, ss.EVERY_KIND)
    published = ss.Published(
        "uber-research/deconstructing-lottery-tickets README.md and train_supermask.py (MNIST, fully connected)",
        {"batch_size": 250, "lr": 100.0},
        epochs=2000,
        note="The settings of the convolutional networks were not verified.",
    )

    draws_topologies = True

    density: Annotated[ss.Density | None, ss.Real(0.05, 0.5, log=True)] = None
    """Fraction of prunable weights kept. None: those with P(keep) >= 1/2, as published."""
    scope: ss.PlainScope = "global"
    rescale: ss.Rescaling = "dynamic"

    def initial(self, weight: Tensor, rng: torch.Generator) -> Tensor:
        return torch.zeros_like(weight)

    def sample(self, net: ss.Network, clock: ss.Clock) -> dict[str, Tensor]:
        return {name: ss.bernoulli_gate(a, clock.uniform(name, a)) for name, a in net.relevance.items()}

    def finish(self, net: ss.Network) -> ss.Masks:
        return net.units.relevant(net.relevance, self.density, self.scope)
