"""Find the groups of channels that can be removed from a network: traced with torch-pruning, then verified.

`channel_flow.py` finds more where torch-pruning's groups fail or are incomplete. Heads of `nn.MultiheadAttention` are added
by `attention_heads.py`. Every group is verified numerically by `verify_groups.py`, because the traces miss some dependencies,
as a normalisation over channels.
"""

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parallel import DistributedDataParallel

from subnet_search.core.errors import UserError
from subnet_search.core.nested import map_tensors
from subnet_search.nets import call, without_fused_attention
from subnet_search.structure.attention_heads import heads
from subnet_search.structure.channel_flow import ALONE, OUTPUTS, flow_groups
from subnet_search.structure.dependency_graph import graph
from subnet_search.structure.verify_groups import WRITTEN, failed_groups, first_line
from subnet_search.topology.channels import Group, Slice

SHIFTED = "zero channels are added (F.pad, as on the shortcuts of CIFAR's ResNets), which shifts the channel indices"
SHUFFLED = "they are reordered or split (channel shuffle), so that each index depends on the number of channels before it"


@dataclass(frozen=True)
class Coupling:
    """Groups of coupled channels that can be removed, and reasons why others cannot."""

    groups: tuple[Group, ...]
    kept_whole: dict[str, str]
    """Reasons, by the first weight that computes a group's channels."""

    @property
    def why(self) -> str:
        """First non-trivial reason, as a suffix for an error message; empty where there is none."""
        others = (f"; {name}: {reason}" for name, reason in self.kept_whole.items() if reason not in (OUTPUTS, ALONE))
        return next(others, "")


def couple(net: nn.Module, example: Any, every: bool = False) -> Coupling:
    """Find the groups of channels of a network in evaluation mode. example: inputs, as `nets.call` passes them.

    every: as for `nets.outputs_in`.

    The network's outputs are in no group. Raises UserError for a network that cannot be traced.
    """
    if isinstance(net, nn.DataParallel | DistributedDataParallel | torch.jit.ScriptModule):
        raise UserError(f"cannot trace the channels of {type(net).__name__}: pass the original module")
    with _quiet(net), without_fused_attention():
        _check_fixed_path(net, example)
        error: UserError | None = None
        try:
            found, reasons, moved = _traced(net, example)
        except UserError as untraceable:
            found, reasons, moved, error = [], {}, {}, untraceable
        attention, others = heads(net)
        found += attention
        reasons |= others
        for name, why in failed_groups(net, example, found, every).items():
            reasons[name] = moved.get(name, why)
        found = [group for group in found if group.name not in reasons]
        seen = {one.tensor for group in found for one in group.slices} | reasons.keys()
        unseen = any(
            name.endswith("weight") and tensor.dim() > 1 and name not in seen for name, tensor in net.named_parameters()
        )
        if error or unseen or not {OUTPUTS, ALONE}.issuperset(reasons.values()):
            found += _followed(net, example, [*found, *attention], reasons, every, error)
    return Coupling(tuple(found), reasons)


def _followed(
    net: nn.Module, example: Any, known: list[Group], reasons: dict[str, str], every: bool, error: UserError | None
) -> list[Group]:
    """More groups, by following the channels through the forward pass; updates the reasons why others cannot be removed.

    Groups that torch-pruning finds keep their names and their order, which earlier runs depend on.
    """
    taken = {place for group in known for place in _places_of(group)}
    names = {group.name for group in known}
    try:
        followed = flow_groups(net, example)
    except Exception as unknown:  # an operation with arguments that are not known: the other groups remain
        if error:
            raise error from unknown
        return []
    candidates = [one for one in followed if one[0].name not in names and taken.isdisjoint(_places_of(one[0]))]
    failed = {group.name: why for group, why in candidates if why}
    groups = [group for group, why in candidates if not why]
    plain = [replace(group, resized=()) for group in groups]  # attributes change only where they have to
    first = failed_groups(net, example, plain, every)
    second = failed_groups(net, example, [group for group in groups if group.name in first and group.resized], every)
    again = {group.name for group in groups if group.resized}
    failed |= {name: second.get(name, why) for name, why in first.items() if name in second or name not in again}
    found = [group for group in plain if group.name not in first]
    found += [group for group in groups if group.name in first and group.name not in failed]
    if error and not found:
        raise error
    done = {one.tensor for group in found for one in group.slices if not one.reads}
    for name in done & reasons.keys():
        del reasons[name]
    for group, _ in candidates:
        if why := failed.get(group.name):
            if group.name in reasons:
                if reasons[group.name] == SHUFFLED and why.startswith(WRITTEN) and group.resized:
                    reasons[group.name] = why
            elif reasons.keys().isdisjoint(one.tensor for one in group.slices if not one.reads):
                reasons[group.name] = why
    return found


def _places_of(group: Group) -> set[tuple[str, int, int]]:
    return {(one.tensor, one.dim, place) for one in group.slices for place in one.index.flatten().tolist()}


def _traced(net: nn.Module, example: Any) -> tuple[list[Group], dict[str, str], dict[str, str]]:
    """Groups; reasons why others cannot be removed; and for groups whose channels are reordered, the reason if they fail."""
    layers = [module for _, module in net.named_modules(remove_duplicate=False)]
    owners = Counter(parameter for layer in layers for parameter in layer.parameters(recurse=False))
    for layer in layers:
        if isinstance(layer, nn.Embedding):  # tied to the output: it is kept whole
            del owners[layer.weight]
    if shared := [name for name, parameter in net.named_parameters() if owners[parameter] > 1]:
        raise UserError(f"cannot remove channels: {shared[0]} is shared between layers")
    try:
        traced = [list(group) for group in graph(net, example).get_all_groups()]
    except Exception as error:  # anything that a user's forward pass raises
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


