"""Which channels of a network can be removed, and all that goes with each: traced by torch-pruning, then tried out.

Attention heads are channels too (`deploy/attention.py`); torch-pruning does not know them.

A group is trusted only after a test: with random numbers in all that computes one of its channels, and zeros where they
are read, the network must say what it said before. What a normalisation over channels mixes, for one, fails it.
"""

import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from subnet_search.deploy.attention import heads
from subnet_search.errors import UserError
from subnet_search.topology.channels import Group, Slice, along

TOLERANCE = 1e-4  # of the outputs, relative to how far they differ between inputs
MIXED = "its values reach the output by other ways than the weights that read them, as through a normalisation over channels"
SHIFTED = "zeros are put beside them (F.pad, as on the shortcuts of CIFAR's ResNets), so that each is at another place after it"
SHUFFLED = "they are put in another order or cut in parts (channel shuffle), so that each depends on how many are before it"


@dataclass(frozen=True)
class Coupling:
    """The groups of channels that can be removed from a network, and why others cannot."""

    groups: tuple[Group, ...]
    kept_whole: Mapping[str, str]
    """Reasons, by the first weight that computes a group's channels."""


def couple(net: nn.Module, example: Tensor) -> Coupling:
    """Find the groups of channels of a network in evaluation mode. example: inputs, (batch, ...).

    The channels of the outputs are in none. Raises UserError for a network that cannot be traced.
    """
    with _quiet(net):
        _check_way(net, example)
        found, reasons, moved = _traced(net, example)
        attention, others = heads(net)
        found += attention
        reasons |= others
        for name in _untrue(net, example, found):
            reasons[name] = moved.get(name, MIXED)
    return Coupling(tuple(group for group in found if group.name not in reasons), reasons)


def _traced(net: nn.Module, example: Tensor) -> tuple[list[Group], dict[str, str], dict[str, str]]:
    """Groups; reasons against others; and what moves the channels of a group about, should it turn out to be none."""
    shared = [name for name, count in _owners(net).items() if count > 1]
    if shared:
        raise UserError(f"channels cannot be removed from a network that shares a weight between layers: {shared[0]}")
    try:
        traced = [list(group) for group in _graph(net, example).get_all_groups()]
    except Exception as error:  # whatever it meets in a user's forward pass
        raise _untraceable(error) from error
    tensors = {id(tensor): name for name, tensor in (*net.named_parameters(), *net.named_buffers())}
    groups, reasons, moved = list[Group](), dict[str, str](), dict[str, str]()
    for items in traced:
        group = _group(items, tensors)
        if isinstance(group, Group):
            groups.append(group)
            if why := _moved(items):
                moved[group.name] = why
        else:
            reasons.update([group])
    return groups, reasons, moved


def _graph(net: nn.Module, example: Tensor) -> Any:
    from torch_pruning import DependencyGraph

    class Graph(DependencyGraph):  # type: ignore[misc]
        def _trace(self, *arguments: Any, **options: Any) -> Any:
            """It looks for sizes under the names that they had in older versions of torch, and guesses without them."""
            nodes = super()._trace(*arguments, **options)
            for node in nodes.values():
                if isinstance(node.module, self.ops._ReshapeOp | self.ops._SplitOp):
                    saved = {name: getattr(node.grad_fn, name) for name in dir(node.grad_fn) if name.startswith("_saved_")}
                    node.grad_fn = SimpleNamespace(**{name.replace("_sym_", "_"): value for name, value in saved.items()})
            return nodes

    return Graph().build_dependency(net, example)


def _moved(items: list[Any]) -> str | None:
    """What the forward pass does to a group's channels that torch-pruning does not see."""
    found = None
    for item in items:
        node = item.dep.target.grad_fn
        if any(getattr(node, "_saved_pad", ())[4:]):  # from the last dimension on: beyond those of an image
            return SHIFTED
        if hasattr(node, "_saved_split_size") or hasattr(node, "_saved_dim0"):
            found = SHUFFLED
    return found


