"""Remove channels from a network: the same layers, with smaller tensors."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from subnet_search.nets import detached_copy
from subnet_search.structure.attention_heads import use_fewer_heads, without_nested_tensors
from subnet_search.topology.channels import Group


def remove_channels(net: nn.Module, gone: Mapping[Group, Tensor]) -> nn.Module:
    """A copy of a network without some channels. gone: the channels to remove of each group, bool (channels,)."""
    state, stay = net.state_dict(), dict[tuple[str, int], Tensor]()
    for group, dead in gone.items():
        for channel_slice in group.slices:
            length = state[channel_slice.tensor].shape[channel_slice.dim]
            places = stay.setdefault((channel_slice.tensor, channel_slice.dim), torch.ones(length, dtype=torch.bool))
            places[channel_slice.index[dead].reshape(-1)] = False
    for (name, dim), places in stay.items():
        state[name] = state[name].index_select(dim, places.nonzero().view(-1).to(state[name].device))
    small = shrunk(net, {name: tuple(state[name].shape) for name, _ in stay})
    for group, dead in gone.items():
        for one in group.resized:
            module = small.get_submodule(one.module)
            setattr(module, one.attribute, one.each * int((~dead).sum()))
    small.load_state_dict(state)
    return small


def shrunk(net: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> nn.Module:
    """A copy of a network in which the named parameters and buffers have new shapes and uninitialised values."""
    small = detached_copy(net)
    for name, shape in shapes.items():
        owner, _, attribute = name.rpartition(".")
        module = small.get_submodule(owner)
        old = getattr(module, attribute)
        if isinstance(module, nn.MultiheadAttention) and old.shape != shape:
            use_fewer_heads(module)
        new = torch.empty(shape, dtype=old.dtype, device=old.device)
        setattr(module, attribute, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
        if attribute in ("weight", "running_mean"):
            _set_sizes(module, shape)
    for module in small.modules():
        if isinstance(module, nn.MultiheadAttention):
            module.num_heads = module.out_proj.in_features // module.head_dim
    without_nested_tensors(small)
    return small


def _set_sizes(module: nn.Module, shape: tuple[int, ...]) -> None:
    """Set a layer's size attributes from the shape of its weight or running mean."""
    layer: Any = module
    match module:
        case _ConvNd():
            transposed = isinstance(module, _ConvTransposeNd)
            inputs, outputs = (0, 1) if transposed else (1, 0)
            if layer.groups == layer.in_channels == layer.out_channels:
                layer.groups = shape[0]  # depthwise
            layer.in_channels = shape[inputs] * (1 if transposed else layer.groups)
            layer.out_channels = shape[outputs] * (layer.groups if transposed else 1)
        case nn.Linear():
            layer.out_features, layer.in_features = shape
        case _NormBase():
            layer.num_features = shape[0]
        case nn.GroupNorm():
            layer.num_groups, layer.num_channels = layer.num_groups * shape[0] // layer.num_channels, shape[0]
        case nn.Embedding():
            layer.embedding_dim = shape[1]
        case nn.PReLU():
            layer.num_parameters = shape[0]
