"""What a network costs: weights, and multiplications that would be left if zeros were skipped."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Cost:
    """Counts for one input. Multiply-accumulates (MACs) of convolutions and linear layers; biases are not counted."""

    weights: int  # prunable weights, dead and alive
    kept: int  # prunable weights alive
    macs: int  # multiply-accumulates of the dense network
    kept_macs: int  # those with a weight that is alive: what hardware that skips zeros would do


def cost(net: nn.Module, masks: Mapping[str, Tensor], shape: tuple[int, ...]) -> Cost:
    """Count over one forward pass of an empty input of `shape`. Measured time is another matter: measure it."""
    macs = layer_macs(net, {name: tuple(mask.shape) for name, mask in masks.items()}, shape)
    alive = {name: int(mask.count_nonzero()) for name, mask in masks.items()}
    return Cost(
        weights=sum(mask.numel() for mask in masks.values()),
        kept=sum(alive.values()),
        macs=sum(macs.values()),
        kept_macs=round(sum(macs[name] * (alive[name] / mask.numel()) for name, mask in masks.items())),
    )


@torch.no_grad()
def layer_macs(net: nn.Module, weights: Mapping[str, Sequence[int]], shape: tuple[int, ...]) -> dict[str, int]:
    """Multiply-accumulates of each weight for one input of `shape`, zeros included. weights: their shapes, by name."""
    owners = {name.rpartition(".")[0]: name for name in weights}
    macs = dict.fromkeys(weights, 0)

    def count(name: str) -> Any:
        def hook(module: nn.Module, _: Any, out: Any) -> None:
            if isinstance(module, nn.MultiheadAttention):  # computes with its weights itself; keys as many as queries
                owner, tokens = name.rpartition(".")[0], out[0].numel() // module.embed_dim
                for own in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"):
                    if f"{owner}.{own}" in macs:
                        macs[f"{owner}.{own}"] = tokens * math.prod(weights[f"{owner}.{own}"])
            elif isinstance(out, Tensor):
                dims = weights[name]
                outputs = dims[1] if getattr(module, "transposed", False) else dims[0]
                macs[name] += out.numel() // outputs * math.prod(dims)

        return hook

    handles = [net.get_submodule(owner).register_forward_hook(count(name)) for owner, name in owners.items()]
    was_training, parameter = net.training, next(net.parameters())
    try:
        net.eval()(torch.zeros(1, *shape, device=parameter.device))
    finally:
        net.train(was_training)
        for handle in handles:
            handle.remove()
    return macs
