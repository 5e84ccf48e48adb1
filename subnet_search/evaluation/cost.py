"""What a network costs: weights, and multiplications that would be left if zeros were skipped."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from subnet_search.nets import gated_layers, prunable
from subnet_search.nets.dynamic import Gate


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
        net.eval()(torch.zeros(2, *shape, device=parameter.device))  # two: a dynamic layer leaves out filters for one
    finally:
        net.train(was_training)
        for handle in handles:
            handle.remove()
    return {name: count // 2 for name, count in macs.items()}


@contextmanager
def on_average(net: nn.Module, shape: tuple[int, ...]) -> Iterator[Callable[[], int]]:
    """Count what the inputs of a dynamic network choose, as they pass; gives a function that returns the mean MACs of one.

    Those of the filters that win, on channels that are not zero, and those of the gates; layers without one in full.
    """
    chosen: dict[str, list[Tensor]] = {}

    def count(name: str) -> Any:
        def hook(gate: Gate, inputs: tuple[Tensor], saliency: Tensor) -> None:
            live, won = inputs[0].ne(0), gate.choose(saliency).ne(0)
            chosen.setdefault(name, []).append(live.float().mean(1) * won.float().mean(1))

        return hook

    def mean() -> int:
        shares = {f"{name}.layer.weight": float(torch.cat(rows).double().mean()) for name, rows in chosen.items()}
        gates = sum(gated.gate.phi.numel() for gated in layers.values())
        macs = layer_macs(net, {name: tuple(weight.shape) for name, weight in prunable(net).items()}, shape)
        return gates + round(sum(shares.get(name, 1.0) * count for name, count in macs.items()))

    layers = gated_layers(net)
    handles = [gated.gate.register_forward_hook(count(name)) for name, gated in layers.items()]
    try:
        yield mean
    finally:
        for handle in handles:
            handle.remove()
