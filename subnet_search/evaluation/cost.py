"""What a network costs: weights, and multiplications that would be left if zeros were skipped."""

from collections.abc import Mapping
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


@torch.no_grad()
def cost(net: nn.Module, masks: Mapping[str, Tensor], shape: tuple[int, ...]) -> Cost:
    """Count over one forward pass of an empty input of `shape`. Measured time is another matter: measure it."""
    owners = {name.rpartition(".")[0]: mask for name, mask in masks.items()}
    macs = dict.fromkeys(owners, 0)

    def count(name: str) -> Any:
        def hook(module: nn.Module, _: Any, out: Any) -> None:
            if isinstance(out, Tensor):
                mask = owners[name]
                outputs = mask.shape[0] if not getattr(module, "transposed", False) else mask.shape[1]
                macs[name] += out.numel() // outputs * mask.numel()

        return hook

    handles = [net.get_submodule(name).register_forward_hook(count(name)) for name in owners]
    was_training, parameter = net.training, next(net.parameters())
    try:
        net.eval()(torch.zeros(1, *shape, device=parameter.device))
    finally:
        net.train(was_training)
        for handle in handles:
            handle.remove()
    alive = {name: int(mask.count_nonzero()) / mask.numel() for name, mask in owners.items()}
    return Cost(
        weights=sum(mask.numel() for mask in masks.values()),
        kept=sum(int(mask.count_nonzero()) for mask in masks.values()),
        macs=sum(macs.values()),
        kept_macs=round(sum(macs[name] * alive[name] for name in macs)),
    )
