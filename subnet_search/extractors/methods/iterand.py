"""IteRand: edge-popup that gives pruned weights new values.

Scores are compared with their sign and begin as kaiming_uniform, U(-b, b) with b = sqrt(6 / fan_in), both as in the authors'
code (edge-popup compares |s|). The paper's interval is 300 of 35000 steps on CIFAR-10; its ImageNet runs keep 30 % of signed
constant weights (network.init).

Where we differ: the paper draws from the initial distribution, which is unknown for a network that was passed in. Here the
re-drawn weights of a layer are permuted among themselves, so that a layer keeps the values that it began with.
"""

import math
from typing import Annotated

import torch
from torch import Tensor

from subnet_search.extractors import author as ss
from subnet_search.extractors.methods._top_scores import TopScores


@ss.register("iterand")
class IteRand(TopScores):
    """Learn scores, re-draw pruned weights at intervals.

    Keep the highest scores of every layer of an untrained network, and re-draw pruned weights at intervals.
    """

    paper = ss.Paper(
        "Chijiwa, Yamaguchi, Ida, Umakoshi & Inoue",
        2021,
        "2106.09269",
        "Pruning Randomly Initialized Neural Networks with Iterative Randomization",
        "z = 1[s in the top k of its layer]; every K steps w <- z w + (1 - z) (b w' + (1 - b) w), b ~ Bernoulli(r)",
    )
    paradigm = ss.Paradigm("learned on frozen weights", "initial, pruned ones re-drawn", "fixed", False)
    published = ss.Published(
        "dchiji-ntt/iterand config.yaml, figure2_conv6_sc_iterand (CIFAR-10, Conv6)",
        {"lr": 0.3, "weight_decay": 1e-4, "schedule": "cosine"},
        epochs=100,
        note="ResNet-18 and ResNet-34 on CIFAR-10: lr 0.1, weight decay 5e-4. ImageNet: lr 0.1, weight decay 1e-4, 5 epochs of "
        "warm-up, 105 epochs.",
    )

    keeps_count = True
    changes_weights = True

    every: ss.Every = 0.01
    """Interval between two re-drawings: steps, or a fraction of the run."""
    redraw: Annotated[float, ss.Gt(0), ss.Le(1), ss.Real(0.01, 1, log=True)] = 0.1
    """Probability that a pruned weight is re-drawn."""

    def initial(self, weight: Tensor, rng: torch.Generator) -> Tensor:
        bound = math.sqrt(6 / weight[0].numel())
        return torch.empty_like(weight).uniform_(-bound, bound, generator=rng)

    def scores(self, net: ss.Network) -> ss.Tensors:
        return net.relevance

    def step(self, net: ss.Network, clock: ss.Clock) -> ss.Change | None:
        if not clock.due(self.every):
            return None
        kept = self.finish(net)
        return ss.Change(weights={name: self._redrawn(name, w, kept[name], clock) for name, w in net.weights.items()})

    def _redrawn(self, name: str, weight: Tensor, kept: Tensor, clock: ss.Clock) -> Tensor:
        rng = clock.generator("redraw", name, device=weight.device)
        drawn = torch.rand(weight.shape, generator=rng, device=weight.device) < self.redraw
        values = weight.detach()[drawn & ~kept]
        order = torch.randperm(len(values), generator=rng, device=weight.device)
        return weight.detach().masked_scatter(drawn & ~kept, values[order])
