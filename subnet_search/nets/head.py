"""Replace the last layer of a trained network, for data with another number of classes."""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from subnet_search.core.errors import UserError, unknown
from subnet_search.core.rng import derive


def head_of(net: nn.Module, name: str | bool = True) -> str:
    """The name of the last linear layer or convolution in the order of the modules, or `name`. Raises UserError without."""
    layers = [path for path, module in net.named_modules() if isinstance(module, nn.Linear | _ConvNd) and path]
    if not layers:
        raise UserError(
            f"network.new_head: {type(net).__name__} has no linear layer or convolution that could be its last layer"
        )
    if isinstance(name, str) and name not in layers:
        raise unknown(f"layer of {type(net).__name__}", name, layers, "network.new_head")
    return name if isinstance(name, str) else layers[-1]


def replace_head(net: nn.Module, head: str, outputs: int | None, seed: int) -> None:
    """Put a layer of `outputs` outputs, with torch's initialisation drawn from the seed, in the place of the layer `head`.

    Raises UserError when the number of outputs is not known.
    """
    if outputs is None:
        raise UserError("network.new_head needs the number of outputs, which the task does not give")
    before: Any = net.get_submodule(head)
    owner, _, attribute = head.rpartition(".")
    like: Any = {"bias": before.bias is not None, "device": before.weight.device, "dtype": before.weight.dtype}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "new head"))
        if isinstance(before, _ConvNd):
            new: nn.Module = type(before)(
                before.in_channels,
                outputs,
                before.kernel_size,
                before.stride,
                before.padding,
                dilation=before.dilation,
                **like,
            )
        else:
            new = nn.Linear(before.in_features, outputs, **like)
    setattr(net.get_submodule(owner), attribute, new)
