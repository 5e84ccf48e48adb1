"""The units of a network: from what a configuration says, to what lives and dies as one in this network."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from subnet_search.deploy.coupling import couple
from subnet_search.errors import UserError
from subnet_search.evaluation import layer_macs
from subnet_search.nets import prunable
from subnet_search.topology.channels import Channels
from subnet_search.topology.units import NM, Blocks, Measure, Units, parse

ROUND_TO = 16  # channels: what CPUs and GPUs compute with at a time


def units_of(
    unit: str, net: nn.Module, shape: tuple[int, ...], *, measure: Measure = "units", round_to: int | None = None
) -> Units:
    """The units of a network with inputs of `shape`; with `measure`, densities are fractions of parameters or of FLOPs.

    Raises UserError for a unit that is none, or that this network does not have.
    """
    weights = prunable(net)
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    prices: Mapping[str, float] | None = None
    if measure == "parameters":
        prices = dict.fromkeys(shapes, 1.0)
    elif measure == "flops":
        macs = layer_macs(net, shapes, shape)
        prices = {name: macs[name] / weight.numel() for name, weight in weights.items()}
    match parse(unit):
        case "channel", _:
            example = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(next(net.parameters()).device)
            coupling = couple(net, example)
            if not coupling.groups:
                raise UserError(f"this network has no channels that can be removed{coupling.why}")
            return Channels(shapes, coupling.groups, ROUND_TO if round_to is None else round_to, prices)
        case "n:m", (n, m):
            return NM(shapes, n, m, prices)
        case "block", (size,):
            return Blocks(shapes, size, prices)
    return Units(shapes, prices)


def norms(net: nn.Module, units: Units) -> dict[str, Tensor]:
    """The scales of the batch norms behind each group of channels: (norms, channels), by group."""
    found = {}
    for group in units.groups if isinstance(units, Channels) else ():
        scales = []
        for piece in group.slices:
            owner, _, attribute = piece.tensor.rpartition(".")
            module = net.get_submodule(owner)
            if isinstance(module, _BatchNorm) and attribute == "weight":
                scales.append(module.weight[piece.index.to(module.weight.device)].mean(1))
        if scales:
            found[group.name] = torch.stack(scales)
    return found


@contextmanager
def watched(net: nn.Module, units: Units, features: dict[str, Tensor]) -> Iterator[None]:
    """Put into `features` what is read of each group of channels, (images, channels, numbers), in one forward pass.

    Of several layers that read a group, the first in its slices is watched: after norms and activations, as it reads.
    """
    handles = []
    for group in units.groups if isinstance(units, Channels) else ():
        piece = next(piece for piece in group.slices if piece.reads)
        hook = partial(_note, group.name, piece.index, features)
        handles.append(net.get_submodule(piece.tensor.rpartition(".")[0]).register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _note(name: str, index: Tensor, features: dict[str, Tensor], module: nn.Module, args: tuple[Any, ...]) -> None:
    """A layer's inputs (images, channels, ...), or (images, ..., channels) of a linear one."""
    inputs = args[0].detach()
    channels = inputs.movedim(-1, 1) if isinstance(module, nn.Linear) else inputs
    if isinstance(module, _ConvNd) and module.groups > 1 and not module.transposed:  # each counts places anew
        size = channels.shape[1] // module.groups
        index = torch.cat([index + group * size for group in range(module.groups)], 1)
    features[name] = channels.flatten(1 if channels.dim() == 2 else 2)[:, index.to(inputs.device)].flatten(2)