@torch.no_grad()
def _check_way(net: nn.Module, example: Tensor) -> None:
    """Raise UserError when the layers that run depend on the inputs: a trace would see some of them."""
    ran: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in net.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    ways = []
    try:
        for inputs in (example, -example, torch.zeros_like(example), 10 * example):
            ran.clear()
            net(inputs)
            ways.append(tuple(ran))
    except Exception as error:  # whatever a user's forward pass raises
        raise _untraceable(error) from error
    finally:
        for handle in handles:
            handle.remove()
    if len(set(ways)) > 1:
        all_ran = [set(way) for way in ways]
        others = sorted(set[str]().union(*all_ran) - all_ran[0].intersection(*all_ran))
        named = f" ({', '.join(others)} not always)" if others else ""
        raise UserError(f"the layers that run in this network depend on its inputs{named}: its channels cannot be traced")


def _untraceable(error: Exception) -> UserError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"the channels of this network cannot be traced: {reason}")


def _owners(net: nn.Module) -> dict[str, int]:
    """How many layers hold each weight."""
    names, counts = dict[int, str](), defaultdict[int, int](int)
    for module_name, module in net.named_modules(remove_duplicate=False):
        for name, parameter in module.named_parameters(recurse=False):
            names.setdefault(id(parameter), f"{module_name}.{name}")
            counts[id(parameter)] += 1
    return {names[key]: count for key, count in counts.items()}


def _group(items: list[Any], tensors: Mapping[int, str]) -> Group | tuple[str, str]:
    """A group of torch-pruning as ours; or its name, and why it is none."""
    name = tensors[id(items[0].dep.target.module.weight)]
    size = len(items[0].idxs)
    labels = _labels(items, size)
    pieces: dict[tuple[str, int, bool], dict[int, list[int]]] = {}
    lengths: dict[tuple[str, int, bool], int] = {}
    for item in items:
        module, reads = item.dep.target.module, item.dep.handler.__name__ == "prune_in_channels"
        places = _places(module, reads)
        if places is None:
            return name, f"they pass through {type(module).__name__}, whose channels cannot be removed"
        for tensor, dim, period in places:
            key = tensors[id(tensor)], dim, reads
            at, lengths[key] = pieces.setdefault(key, defaultdict(list)), tensor.shape[dim]
            for place, root in zip(item.idxs, item.root_idxs, strict=True):
                if place % period not in at[labels[root]]:
                    at[labels[root]].append(place % period)
    if not any(reads for _, _, reads in pieces):
        return name, "they are outputs of the network"
    slices, units = [], len(set(labels))
    for key, at in pieces.items():
        widths = {len(at[label]) for label in range(units)}
        if len(widths) > 1 or 0 in widths or max(max(places) for places in at.values()) >= lengths[key]:
            return name, _moved(items) or f"they are not all used alike by {key[0]}"
        tensor_name, dim, reads = key
        slices.append(Slice(tensor_name, dim, torch.tensor([sorted(at[label]) for label in range(units)]), reads))
    return Group(name, units, tuple(slices))


