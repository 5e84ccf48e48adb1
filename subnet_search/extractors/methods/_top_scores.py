"""What methods share that keep the weights of highest learned score in every layer of an untrained network."""

import math
from typing import Annotated

import torch
from torch import Tensor

from subnet_search.extractors import author as ss


class TopScores(ss.RelevanceLearner):
    """Learn a score s for every weight, and compute with the weights of highest |s| in every layer."""

    density: Annotated[ss.Density, ss.Real(0.05, 0.7)] = 0.5
    allocation: ss.PlainAllocation = "uniform"

    def initial(self, weight: Tensor, rng: torch.Generator) -> Tensor:
        bound = 1 / math.sqrt(weight[0].numel())
        return torch.empty_like(weight).uniform_(-bound, bound, generator=rng)

    def scores(self, net: ss.Network) -> ss.Tensors:
        """What weights are ranked by. The straight-through gradient is with respect to this."""
        return {name: s.abs() for name, s in net.relevance.items()}

    def sample(self, net: ss.Network, clock: ss.Clock) -> dict[str, Tensor]:
        scores = self.scores(net)
        gates = self.gates(net, net.units.keep(scores, self.density, self.allocation))
        return {name: ss.straight_through(score, gates[name]) for name, score in scores.items()}

    def finish(self, net: ss.Network) -> ss.Masks:
        scores = {name: score.detach() for name, score in self.scores(net).items()}
        return net.units.keep(scores, self.density, self.allocation)
