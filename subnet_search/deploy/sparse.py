"""A network whose layers are sparse where that is faster, which is measured layer by layer."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subnet_search.core.errors import UserError
from subnet_search.core.timing import in_turn
from subnet_search.deploy.sparse_layers import Dense, Kind, Sparse, put, sparse_form

BLOCK = 16  # the size of BSR's blocks, where the unit gives none


@dataclass(frozen=True)
class Choice:
    """What was measured of one layer, milliseconds for one pass, and the form it has now."""

    layer: str
    density: float  # fraction of its weights that are not zero
    dense: float
    sparse: float
    kept: str  # "dense", or the kind of sparse


def sparsify(
    net: nn.Module, kind: Kind, example: Tensor, block: int = BLOCK, threads: int = 1, measure: bool = True
) -> tuple[nn.Module, tuple[Choice, ...]]:
    """A copy of a network whose linear and 1x1 layers are sparse where that is faster, and what was measured of each.

    What is zero is left out. Each layer is timed with what reaches it when `example` (batch, ...) passes through, so the
    batch of the example decides; without `measure` every layer becomes sparse.
    Raises UserError when there is no layer of that kind, or none is faster.
    """
    inputs = _reached(net, example)
    if kind == "2:4":
        patterned = {name: x for name, x in inputs.items() if _has_pattern(net.get_submodule(name))}
        inputs = {name: x for name, x in patterned.items() if _fits(net.get_submodule(name))}
        if not patterned:
            raise UserError("no linear layer of this network has two of every four weights: unit=2:4 finds such weights")
        if not inputs:
            raise UserError(
                "2:4 is for layers whose inputs and outputs are multiples of 64, and none of those with such weights is: "
                + ", ".join(patterned)
            )
        if not example.is_cuda:
            raise UserError("2:4 is for the sparse tensor cores of an NVIDIA GPU, and none is here; csr and bsr are for CPUs")
    if not inputs:
        raise UserError(f"{kind} is for linear layers and 1x1 convolutions, and this network has none with zeros in it")
    out, choices = copy.deepcopy(net), list[Choice]()
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for name, x in inputs.items():
            layer: Any = net.get_submodule(name)
            sparse = sparse_form(layer, kind, block)
            times = _times(layer, sparse, kind, x) if measure else (0.0, 0.0, True)
            density = float(layer.weight.count_nonzero() / layer.weight.numel())
            choices.append(Choice(name, density, times[0], times[1], kind if times[2] else "dense"))
            if times[2]:
                _replace(out, name, sparse)
    finally:
        torch.set_num_threads(threads_before)
    if all(choice.kept == "dense" for choice in choices):
        best = min(choices, key=lambda choice: choice.sparse / choice.dense)
        raise UserError(
            f"no layer is faster as {kind} at batch {len(example)}, beyond the spread of its times: the nearest, layer "
            f"{best.layer} of density {best.density:.2g}, takes {best.sparse:.3g} ms, and {best.dense:.3g} ms as it is"
        )
    return out, tuple(choices)


@torch.no_grad()
def _reached(net: nn.Module, example: Tensor) -> dict[str, Tensor]:
    """What reaches each layer that can be sparse and has zeros, by its first name."""
    inputs: dict[str, Tensor] = {}
    layers = {name: module for name, module in net.named_modules() if _can_be_sparse(module) and _has_zeros(module.weight)}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, args: inputs.update({name: args[0]})

    handles = [module.register_forward_pre_hook(keep(name)) for name, module in layers.items()]
    was_training = net.training
    try:
        net.eval()(example)
    finally:
        net.train(was_training)
        for handle in handles:
            handle.remove()
    return inputs


def _can_be_sparse(module: nn.Module) -> TypeGuard[Dense]:
    """Exactly the plain layers: a derived one may do more than multiply."""
    if type(module) is nn.Linear:
        return True
    return (
        type(module) is nn.Conv2d
        and module.kernel_size == (1, 1)
        and module.groups == 1
        and module.padding in ((0, 0), "valid")
    )


def _has_zeros(weight: Tensor) -> bool:
    return int(weight.count_nonzero()) < weight.numel()


def _has_pattern(layer: nn.Module) -> bool:
    """Whether a linear layer has at most two of every four weights."""
    if type(layer) is not nn.Linear:
        return False
    groups = F.pad(layer.weight.detach().ne(0), (0, -layer.in_features % 4)).reshape(-1, 4)
    return bool((groups.sum(1) <= 2).all())


def _fits(layer: Any) -> bool:
    """Whether a GPU can multiply with a linear layer of these sizes as 2:4."""
    return not (layer.out_features % 64 or layer.in_features % 64)


def _times(layer: Dense, sparse: nn.Module, kind: Kind, x: Tensor) -> tuple[float, float, bool]:
    """Milliseconds dense and sparse, and whether sparse is faster beyond their spread."""
    dense: Callable[[Tensor], Tensor] = layer
    if kind == "2:4":  # what it has to beat is the dense layer in its own precision
        weight, bias = layer.weight.detach().half(), None if layer.bias is None else layer.bias.detach().half()
        dense = lambda inputs: F.linear(inputs.half(), weight, bias).to(inputs.dtype)  # noqa: E731
    with torch.inference_mode():
        one, other = in_turn([partial(_pass, dense, x), partial(_pass, sparse, x)], seconds=1.0, passes=30)
    return one.median, other.median, other.high < one.low


def _pass(layer: Callable[[Tensor], Tensor], x: Tensor) -> None:
    layer(x)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def _replace(net: nn.Module, name: str, new: Sparse) -> None:
    """Put a layer in the place of another, under every name it has."""
    old = net.get_submodule(name)
    for place in [place for place, module in net.named_modules(remove_duplicate=False) if module is old]:
        put(net, place, new)
