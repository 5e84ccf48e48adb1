"""Make layers sparse where that is faster, measured for each layer."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subnet_search.core.errors import UserError
from subnet_search.core.nested import length_of, tensors_in
from subnet_search.core.timing import in_turn
from subnet_search.deploy.sparse_layers import Dense, Kind, Sparse, replace_layer, sparse_form
from subnet_search.nets import call, without_fused_attention

BLOCK = 16  # block size of BSR for units other than blocks


@dataclass(frozen=True)
class Choice:
    """Measured milliseconds for one pass of a layer, and the form that was chosen."""

    layer: str
    density: float  # fraction of its weights that are not zero
    dense: float
    sparse: float
    kept: str  # the chosen form: "dense", or the sparse kind


def sparsify(
    net: nn.Module,
    kind: Kind,
    example: Any,
    block: int = BLOCK,
    threads: int = 1,
    measure: bool = True,
    on_stage: Callable[[str], None] | None = None,
) -> tuple[nn.Module, tuple[Choice, ...]]:
    """A copy of a network with sparse linear and 1x1 layers where that is faster, and the measurements of each layer.

    example: inputs, as `nets.call` passes them; each layer is timed with the activations it gets from them, so the choice
    depends on the batch size. measure=False makes every layer sparse. on_stage: called with what is timed now.
    Raises UserError when there is no such layer, or none is faster.
    """
    inputs = _layer_inputs(net, example)
    if kind == "2:4":
        if not any(type(net.get_submodule(name)) is nn.Linear for name in inputs):
            raise UserError("2:4 needs linear layers with zero weights, and this network has none")
        patterned = {name: x for name, x in inputs.items() if _has_pattern(net.get_submodule(name))}
        inputs = {name: x for name, x in patterned.items() if _fits(net.get_submodule(name))}
        if not patterned:
            raise UserError("no linear layer of this network has 2:4 sparsity: find such a subnetwork with unit=2:4")
        if not inputs:
            raise UserError(
                "2:4 needs layers whose inputs and outputs are multiples of 64; these have 2:4 sparsity, but not these sizes: "
                + ", ".join(patterned)
            )
        if not next(tensor for _, tensor in tensors_in(example)).is_cuda:
            raise UserError("2:4 needs an NVIDIA GPU with sparse tensor cores; for CPUs use csr or bsr")
    if not inputs:
        raise UserError(f"{kind} needs linear layers or 1x1 convolutions with zero weights, and this network has none")
    out, choices = copy.deepcopy(net), list[Choice]()
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for number, (name, x) in enumerate(inputs.items(), 1):
            if measure and on_stage:
                on_stage(f"timing {name} dense and as {kind}, layer {number} of {len(inputs)}")
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
            f"no layer is significantly faster as {kind} at batch {length_of(example)}: the best, {best.layer} of density "
            f"{best.density:.2g}, takes {best.sparse:.3g} ms, dense {best.dense:.3g} ms"
        )
    return out, tuple(choices)


@torch.no_grad()
def _layer_inputs(net: nn.Module, example: Any) -> dict[str, Tensor]:
    """The inputs of each layer that can be sparse and has zeros, by its first name."""
    inputs: dict[str, Tensor] = {}
    layers = {name: module for name, module in net.named_modules() if _can_be_sparse(module) and _has_zeros(module.weight)}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, args, named: inputs.update({name: args[0] if args else named["input"]})

    handles = [module.register_forward_pre_hook(keep(name), with_kwargs=True) for name, module in layers.items()]
    was_training = net.training
    try:
        with without_fused_attention():
            call(net.eval(), example)
    finally:
        net.train(was_training)
        for handle in handles:
            handle.remove()
    return inputs


def _can_be_sparse(module: nn.Module) -> TypeGuard[Dense]:
    """Linear layers and plain 1x1 convolutions; subclasses are excluded, since they may compute something else."""
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
    """Whether a linear layer has at most two nonzeros in every four weights."""
    if type(layer) is not nn.Linear:
        return False
    groups = F.pad(layer.weight.detach().ne(0), (0, -layer.in_features % 4)).reshape(-1, 4)
    return bool((groups.sum(1) <= 2).all())


def _fits(layer: Any) -> bool:
    """Whether the sizes of a linear layer are supported by 2:4 kernels."""
    return not (layer.out_features % 64 or layer.in_features % 64)


def _times(layer: Dense, sparse: nn.Module, kind: Kind, x: Tensor) -> tuple[float, float, bool]:
    """Milliseconds dense and sparse, and whether sparse is faster with quartile ranges that do not overlap."""
    dense: Callable[[Tensor], Tensor] = layer
    if kind == "2:4":  # compare with the dense layer in half precision
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
    """Replace a layer by another, under all of its names."""
    old = net.get_submodule(name)
    for place in [place for place, module in net.named_modules(remove_duplicate=False) if module is old]:
        replace_layer(net, place, new)