def _places(module: Any, reads: bool) -> list[tuple[Tensor, int, int]] | None:
    """Where a layer has a channel: tensors, the dimension, and after how many places it begins anew. None: unknown."""
    whole = 1 << 62
    match module:
        case _ConvNd():
            transposed = isinstance(module, _ConvTransposeNd)
            if _is_depthwise(module):
                found = [(module.weight, 0, whole)]
            elif reads:
                return [(module.weight, 0 if transposed else 1, whole if transposed else module.in_channels // module.groups)]
            else:
                found = [(module.weight, 1 if transposed else 0, module.out_channels // module.groups if transposed else whole)]
            return [*found, *([(module.bias, 0, whole)] if module.bias is not None else [])]
        case nn.Linear():
            if reads:
                return [(module.weight, 1, whole)]
            return [(module.weight, 0, whole), *([(module.bias, 0, whole)] if module.bias is not None else [])]
        case _BatchNorm():
            tensors = (module.weight, module.bias, module.running_mean, module.running_var)
            return [(tensor, 0, whole) for tensor in tensors if tensor is not None]
        case nn.PReLU():
            return [(module.weight, 0, whole)] if module.num_parameters > 1 else []
        case nn.Parameter() | nn.LayerNorm() | nn.GroupNorm() | nn.MultiheadAttention() | nn.Embedding() | nn.RNNBase():
            return None
    return []  # an operation that torch-pruning traced: it has no numbers of its own


def _is_depthwise(conv: _ConvNd) -> bool:
    return conv.groups == conv.in_channels == conv.out_channels > 1


def _labels(items: list[Any], size: int) -> list[int]:
    """The unit of each channel: its own, or with a grouped convolution those at the same place of each of its groups."""
    label = list(range(size))
    for item in items:
        conv = item.dep.target.module
        if isinstance(conv, _ConvNd) and conv.groups > 1 and not _is_depthwise(conv):
            reads = item.dep.handler.__name__ == "prune_in_channels"
            period = (conv.in_channels if reads else conv.out_channels) // conv.groups
            first: dict[int, int] = {}
            for place, root in zip(item.idxs, item.root_idxs, strict=True):
                old, new = label[root], label[first.setdefault(place % period, root)]
                label = [new if one == old else one for one in label]
    order = {one: index for index, one in enumerate(dict.fromkeys(label))}
    return [order[one] for one in label]


@torch.no_grad()
def _untrue(net: nn.Module, example: Tensor, groups: list[Group]) -> list[str]:
    """The groups whose channels reach the output although nothing reads them. Leaves batch norms in training mode."""
    state, buffers = dict(net.named_parameters()), dict(net.named_buffers())
    for module in net.modules():
        # By the batch, or in a deep network that nobody trained no difference would reach the output.
        if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
            module.train(len(example) > 1)

    def answer(tried: list[Group], noise: bool) -> Tensor:
        found = {**state, **{name: buffer.clone() for name, buffer in buffers.items()}}
        rng = torch.Generator().manual_seed(0)
        pieces = [piece for group in tried for piece in group.slices if noise or piece.reads]
        for piece in sorted(pieces, key=lambda piece: piece.reads):
            tensor = found[piece.tensor]
            other = tensor.new_zeros(())
            if not piece.reads:  # its own numbers at other places, so that nothing overflows
                factors = 0.5 + torch.rand(tensor.shape[piece.dim], generator=rng).to(tensor)
                rolled = tensor.reshape(-1).roll(tensor.numel() // 2 + 1).view(tensor.shape)
                other = rolled * along(factors, piece.dim, tensor.dim())
            places = torch.zeros(tensor.shape[piece.dim], dtype=torch.bool, device=tensor.device)
            places[piece.index[::2].reshape(-1)] = True  # of every other channel
            found[piece.tensor] = torch.where(along(places, piece.dim, tensor.dim()), other, tensor)
        return _answer(net, found, example)

    def holds(tried: list[Group]) -> bool:
        quiet, noisy = answer(tried, noise=False), answer(tried, noise=True)
        signal = quiet - quiet.mean(0) if len(example) > 1 else quiet
        return bool((quiet - noisy).abs().max() <= TOLERANCE * signal.abs().max())

    return [] if not groups or holds(groups) else [group.name for group in groups if not holds([group])]


def _answer(net: nn.Module, state: Mapping[str, Tensor], example: Tensor) -> Tensor:
    out = functional_call(net, dict(state), (example,))
    if not isinstance(out, Tensor):
        raise UserError(f"a network must return one tensor for its channels to be removed, not {type(out).__name__}")
    return out


@contextmanager
def _quiet(net: nn.Module) -> Iterator[None]:
    """Evaluation mode, with gradients for tracing and without warnings; all is put back afterwards."""
    modes = {module: module.training for module in net.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in net.parameters()}
    net.eval().requires_grad_(True)
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, learns in wanted.items():
            parameter.requires_grad_(learns)
            parameter.grad = None
