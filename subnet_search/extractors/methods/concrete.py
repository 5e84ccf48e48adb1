"""CTS-KL: concrete ticket search, for a subnetwork whose outputs stay close to those of the dense network.

Each weight has a logit a; its gate is a relaxed Bernoulli variable z = sigma(a + L / tau), L logistic: it has low variance and
needs no surrogate gradient. Logits are trained on the reverse Kullback-Leibler divergence D(sparse || dense) of the untrained
network's outputs. The cost is the expected density, the mean of sigma(a). GradBalance: over all layers, the cost's gradient is
scaled to the norm of the loss's gradient while the expected density is above 1.1 times the density asked for, and left out
below that. At the end of the search the highest logits are kept, and their weights are trained.

Known to us from the abstract, summaries and the authors' code (github.com/tanayarora09/TLAB, search/concrete.py), which gives
tau = 2/3, the first logit log(d / (1 - d)), the factor 1.1, adam at 0.1, and a search of an eighth, half or all of the
training's length, from the first weights or those of an early epoch. Where we differ: their multiplier is a running mean (1 %
a step), ours is that of the step; they search with batch norm in evaluation mode, ours learns its statistics from both passes;
we search from the first weights only.
"""

import math
from typing import Annotated, Literal

import torch
from torch import Tensor

from subnet_search.extractors import author as ss

SLACK = 1.1  # the cost counts while the expected density is above this times the density asked for


@ss.register("concrete")
class Concrete(ss.RelevanceLearner):
    """Learn soft gates, then train what is kept.

    Learn soft gates that keep the dense network's outputs at a cost in density, then train the likeliest weights.
    """

    paper = ss.Paper(
        "Arora & Teuscher",
        2025,
        "2512.07142",
        "Winning the Lottery by Preserving Network Training Dynamics with Concrete Ticket Search",
        "z = sigma(a + L / tau); g = dKL(sparse || dense)/da + lambda c, c = sigma'(a), lambda = |dKL/da| / |c|",
    )
    paradigm = ss.Paradigm(
        "learned on frozen weights", "initial, then trained", "balanced, ranked in the end", True, ss.EVERY_KIND
    )
    published = ss.Published(
        "tanayarora09/TLAB training/hparams.py, data/hparams.py and experiments/cts.py (CIFAR-10)",
        {
            "lr": 0.1,
            "batch_size": 512,
            "relevance_optimizer": "adam",
            "relevance_lr": 0.1,
            "relevance_decay": 0.0,
            "weight_decay": 1e-3,
            "schedule": "step",
            "milestones": (0.5, 0.75),
        },
        epochs=160,
        note="The length is that of training the weights; before it the search takes an eighth, a half or all of that, with "
        "adam at a rate that is lowered at 88 % of the search (here it follows the schedule). Left out: gradients are clipped "
        "to norm 2. ImageNet: lr 0.4, weight decay 1e-4.",
    )

    density: ss.Density = 0.1
    loss: Annotated[Literal["kl", "task"], ss.OneOf("kl", "task")] = "kl"
    """What gates are learned on: kl (the divergence from the dense network's outputs) or task (the labels)."""
    temperature: Annotated[float, ss.Gt(0), ss.Real(0.3, 1)] = 0.667
    """Temperature of the gates (tau): the lower, the nearer they are to 0 and 1."""
    until: Annotated[ss.Span, ss.PhaseEnd(1), ss.Real(0.1, 0.6)] = 0.33
    """When the search ends and training begins: steps, or a fraction of the run."""

    def schedule_steps(self, clock: ss.Clock) -> int:
        return max(clock.point(self.until), clock.total - clock.point(self.until))

    def initial(self, weight: Tensor, rng: torch.Generator) -> Tensor:
        density = min(self.density, 0.999)
        return torch.full_like(weight, math.log(density / (1 - density)))

    def sample(self, net: ss.Network, clock: ss.Clock) -> dict[str, Tensor]:
        return {
            name: torch.sigmoid(a + torch.logit(clock.uniform(name, a)) / self.temperature) for name, a in net.relevance.items()
        }

    @property
    def follows_dense(self) -> bool:
        return self.loss == "kl"

    def step(self, net: ss.Network, clock: ss.Clock) -> ss.Change | None:
        if not net.relevance or clock.step != clock.point(self.until):
            return None
        return ss.Change(self.finish(net), learn="weights", rewind="schedule")

    def adjust(self, net: ss.Network, clock: ss.Clock) -> None:
        gradients = {name: a.grad for name, a in net.relevance.items() if a.grad is not None}
        if not gradients:
            return
        keep = {name: net.relevance[name].sigmoid() for name in gradients}
        cost = {name: p * (1 - p) for name, p in keep.items()}
        expected = torch.stack([p.sum() for p in keep.values()]).sum() / sum(p.numel() for p in keep.values())
        balance = _norm(gradients) / _norm(cost) * (expected > SLACK * self.density)
        for name, gradient in gradients.items():
            gradient.addcmul_(cost[name], balance)

    def finish(self, net: ss.Network) -> ss.Masks:
        return net.units.keep(net.relevance, self.density)


def _norm(tensors: dict[str, Tensor]) -> Tensor:
    """The Euclidean norm over all layers together."""
    return torch.stack([tensor.square().sum() for tensor in tensors.values()]).sum().sqrt().clamp(min=1e-12)
