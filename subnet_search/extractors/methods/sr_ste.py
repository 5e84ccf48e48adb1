"""SR-STE: n of every m weights, trained from scratch by a straight-through estimator that keeps the mask stable.

Equation 9. Here the gate of a dropped weight is 0 with the derivative 1 / w, so that w * gate has the derivative 1. A dropped
weight of exactly 0 has no gradient and stays 0. The relevance is |w| itself: only weights are learned.
"""

from typing import Annotated, Any

import torch
from torch import Tensor

from subnet_search.extractors import author as ss

SMALLEST = 1e-30  # |w| that 1 / w can be taken of


@ss.register("sr_ste")
class SRSTE(ss.RelevanceLearner):
    """Train all weights through the largest n of every m.

    Train all weights by the gradients of a network that computes with the largest n of every m.
    """

    paper = ss.Paper(
        "Zhou, Ma, Zhu, Liu, Zhang, Yuan, Sun & Li",
        2021,
        "2102.04010",
        "Learning N:M Fine-Grained Structured Sparse Neural Networks From Scratch",
        "w -= rate (g(m * w) + lambda (1 - m) w), m = top n of m by |w|",
    )
    paradigm = ss.Paradigm("by magnitude, in every step", "trained, straight through", "fixed", False, ("n:m",))
    published = ss.Published(
        "aojunzz/NM-sparsity classification/configs/config_resnet50_2by4.yaml (ImageNet, ResNet-50)",
        {"lr": 0.1, "batch_size": 256, "weight_decay": 5e-5, "schedule": "cosine"},
        epochs=120,
        note="Left out: 5 epochs of warm-up.",
    )
    learns = "both"

    density: Annotated[ss.Density | None, ss.Real(0.05, 0.5, log=True)] = None
    """Fraction of prunable weights kept, n / m at most. None: n of every m, as the unit says."""
    decay: Annotated[float, ss.Ge(0), ss.Real(1e-5, 1e-3, log=True)] = 2e-4
    """Decay of dropped weights towards zero (lambda)."""
    rescale: ss.LearnedRescaling = "none"  # numel/nnz and fan_in would add their own derivatives to those of the gates

    def check(self, units: ss.Units, clock: ss.Clock) -> None:
        if self.density is not None:  # without one, n of every m weights are kept
            super().check(units, clock)

    def initial(self, weight: Tensor, rng: torch.Generator) -> Tensor:
        return weight.new_zeros([1] * weight.dim())

    def sample(self, net: ss.Network, clock: ss.Clock) -> dict[str, Tensor]:
        return {name: straight_through(net.weights[name], mask, self.decay) for name, mask in self.finish(net).items()}

    def finish(self, net: ss.Network) -> ss.Masks:
        sizes = {name: weight.detach().abs() for name, weight in net.weights.items()}
        return net.units.relevant(sizes, self.density)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor, decay: float) -> Tensor:
        ctx.save_for_backward(weight, mask)
        ctx.decay = decay
        return mask.to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        weight, mask = ctx.saved_tensors
        # A gate receives the gradient of weight * gate, times the weight.
        through = gradients[0] / torch.where(weight.abs() < SMALLEST, torch.inf, weight)
        return (through + ctx.decay * weight).masked_fill(mask, 0), None, None


def straight_through(weight: Tensor, mask: Tensor, decay: float) -> Tensor:
    """The mask as a gate: a dropped weight gets the gradient of weight * gate, and `decay` times itself."""
    gate: Tensor = _StraightThrough.apply(weight, mask, decay)
    return gate
