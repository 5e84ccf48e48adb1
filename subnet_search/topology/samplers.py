"""Samplers from relevance to gates: 0 or 1 in the forward pass, a surrogate gradient in the backward pass."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from subnet_search.topology.chunks import chunks


def uniform_noise(like: Tensor, seed: int) -> Tensor:
    """Uniform random numbers in the open interval (0, 1), of the shape, type and device of `like`.

    On the CPU two float32 numbers are made from each 64-bit word of SFC64, whose stream numpy guarantees. That takes a
    third of the time of `torch.rand`, at a finer resolution (2^-32 instead of 2^-24).
    """
    if like.device.type != "cpu" or like.dtype != torch.float32:
        rng = torch.Generator(like.device).manual_seed(seed)
        drawn = torch.rand(like.shape, generator=rng, dtype=like.dtype, device=like.device)
        return drawn.clamp_(min=2.0**-25)
    stream, numbers = np.random.SFC64(seed), torch.empty(like.numel())
    shrink = 2.0**-32 * (1 - 2.0**-23)  # so that neither end rounds to 0 or 1
    for (out,) in chunks(numbers):
        words = stream.random_raw((out.numel() + 1) // 2).view(np.int32)
        out.copy_(torch.from_numpy(words[: out.numel()])).mul_(shrink).add_(0.5)
    return numbers.view(like.shape)


class _LogisticGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, relevance: Tensor, uniform: Tensor, temperature: float) -> Tensor:
        soft, hard = torch.empty_like(relevance), torch.empty_like(relevance)
        for m, u, p, z in chunks(relevance, uniform, soft, hard):
            if temperature == 1:
                # sigma(m + logit u) = u / (u + exp(-m) (1 - u)): one exponential and no logarithm.
                torch.neg(m, out=p).exp_()
                torch.div(u, torch.addcmul(u, p, 1 - u, out=p), out=p)
            else:
                torch.logit(u, out=p).add_(m).div_(temperature).sigmoid_()
            torch.gt(p, 0.5, out=z)
        ctx.save_for_backward(soft)
        ctx.temperature = temperature
        return hard

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (soft,) = ctx.saved_tensors
        slope = torch.empty_like(soft)
        for p, g, out in chunks(soft, grads[0], slope):
            torch.addcmul(p, p, p, value=-1, out=out).mul_(g)  # p (1 - p)
            if ctx.temperature != 1:
                out.div_(ctx.temperature)
        return slope, None, None


def logistic_gate(relevance: Tensor, uniform: Tensor, temperature: float = 1.0) -> Tensor:
    """A hard binary Gumbel-softmax sample with logits (m, 0), drawn as one logistic variable.

    The difference of two Gumbel variables is logistic, so with u ~ U(0, 1):
    forward z = 1[m + logit(u) > 0], which is 1 with probability sigma(m);
    backward dz/dm = sigma'((m + logit u) / temperature) / temperature (straight-through).
    Source: Dupont et al. 2022, arXiv:2202.12986; Jang et al. 2017, arXiv:1611.01144.

    relevance, uniform: any one shape, float, the latter in the open interval (0, 1). Returns 0 and 1 in the dtype of relevance.
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
    """z ~ Bernoulli(sigma(a)), with the straight-through gradient dz/da = sigma'(a).

    Source: Zhou et al. 2019, arXiv:1905.01067, section 4. relevance: a; uniform: of the same shape, in (0, 1), as for
    `logistic_gate`, whose gradient, unlike this one, depends on the draw.
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
    """Forward: the mask, in the dtype of relevance. Backward: the identity (Bengio et al. 2013, arXiv:1308.3432)."""
    return _StraightThrough.apply(relevance, mask)  # type: ignore[no-any-return]
