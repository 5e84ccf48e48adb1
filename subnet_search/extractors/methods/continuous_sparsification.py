"""Continuous sparsification: soft gates that become hard while weights and gates are trained together.

The network computes with w * sigma(beta s) / sigma(s_0), where s begins at s_0 = `s_init`, so every gate begins at 1 (the
division is in the authors' code). In each of `rounds` rounds beta rises from 1 to `final_beta` exponentially, which moves gates
to 0 or 1 / sigma(s_0); the factor is folded into the weights at the end. Between rounds s <- min(beta s, s_0): a weight that
was kept may still be dropped, one that was dropped hardly returns. At the end the weights with s >= 0 are kept, return to their
values near the start (a ticket) or stay (pruning), and are trained. No gate is sampled.

The penalty is lambda * sum of the gates sigma(beta s) / sigma(s_0), as in the authors' code, so their lambda of 1e-8 has the
same effect; it mostly decides about weights without a gradient. s_init sets the sparsity (their 0.1 keeps more, -0.1 far
less). beta moves at every step, theirs at every epoch. Each round, and the training after them, goes through the learning
rate's whole schedule (theirs: 85 epochs, divided by 10 after 56 and 71).

Where we differ: a density can be asked for, and keeps the highest s over all layers. A weight whose s is exactly 0 at the end
is kept here and dropped in the authors' code (lolemacs/continuous-sparsification); with s_init 0 these are weights that no
gradient and no penalty ever moved. Note: with s_init below 0 no weight counts as kept until its s has risen, so early
validations see an empty network.
"""

import math
from typing import Annotated, Literal

import torch
from torch import Tensor

from subnet_search.extractors import author as ss


@ss.register("continuous_sparsification")
class ContinuousSparsification(ss.RelevanceLearner):
    """Train weights and gates that harden.

    Train weights and soft gates together while the gates harden, then train the weights that are left.
    """

    paper = ss.Paper(
        "Savarese, Silva & Maire",
        2020,
        "1912.04427",
        "Winning the Lottery with Continuous Sparsification",
        "w_hat = w sigma(beta s) / sigma(s_0); beta: 1 -> beta_T; L + lambda sum of gates; s <- min(beta s, s_0)",
    )
    paradigm = ss.Paradigm("learned together with the weights, in rounds", "rewound, then trained", "free, or ranked", True)
    published = ss.Published(
        "lolemacs/continuous-sparsification main.py (CIFAR-10, ResNet)",
        {
            "lr": 0.1,
            "relevance_decay": 0.0,
            "nesterov": True,
            "weight_decay": 1e-4,
            "schedule": "step",
            "milestones": (0.66, 0.84),
        },
        epochs=340,
        note="Three rounds of 85 epochs and a last training of 85; the rate is divided by 10 at epochs 56 and 71 of each.",
    )
    learns = "both"

    density: Annotated[ss.Density | None, ss.Real(0.05, 0.5, log=True)] = None
    """Fraction of prunable weights kept. None: those with s >= 0, as published."""
    scope: ss.PlainScope = "global"
    s_init: Annotated[float, ss.Real(-0.02, 0.2)] = 0.0
    """What s begins at, and its highest value after a round: the lower, the sparser."""
    final_beta: Annotated[float, ss.Ge(1), ss.Real(50, 500, log=True)] = 200.0
    """beta at the end of each round."""
    strength: Annotated[ss.Strength, ss.Real(1e-9, 1e-4, log=True)] = 1e-8
    """Weight of the penalty in the loss (lambda), for each weight of the network."""
    rounds: Annotated[ss.Rounds, ss.Int(1, 5)] = 2
    """Number of times that beta rises."""
    until: Annotated[ss.Span, ss.PhaseEnd("_rewind_point"), ss.Real(0.3, 0.8)] = 0.67
    """When the last round ends and training begins: steps, or a fraction of the run."""
    rewind: Annotated[Literal["weights", "none"], ss.OneOf("weights", "none")] = "weights"
    """Whether the weights go back to an early step before they are trained."""
    rewind_to: Annotated[ss.Span, ss.Real(0, 0.1)] = 0.01
    """The point that the weights go back to: steps, or a fraction of the run."""
    rescale: ss.LearnedRescaling = "none"

    def check(self, units: ss.Units, clock: ss.Clock) -> None:
        super().check(units, clock)
        clock.check_rounds(self.name, self.rounds, self.until)

    @property
    def _rewind_point(self) -> ss.Span:
        return self.rewind_to if self.rewind == "weights" else 0

    def rewinds_to(self, clock: ss.Clock) -> int | None:
        return min(clock.steps(self.rewind_to), self._ends(clock)[-1] - 1) if self.rewind == "weights" else None

    def schedule_steps(self, clock: ss.Clock) -> int:
        ends = self._ends(clock)
        return max(ends[0], clock.total - ends[-1])

    def initial(self, weight: Tensor, rng: torch.Generator) -> Tensor:
        return torch.full_like(weight, self.s_init)

    def sample(self, net: ss.Network, clock: ss.Clock) -> dict[str, Tensor]:
        beta, scale = self._beta(clock), self._scale()
        return {name: torch.sigmoid(beta * s) * scale for name, s in net.relevance.items()}

    def penalty(self, net: ss.Network, clock: ss.Clock) -> Tensor | None:
        if not net.relevance:
            return None
        return self.strength * torch.stack([gate.sum() for gate in self.sample(net, clock).values()]).sum()

    def step(self, net: ss.Network, clock: ss.Clock) -> ss.Change | None:
        ends = self._ends(clock)
        if not net.relevance or clock.step not in ends:
            return None
        if clock.step == ends[-1]:
            back = self.rewinds_to(clock)
            rewind: ss.Rewind = "schedule" if back is None else "both"
            return ss.Change(self.finish(net), rewind=rewind, schedule_to=back or 0, learn="weights")
        kept = {name: (self.final_beta * s).clamp(max=self.s_init) for name, s in net.relevance.items()}
        return ss.Change(relevance=kept, rewind="schedule")

    def finish(self, net: ss.Network) -> ss.Masks:
        return net.units.relevant(net.relevance, self.density, self.scope)

    def gates(self, net: ss.Network, masks: ss.Masks) -> dict[str, Tensor]:
        return {name: mask.to(net.weights[name].dtype) * self._scale() for name, mask in masks.items()}

    def _ends(self, clock: ss.Clock) -> list[int]:
        """The steps at which the rounds end."""
        search = clock.point(self.until)
        return [search * index // self.rounds for index in range(1, self.rounds + 1)]

    def _beta(self, clock: ss.Clock) -> float:
        ends = self._ends(clock)
        index = next(index for index, end in enumerate(ends) if clock.step < end)
        start = ends[index - 1] if index else 0
        return ss.geometric(1.0, self.final_beta, (clock.step - start) / max(1, ends[index] - 1 - start))

    def _scale(self) -> float:
        return 1 + math.exp(-self.s_init)