def _moved(items: list[Any]) -> str | None:
    """The reordering of a group's channels that torch-pruning does not model; None without."""
    found = None
    for item in items:
        node = item.dep.target.grad_fn
        if any(getattr(node, "_saved_pad", ())[4:]):  # beyond the last two dimensions, height and width
            return SHIFTED
        if hasattr(node, "_saved_split_size") or hasattr(node, "_saved_dim0"):
            found = SHUFFLED
    return found


@torch.no_grad()
def _check_fixed_path(net: nn.Module, example: Any) -> None:
    """Raise UserError when the layers that run depend on the inputs: a trace would miss some of them."""
    ran: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in net.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    paths = []
    try:
        for inputs in (example, *(map_tensors(change, example) for change in (_negative, torch.zeros_like, _tenfold))):
            ran.clear()
            try:
                call(net, inputs)
            except Exception as error:  # anything that a user's forward pass raises
                if inputs is example:
                    raise _untraceable(error) from error
                continue  # the others may be invalid inputs, such as tokens below 0
            paths.append(tuple(ran))
    finally:
        for handle in handles:
            handle.remove()
    if len(set(paths)) > 1:
        all_ran = [set(path) for path in paths]
        others = sorted(set[str]().union(*all_ran) - all_ran[0].intersection(*all_ran))
        named = f" ({', '.join(others)} not always)" if others else ""
        raise UserError(f"cannot trace the channels of this network: the layers that run depend on its inputs{named}")


def _negative(tensor: Tensor) -> Tensor:
    return -tensor if _may_change(tensor) else tensor


def _tenfold(tensor: Tensor) -> Tensor:
    return 10 * tensor if _may_change(tensor) else tensor


def _may_change(tensor: Tensor) -> bool:
    """Not where it could be an index: one that is out of range ends all work on a GPU."""
    return tensor.is_floating_point() or (tensor.dtype != torch.bool and not tensor.is_cuda)


def _untraceable(error: Exception) -> UserError:
    return UserError(f"cannot trace the channels of this network: {first_line(error)}")


def _group(items: list[Any], tensors: Mapping[int, str]) -> Group | tuple[str, str]:
    """A torch-pruning group as `Group`; or its name, and the reason why it cannot be removed."""
    root = items[0].dep.target
    name = tensors.get(id(root.module.weight), f"{root._name}.weight")
    if any(root is None for item in items for root in item.root_idxs):
        return name, SHUFFLED
    size = len(items[0].idxs)
    labels = _labels(items, size)
    positions: dict[tuple[str, int, bool], dict[int, list[int]]] = {}
    lengths: dict[tuple[str, int, bool], int] = {}
    for item in items:
        module, reads = item.dep.target.module, item.dep.handler.__name__ == "prune_in_channels"
        places = _places(module, reads)
        if places is None:
            through = tensors[id(module)] if isinstance(module, nn.Parameter) else type(module).__name__
            return name, f"they pass through {through}, whose channels cannot be removed"
        for tensor, dim, period in places:
            if id(tensor) not in tensors:
                return name, "their weight is computed from other tensors (as by weight norm or spectral norm)"
            key = tensors[id(tensor)], dim, reads
            at, lengths[key] = positions.setdefault(key, defaultdict(list)), tensor.shape[dim]
            for place, root in zip(item.idxs, item.root_idxs, strict=True):
                if place % period not in at[labels[root]]:
                    at[labels[root]].append(place % period)
    if len(set(labels)) == 1:
        return name, ALONE
    if not any(reads for _, _, reads in positions):
        return name, OUTPUTS
    slices, units = [], len(set(labels))
    for key, at in positions.items():
        widths = {len(at[label]) for label in range(units)}
        if len(widths) > 1 or 0 in widths or max(max(places) for places in at.values()) >= lengths[key]:
            return name, _moved(items) or f"they have different numbers of weights in {key[0]}"
        tensor_name, dim, reads = key
        slices.append(Slice(tensor_name, dim, torch.tensor([sorted(at[label]) for label in range(units)]), reads))
    return Group(name, units, tuple(slices))


def _places(module: Any, reads: bool) -> list[tuple[Tensor, int, int]] | None:
    """A layer's tensors with channels: (tensor, dimension, period); indices are taken modulo the period.

    None: the layer is not supported.
    """
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
        case _NormBase():
            tensors = (module.weight, module.bias, module.running_mean, module.running_var)
            return [(tensor, 0, whole) for tensor in tensors if tensor is not None]
        case nn.PReLU():
            return [(module.weight, 0, whole)] if module.num_parameters > 1 else []
        case nn.RNNBase() | nn.RNNCellBase() | nn.MultiheadAttention():
            return None
        case nn.Parameter() | nn.LayerNorm() | nn.GroupNorm() | nn.Embedding():
            return None
    return []  # an operation without parameters


def _is_depthwise(conv: _ConvNd) -> bool:
    return conv.groups == conv.in_channels == conv.out_channels > 1


def _labels(items: list[Any], size: int) -> list[int]:
    """The unit of each channel. A grouped convolution makes one unit of the channels at the same index of its groups."""
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


@contextmanager
def _quiet(net: nn.Module) -> Iterator[None]:
    """Evaluation mode, gradients enabled, warnings off; the network's modes and gradients are restored afterwards."""
    modes = {module: module.training for module in net.modules()}
    wanted = {parameter: (parameter.requires_grad, parameter.grad) for parameter in net.parameters()}
    net.eval().requires_grad_(True)
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, (learns, gradient) in wanted.items():
            parameter.requires_grad_(learns)
            parameter.grad = gradient
