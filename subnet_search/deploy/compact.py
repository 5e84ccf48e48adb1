"""Really smaller: channels that nothing reads are taken out, and a plain, dense, smaller network is left.

A channel goes when all weights that read it are zero, whatever method and unit made them so. What is left says what the
masked network says, which is tried before anybody gets it.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from subnet_search.deploy.attention import become
from subnet_search.deploy.coupling import Coupling, couple
from subnet_search.errors import RunError, UserError

TOLERANCE = 1e-4  # between the logits of both, relative to the largest


def compact(net: nn.Module, example: Tensor, coupling: Coupling | None = None) -> nn.Module:
    """A copy of a network without the channels that no weight reads. example: inputs, (batch, ...), as the network takes them.

    Raises UserError when there are none, or the network cannot be traced; RunError when what is left says something else.
    """
    coupling = coupling or couple(net, example)
    state = dict(net.state_dict())
    stay = _stay(state, coupling)
    if not stay:
        why = "".join(f"; {name}: {reason}" for name, reason in list(coupling.kept_whole.items())[:1])
        raise UserError(f"there is no channel to take out: each is read by a weight that lives (unit=channel drops some){why}")
    for (name, dim), places in stay.items():
        state[name] = state[name].index_select(dim, places.nonzero().view(-1).to(state[name].device))
    small = shrunk(net, {name: tuple(state[name].shape) for name, _ in stay})
    small.load_state_dict(state)
    check_same(net, small, example)
    return small


def shrunk(net: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> nn.Module:
    """A copy of a network whose parameters and buffers of these names have other shapes, and no values yet."""
    small = copy.deepcopy(net)
    for name, shape in shapes.items():
        owner, _, attribute = name.rpartition(".")
        module = small.get_submodule(owner)
        old = getattr(module, attribute)
        if isinstance(module, nn.MultiheadAttention) and old.shape != shape:
            become(module)
        new = torch.empty(shape, dtype=old.dtype, device=old.device)
        setattr(module, attribute, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
        if attribute == "weight":
            _tell(module)
    for module in small.modules():
        if isinstance(module, nn.MultiheadAttention):
            module.num_heads = module.out_proj.in_features // module.head_dim
    return small


def check_same(net: nn.Module, small: nn.Module, example: Tensor) -> float:
    """The greatest difference between both networks' logits, relative to the largest. Raises RunError above TOLERANCE."""
    difference = difference_between(net, small, example)
    if not difference <= TOLERANCE:
        raise RunError(f"the smaller network says something else: logits differ by {difference:.2g} of the largest")
    return difference


@torch.no_grad()
def difference_between(net: nn.Module, other: nn.Module, example: Tensor) -> float:
    """The greatest difference between two networks' outputs, relative to the largest, in evaluation mode."""
    modes = net.training, other.training
    try:
        expected, found = net.eval()(example), other.eval()(example)
    except RuntimeError as error:
        raise UserError(f"the smaller network does not run, its forward pass has a size written into it: {error}") from error
    finally:
        net.train(modes[0]), other.train(modes[1])
    return float((expected - found).abs().max() / expected.abs().max().clamp(min=1e-12))


def _stay(state: Mapping[str, Tensor], coupling: Coupling) -> dict[tuple[str, int], Tensor]:
    """Which places stay, by tensor and dimension, where some go."""
    stay: dict[tuple[str, int], Tensor] = {}
    for group in coupling.groups:
        read = torch.zeros(group.size, dtype=torch.bool)
        for piece in group.slices:
            if piece.reads:
                used = state[piece.tensor].detach().cpu().movedim(piece.dim, 0).flatten(1).ne(0).any(1)
                read |= used[piece.index].any(1)
        if not read.any():
            raise UserError(f"no weight reads any channel of {group.name}: the layer is dead, so nothing can be made of it")
        for piece in group.slices if not read.all() else ():
            length = state[piece.tensor].shape[piece.dim]
            places = stay.setdefault((piece.tensor, piece.dim), torch.ones(length, dtype=torch.bool))
            places[piece.index[~read].reshape(-1)] = False
    return stay


def _tell(module: nn.Module) -> None:
    """A layer's own numbers, after its weight's shape."""
    weight: Any = module.weight
    match module:
        case _ConvNd():
            transposed = isinstance(module, _ConvTransposeNd)
            inputs, outputs = (0, 1) if transposed else (1, 0)
            if module.groups == module.in_channels == module.out_channels:
                module.groups = weight.shape[0]  # depthwise
            module.in_channels = weight.shape[inputs] * (1 if transposed else module.groups)
            module.out_channels = weight.shape[outputs] * (module.groups if transposed else 1)
        case nn.Linear():
            module.out_features, module.in_features = weight.shape
        case _BatchNorm():
            module.num_features = weight.shape[0]
        case nn.PReLU():
            module.num_parameters = weight.shape[0]
