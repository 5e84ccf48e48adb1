"""Rescaling factors that restore the scale of a layer's outputs after weights are dropped."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from subnet_search.topology.chunks import chunks

Rescale = Literal["none", "learned", "dynamic", "fan_in"]


def dynamic(topology: Tensor) -> Tensor:
    """numel / nnz of the layer, a scalar, differentiable in the topology.

    Zhou et al. 2019, arXiv:1905.01067, "dynamic weight rescaling". Both public implementations differentiate it. Treated as
    a constant, it would bias the gradient of every relevance of a layer by the same amount, since dropping one weight
    scales up all others.
    """
    return topology.numel() / topology.sum().clamp(min=1)


def fan_in(topology: Tensor) -> Tensor:
    """sqrt(fan-in / kept fan-in) of each output unit: (out, 1, ...). Preserves the variance set by the initialisation.

    The fan-in correction of He et al. 2015 (arXiv:1502.01852) for the kept connections. An output unit without
    connections gets the factor of a unit with one. Differentiable in the topology.
    """
    kept = topology.flatten(1).sum(1).clamp(min=1)  # (out,)
    fan = topology[0].numel()
    return (fan / kept).sqrt().view(-1, *[1] * (topology.dim() - 1))


class _MaskedWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, topology: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, topology, scale)
        if scale.dim():
            return torch.mul(weight, topology).mul_(scale)
        effective = torch.empty_like(weight)
        for w, z, out in chunks(weight, topology, effective):
            torch.mul(w, z, out=out).mul_(scale)
        return effective

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor]:
        weight, topology, scale = ctx.saved_tensors
        if scale.dim():
            to_topology = torch.mul(grads[0], weight)
            to_scale = (to_topology * topology).sum_to_size(scale.shape)
            return None, to_topology.mul_(scale), to_scale
        to_topology, to_scale = torch.empty_like(weight), torch.zeros_like(scale)
        for g, w, z, out in chunks(grads[0], weight, topology, to_topology):
            torch.mul(g, w, out=out)
            to_scale += (out * z).sum()
            out.mul_(scale)
        return None, to_topology, to_scale


def masked_weight(weight: Tensor, topology: Tensor, scale: Tensor | None) -> Tensor:
    """The effective weight s * w * z, differentiable in z and s; w is a constant.

    weight, topology: (out, in, ...). scale: a scalar, (out, 1, ...), (1, out) of a weight (in, out), or None for 1.
    """
    if scale is None:
        return weight * topology
    return _MaskedWeight.apply(weight, topology, scale)  # type: ignore[no-any-return]
