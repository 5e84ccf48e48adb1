"""The units of a network: from what a configuration says, to what lives and dies as one in this network."""

from collections.abc import Mapping

import torch
from torch import nn

from subnet_search.deploy.coupling import couple
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
            return Channels(shapes, couple(net, example).groups, ROUND_TO if round_to is None else round_to, prices)
        case "n:m", (n, m):
            return NM(shapes, n, m, prices)
        case "block", (size,):
            return Blocks(shapes, size, prices)
    return Units(shapes, prices)
