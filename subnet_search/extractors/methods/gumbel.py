"""ASLP: a Gumbel-softmax distribution over the topologies of an untrained network.

m is the log-probability of keeping a weight up to a shift ("arbitrarily shifted log parametrisation"); L is the difference of
two Gumbel variables. The network computes with s * w * z, where w never changes and s is the rescaling. At the end a weight
is kept when m >= 0.

Where we differ from the authors' code: validation uses the final topology and clean images, theirs samples and augmented
images; a learned rescaling costs no second pass; one logistic draw takes the place of two Gumbel draws and a softmax, which is
the same distribution. A density can be asked for: `rank` keeps the most relevant weights at the end, `penalty` also pulls the
expected density towards it during training (budget loss of Dupont et al. 2021, arXiv:2107.03909). Without a density, as
published, weights on dead paths keep m = 0 and count as kept.
"""

from typing import Annotated, Literal

import torch
from torch import Tensor

from subnet_search.extractors import author as ss


@ss.register("gumbel")
class Gumbel(ss.RelevanceLearner):
    """Learn keep probabilities with Gumbel-softmax samples.

    Learn a keep probability for every weight of an untrained network, with Gumbel-softmax samples.
    """

    paper = ss.Paper(
        "Dupont, Alaoui, Sahbi & Lebois",
        2022,
        "2202.12986",
        "Extracting Effective Subnetworks with Gumbel-Softmax",
        "z = 1[m + L > 0], L ~ Logistic(0, 1); P(keep) = sigma(m); dz/dm = sigma'((m + L) / tau) / tau",
    )
    paradigm = ss.Paradigm(
        "learned on frozen weights", "initial, rescaled", "free, ranked in the end, or a budget", False, ss.EVERY_KIND
    )
    published = ss.Published(
        "N0ciple/ASLP main.py (CIFAR-10, Conv2 to Conv6)",
        {"batch_size": 256, "lr": 50.0},
        epochs=1000,
        note="At most 1000 epochs: the authors stop after 100 without a better validation accuracy (patience).",
    )

    draws_topologies = True

    density: Annotated[ss.Density | None, ss.Real(0.05, 0.5, log=True)] = None
    """Fraction of prunable weights kept. None: those with P(keep) >= 1/2, as published; near one half."""
    scope: ss.PlainScope = "global"
    reach: Annotated[Literal["rank", "penalty"], ss.OneOf("rank", "penalty")] = "rank"
    """How a density is reached: by ranking in the end, or by a penalty during training as well."""
    strength: Annotated[ss.Strength, ss.Real(0.01, 1, log=True)] = 0.1
    """Weight of the budget penalty in the loss."""
    temperature: Annotated[float, ss.Gt(0), ss.Real(0.3, 3, log=True)] = 1.0
    """tau of the gradient, at the first step."""
    final_temperature: Annotated[float | None, ss.Gt(0)] = None
    """tau at the last step, reached geometrically. None: it stays fixed, as published."""
    rescale: ss.Rescaling = "learned"

    def initial(self, weight: Tensor, rng: torch.Generator) -> Tensor:
        return torch.zeros_like(weight)

    def sample(self, net: ss.Network, clock: ss.Clock) -> dict[str, Tensor]:
        tau = ss.geometric(self.temperature, self.final_temperature or self.temperature, clock.progress)
        return {name: ss.logistic_gate(m, clock.uniform(name, m), tau) for name, m in net.relevance.items()}

    def penalty(self, net: ss.Network, clock: ss.Clock) -> Tensor | None:
        if self.density is None or self.reach == "rank":
            return None
        return self.strength * ss.budget_penalty(net.relevance, self.density, self.scope)

    def finish(self, net: ss.Network) -> ss.Masks:
        return net.units.relevant(net.relevance, self.density, self.scope)
