"""The units of a network: from the unit in a configuration to `Units` for this network's tensors."""

import math
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from subnet_search.core.errors import UserError
from subnet_search.core.nested import moved
from subnet_search.evaluation import layer_macs
from subnet_search.nets import inputs_first, left_whole, prunable
from subnet_search.nets.weights import EMBEDDING, matching
from subnet_search.structure.channel_flow import ALONE, OUTPUTS
from subnet_search.structure.channel_groups import couple
from subnet_search.topology.channels import Channels, Group
from subnet_search.topology.select import Shapes
from subnet_search.topology.units import NM, Blocks, Measure, Units, parse

NOT_PRUNED = "layers that are not pruned read or compute them"
ROUND_TO = 16  # channels; CPUs and GPUs compute in blocks of this size


def units_of(
    unit: str,
    net: nn.Module,
    shape: tuple[int, ...],
    *,
    measure: Measure = "units",
    round_to: int | None = None,
    example: Any = None,
    every: bool = False,
    dense_layers: Sequence[str] = (),
) -> Units:
    """The units of a network with inputs of `shape`. measure: what densities are fractions of (units, parameters, FLOPs).

    example: inputs, as `nets.call` passes them, to trace the network with; default: random ones, or zeros.
    every: as for `nets.outputs_in`. dense_layers: as for `nets.prunable`; with channels, also what they read is kept.
    Raises UserError for an unknown unit, and for one that this network does not have.
    """
    weights = prunable(net, dense_layers)
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    prices, whole = _prices(net, shapes, shape, measure, example)
    match parse(unit):
        case "channel", _:
            step = ROUND_TO if round_to is None else round_to
            kept_whole = matching(net, dense_layers)
            groups, reasons = _groups(net, shapes, shape, example, every, kept_whole)
            return Channels(shapes, groups, step, prices, whole, reasons)
        case "n:m", (n, m):
            return NM(shapes, n, m, prices, whole, inputs_first(net))
        case "block", (size,):
            return Blocks(shapes, size, prices, whole)
    return Units(shapes, prices, whole)


def _prices(
    net: nn.Module, shapes: Shapes, shape: tuple[int, ...], measure: Measure, example: Any
) -> tuple[dict[str, float] | None, float]:
    """The cost of a weight of each layer, and of all parameters not pruned; (None, 0) when units are counted."""
    if measure == "units":
        return None, 0.0
    parameters = dict(net.named_parameters())
    whole = {name: tuple(parameters[name].shape) for name in left_whole(net, shapes)}
    if measure == "parameters":
        return dict.fromkeys(shapes, 1.0), float(sum(map(math.prod, whole.values())))
    macs = layer_macs(net, {**shapes, **whole}, shape, example)
    if not any(macs.values()):
        raise UserError("the operations of this network cannot be counted, so a target in FLOPs is not possible")
    return {name: macs[name] / math.prod(dims) for name, dims in shapes.items()}, float(sum(macs[name] for name in whole))


def _groups(
    net: nn.Module, shapes: Shapes, shape: tuple[int, ...], example: Any, every: bool, dense: Container[str]
) -> tuple[list[Group], dict[str, str]]:
    """The groups of channels that can be removed and that only prunable weights read; and why other channels are not.

    The reasons are by the first weight that computes the channels, without those of the network's outputs. Channels of
    `dense`, and those that only an embedding computes, are in no group.
    """
    whole = {name for name, why in left_whole(net, shapes).items() if why == EMBEDDING}
    parameters = dict(net.named_parameters())
    coupling = couple(net, _inputs_to_trace(net, shape, example), every)
    groups = [
        group
        for group in coupling.groups
        if all(one.tensor not in dense and (one.tensor in shapes or not one.reads) for one in group.slices)
        and any(one.tensor in parameters and one.tensor not in whole for one in group.slices if not one.reads)
    ]
    if not groups:
        why = f"; {NOT_PRUNED}" if coupling.groups else coupling.why
        raise UserError(f"this network has no channels that can be removed{why}")
    found = {group.name for group in groups}
    unread = {group.name: NOT_PRUNED for group in coupling.groups if group.name not in found}
    return groups, {name: why for name, why in (coupling.kept_whole | unread).items() if why not in (OUTPUTS, ALONE)}


@torch.no_grad()
def _inputs_to_trace(net: nn.Module, shape: tuple[int, ...], example: Any) -> Any:
    """Random inputs and the example; only the example when the network does not accept random numbers."""
    device, was_training = next(net.parameters()).device, net.training
    if example is not None and not isinstance(example, Tensor):
        return moved(example, device)
    like = shape if example is None else example.shape[1:]  # a task may pass less than the data has
    random = torch.randn(2, *like, generator=torch.Generator().manual_seed(0)).to(device)
    if example is None:
        return random
    both = torch.cat([random, example.to(random)])
    try:
        net.eval()(both)
    except Exception:  # anything that a user's forward pass raises, as an embedding for random numbers
        return example.to(device)
    finally:
        net.train(was_training)
    return both


def norms(net: nn.Module, units: Units) -> dict[str, Tensor]:
    """The scales (gamma) of the batch norms of each group of channels: (norms, channels), by group."""
    found = {}
    for group in units.groups if isinstance(units, Channels) else ():
        scales = []
        for channel_slice in group.slices:
            owner, _, attribute = channel_slice.tensor.rpartition(".")
            module = net.get_submodule(owner)
            if isinstance(module, _BatchNorm) and attribute == "weight":
                scales.append(module.weight[channel_slice.index.to(module.weight.device)].mean(1))
        if scales:
            found[group.name] = torch.stack(scales)
    return found


@contextmanager
def watched(net: nn.Module, units: Units, features: dict[str, Tensor]) -> Iterator[None]:
    """Record the activations of each group of channels in `features` during a forward pass: (images, channels, numbers).

    They are the inputs of the first layer that reads the group, so after norms and activation functions.
    """
    handles = []
    for group in units.groups if isinstance(units, Channels) else ():
        channel_slice = next(channel_slice for channel_slice in group.slices if channel_slice.reads)
        hook = partial(_record_inputs, group.name, channel_slice.index, features)
        handles.append(net.get_submodule(channel_slice.tensor.rpartition(".")[0]).register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _record_inputs(name: str, index: Tensor, features: dict[str, Tensor], module: nn.Module, args: tuple[Any, ...]) -> None:
    """Forward pre-hook. Inputs are (images, channels, ...) of a convolution, otherwise (images, ..., channels)."""
    inputs = args[0].detach()
    channels = inputs if isinstance(module, _ConvNd) else inputs.movedim(-1, 1)
    if isinstance(module, _ConvNd) and module.groups > 1 and not module.transposed:  # the index is within a group
        size = channels.shape[1] // module.groups
        index = torch.cat([index + group * size for group in range(module.groups)], 1)
    features[name] = channels.flatten(1 if channels.dim() == 2 else 2)[:, index.to(inputs.device)].flatten(2)
