"""Samplers: relevance in, differentiable topology out. Forward passes are exactly 0 or 1, gradients are surrogates."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _LogisticGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, relevance: Tensor, uniform: Tensor, temperature: float) -> Tensor:
        if temperature == 1:
            # sigma(m + logit u) = u / (u + exp(-m) (1 - u)): one exponential and no logarithm.
            below = torch.exp(-relevance).mul_(1 - uniform).add_(uniform)
            soft = torch.div(uniform, below.clamp_(min=1e-37), out=below)  # u may be 0, and exp(-m) too
        else:
            soft = torch.logit(uniform).add_(relevance).div_(temperature).sigmoid_()
        ctx.save_for_backward(soft)
        ctx.temperature = temperature
        return (soft > 0.5).to(relevance.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (soft,) = ctx.saved_tensors
        slope = torch.addcmul(soft, soft, soft, value=-1).mul_(grads[0])  # p (1 - p)
        return slope if ctx.temperature == 1 else slope.div_(ctx.temperature), None, None


def logistic_gate(relevance: Tensor, uniform: Tensor, temperature: float = 1.0) -> Tensor:
    """A hard two-way Gumbel-softmax sample with logits (m, 0), as one logistic draw.

    The difference of two Gumbel variables is logistic, so with u ~ U(0, 1):
    forward z = 1[m + logit(u) > 0], which is 1 with probability sigma(m);
    backward dz/dm = sigma'((m + logit u) / temperature) / temperature (straight-through).
    Source: Dupont et al. 2022, arXiv:2202.12986; Jang et al. 2017, arXiv:1611.01144.

    relevance, uniform: any one shape, float. Returns 0 and 1 in the dtype of relevance.
    """
    return _LogisticGate.apply(relevance, uniform, temperature)  # type: ignore[no-any-return]


class _BernoulliGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, relevance: Tensor, uniform: Tensor) -> Tensor:
        keep = torch.sigmoid(relevance)
        ctx.save_for_backward(keep)
        return (uniform < keep).to(relevance.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return torch.addcmul(keep, keep, keep, value=-1).mul_(grads[0]), None


def bernoulli_gate(relevance: Tensor, uniform: Tensor) -> Tensor:
    """z ~ Bernoulli(sigma(a)); the gradient passes straight through to sigma(a).

    Source: Zhou et al. 2019, arXiv:1905.01067, section 4. Shapes as `logistic_gate`; unlike there, the slope does not
    depend on the draw.
    """
    return _BernoulliGate.apply(relevance, uniform)  # type: ignore[no-any-return]


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, relevance: Tensor, mask: Tensor) -> Tensor:
        return mask.to(relevance.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def straight_through(relevance: Tensor, mask: Tensor) -> Tensor:
    """The mask itself forward, the identity to relevance backward (Bengio et al. 2013, arXiv:1308.3432)."""
    return _StraightThrough.apply(relevance, mask)  # type: ignore[no-any-return]
