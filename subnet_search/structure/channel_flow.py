"""Follow every channel through the operations of a forward pass, to find groups that torch-pruning's graph does not model.

Each axis of a parameter has one label per position. A tensor has layers of labels, one for each axis that they come from:
views, permutations, concatenations and padding move them, arithmetic joins the labels of two operands, and a product of
matrices joins those that are summed over. Labels that are joined are removed together. Where channels are split into heads,
a head is removed as a whole; where a group norm has groups, a whole group.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from subnet_search.core.nested import tensors_in
from subnet_search.nets import call
from subnet_search.topology.channels import Group, Resized, Slice

aten = torch.ops.aten
MOVES = [
    "view",
    "_unsafe_view",
    "reshape",
    "permute",
    "transpose",
    "t",
    "slice",
    "select",
    "unbind",
    "split",
    "split_with_sizes",
    "chunk",
    "cat",
    "stack",
    "expand",
    "repeat",
    "unsqueeze",
    "squeeze",
    "clone",
    "alias",
    "detach",
    "index",
    "index_select",
    "flip",
    "roll",
    "narrow",
    "pixel_shuffle",
    "pixel_unshuffle",
    "constant_pad_nd",
    "channel_shuffle",
    "native_channel_shuffle",
    "_reshape_alias",
    "lift_fresh",
    "unsafe_split",
    "unsafe_chunk",
    "movedim",
]
REDUCTIONS = [
    "mean",
    "sum",
    "amax",
    "amin",
    "max",
    "min",
    "var",
    "std",
    "prod",
    "any",
    "all",
    "argmax",
    "argmin",
    "logsumexp",
    "linalg_vector_norm",
    "norm",
    "var_mean",
]
Layers = list[Tensor]

ALONE = "the group has only one channel"
INPUTS = "they are inputs of the network"
OUTPUTS = "they are outputs of the network"
SEVERAL = "each is read at several places, as keys and values that heads share"
SHARED = "they are computed and read by the same weight, as by a tied embedding"


class Flow(TorchDispatchMode):
    """Labels of all tensors of a forward pass. Label -1: no channel, as where zeros are padded."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.axes: dict[tuple[str, int], tuple[int, int]] = {}  # first label and length, by tensor name and dimension
        self.reads: set[tuple[str, int]] = set()
        self.computes: set[tuple[str, int]] = set()
        self.count = 0
        self.pairs: list[Tensor] = []
        self.fixed: list[tuple[Tensor, str]] = []
        self.inner: dict[int, int] = {}  # the size of a head, by the label of its channels
        self._layers: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._weights: WeakIdKeyDictionary = WeakIdKeyDictionary()
        running = {name: buffer for name, buffer in net.named_buffers() if buffer.dim() == 1}  # others are masks and tables
        stored = net.state_dict().keys()
        for name, tensor in {**dict(net.named_parameters()), **running}.items():
            if name in stored and tensor.is_floating_point() and tensor.dim():
                self._layers[tensor] = [self._axis(name, dim, tensor) for dim, size in enumerate(tensor.shape) if size > 1]
                self._weights[tensor] = True

    def _axis(self, name: str, dim: int, tensor: Tensor) -> Tensor:
        size = tensor.shape[dim]
        self.axes[name, dim] = self.count, size
        labels = torch.arange(self.count, self.count + size)
        self.count += size
        return _along(labels, dim, tensor.shape)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        inputs = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
        labelled = [one for one in inputs if self.layers(one)]
        if labelled:
            name = func.overloadpacket.__name__
            step: Callable[..., None] = getattr(self, f"_{name.rstrip('_')}", None) or self._other
            if name in MOVES:
                step = self._moved
            elif name in REDUCTIONS:
                step = self._reduced
            step(func, out, args, kwargs, inputs)
        return out

    def layers(self, tensor: Any) -> Layers:
        """The layers whose channels a tensor holds; empty for what is not a tensor."""
        found: Layers = self._layers.get(tensor, []) if isinstance(tensor, Tensor) else []
        return found

    def put(self, out: Any, layers: Iterable[Tensor]) -> None:
        """Store that the tensor `out` holds channels of these layers. What is not a float tensor is ignored."""
        if isinstance(out, Tensor) and out.is_floating_point():
            kept = [(max(dims), layer) for layer in layers if (dims := _dims(layer))]
            if kept or out in self._layers:
                self._layers[out] = [layer for _, layer in sorted(kept, key=lambda one: -one[0])]

    def join(self, one: Tensor, other: Tensor) -> None:
        """Labels of two tensors of the same shape belong together, position by position."""
        for dim in reversed(range(one.dim())):
            if one.stride(dim) == other.stride(dim) == 0:
                one, other = one.select(dim, 0), other.select(dim, 0)
        both = torch.stack([one.reshape(-1), other.reshape(-1)], 1)
        both = both[(both >= 0).all(1) & (both[:, 0] != both[:, 1])]
        if len(both):
            codes = torch.unique(both[:, 0] << 32 | both[:, 1])
            self.pairs.append(torch.stack([codes >> 32, codes & (1 << 32) - 1], 1))

    def _moved(self, func: Any, out: Any, args: Any, kwargs: Any, inputs: list[Tensor]) -> None:
        """The operation itself, on the labels."""
        name, most = func.overloadpacket.__name__, max(len(self.layers(one)) for one in inputs)
        made: list[Any] = []
        for index in range(most):

            def at(tensor: Tensor, index: int = index) -> Tensor:
                layers = self.layers(tensor)
                if index < len(layers):
                    return layers[index]
                return torch.full(tensor.shape, -1) if tensor.is_floating_point() else tensor

            if name in ("view", "_unsafe_view", "reshape", "_reshape_alias"):
                made.append(self._split(at(args[0]), out.shape))
            elif name == "constant_pad_nd":
                made.append(self._padded(at(args[0]), args[1]))
            elif name in ("clone", "alias", "detach", "lift_fresh"):
                made.append(at(args[0]))
            else:
                found = func(*tree_map_only(Tensor, at, args), **tree_map_only(Tensor, at, kwargs))
                made.append([_small(one) for one in found] if isinstance(found, list | tuple) else _small(found))
        outs = out if isinstance(out, list | tuple) else [out]
        for place, one in enumerate(outs):
            self.put(one, [layer[place] if isinstance(layer, list) else layer for layer in made])
            if all(tensor in self._weights for tensor in inputs if tensor.is_floating_point()):
                self._weights[one] = True

    def _split(self, labels: Tensor, shape: Iterable[int]) -> Tensor:
        """Labels in another shape. Of channels split over several dimensions those along the last are removed together."""
        shape = tuple(shape)
        if not labels.numel() or not shape:
            return labels.reshape(shape)
        core, sizes, segments = _core(labels), list(shape), _segments(tuple(labels.shape), shape)
        for ins, outs in segments:
            if all(core.shape[dim] == 1 for dim in ins):
                sizes[outs.start : outs.stop] = [1] * len(outs)
            else:
                core = core.expand([labels.shape[dim] if dim in ins else size for dim, size in enumerate(core.shape)])
        made = core.reshape(sizes)
        for _, outs in segments:
            if len(real := [dim for dim in outs if _varies(made, dim)]) > 1:
                first = made.narrow(real[-1], 0, 1).expand_as(made)
                self.join(made, first)
                self.inner.update(dict.fromkeys(first.unique().tolist(), shape[real[-1]]))
                made = first
        return _small(made.expand(shape))

    def _padded(self, labels: Tensor, amounts: list[int]) -> Tensor:
        """New labels for zero channels that are added on both sides, removed in pairs so that as many stay on each side."""
        made = torch.constant_pad_nd(labels, amounts, -1)
        for back in range(0, len(amounts), 2):
            dim, (left, right) = labels.dim() - 1 - back // 2, amounts[back : back + 2]
            if left == right > 0 and _varies(labels, dim):
                pairs = torch.arange(self.count, self.count + left)
                self.count += left
                line = torch.cat([pairs, torch.full((labels.shape[dim],), -1), pairs.flip(0)])
                made = torch.where(made >= 0, made, _along(line, dim, made.shape))
        return _small(made)

    def _reduced(self, func: Any, out: Any, args: Any, kwargs: Any, inputs: list[Tensor]) -> None:
        for one in out if isinstance(out, tuple) else (out,):
            source, layers = args[0], []
            dims = {"linalg_vector_norm": args[2:3]}.get(func.overloadpacket.__name__, args[1:2])
            dims = dims[0] if dims and dims[0] is not None else kwargs.get("dim")
            if (len(args) > 1 and isinstance(args[1], Tensor)) or one.shape == source.shape:
                return self._other(func, out, args, kwargs, inputs)
            dims = range(source.dim()) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
            places = sorted((dim % source.dim() for dim in dims), reverse=True)
            for layer in self.layers(source):
                if not any(_varies(layer, dim) for dim in places):
                    for dim in places:
                        layer = layer.select(dim, 0)
                    if one.dim() == source.dim():
                        for dim in reversed(places):
                            layer = layer.unsqueeze(dim)
                    layers.append(layer)
            self.put(one, layers)

    def _other(self, func: Any, out: Any, args: Any, kwargs: Any, inputs: list[Tensor]) -> None:
        """Arithmetic position by position; or an operation that leaves the channels where they are, as pooling."""
        for one in out if isinstance(out, tuple | list) else (out,):
            if not isinstance(one, Tensor):
                continue
            found: Layers = []
            for tensor in inputs:
                for layer in self.layers(tensor):
                    spread = self._spread(layer, tensor, one.shape)
                    if spread is None:
                        self.fixed.append((_core(layer).unique(), f"they pass through {func.overloadpacket.__name__}"))
                    else:
                        found = self._with(found, spread)
                    if tensor in self._weights:
                        self._uses(self.computes, layer)
            self.put(one, found)

    def _spread(self, layer: Tensor, tensor: Tensor, shape: torch.Size) -> Tensor | None:
        """A layer in the shape of an output, or None."""
        if tensor.shape == shape:
            return layer
        if tensor.dim() > len(shape):
            return None
        layer = layer.view((1,) * (len(shape) - layer.dim()) + layer.shape) if layer.dim() < len(shape) else layer
        for dim in range(layer.dim()):
            if layer.shape[dim] != shape[dim]:
                if _varies(layer, dim):
                    return None
                layer = layer.narrow(dim, 0, 1)
        return layer.expand(shape)

    def _with(self, layers: Layers, other: Tensor) -> Layers:
        """Layers of an output with one more, which is joined with one that differs along the same dimensions."""
        mine = _dims(other)
        for place, layer in enumerate(layers):
            theirs = _dims(layer)
            if mine & theirs:
                self.join(layer, other)
                both = (
                    layer
                    if layer is other
                    else torch.where(layer >= 0, layer, other)
                    if bool((_core(layer) < 0).any())
                    else layer
                )
                return [*layers[:place], both, *layers[place + 1 :]]
        return [*layers, other]

    def _uses(self, where: set[tuple[str, int]], labels: Tensor) -> None:
        first = int(_core(labels).max())
        where.update(key for key, (start, size) in self.axes.items() if start <= first < start + size)

    def _product(self, out: Tensor, one: Tensor, other: Tensor) -> Layers:
        """(..., n, k) @ (..., k, m)."""
        summed: list[Layers] = [[], []]
        found: Layers = []
        for place, (tensor, dim) in enumerate(((one, -1), (other, -2))):
            for layer in self.layers(tensor):
                if _varies(layer, layer.dim() + dim):
                    summed[place].append(layer.movedim(dim, -1))
                    if tensor in self._weights:
                        self._uses(self.reads, layer)
                else:
                    shape = (*out.shape[:-1], 1) if place == 0 else (*out.shape[:-2], 1, out.shape[-1])
                    found = self._with(found, layer.narrow(dim, 0, 1).expand(shape).expand(out.shape))
                    if tensor in self._weights:
                        self._uses(self.computes, layer)
        for layers in summed:  # several where heads share their keys and values: heads are removed, not values
            layers.sort(key=lambda layer: int(_core(layer).max()) not in self.inner)
            self.fixed += [(_core(layer).unique(), SEVERAL) for layer in layers[1:]]
        for a in summed[0][:1]:
            for b in summed[1][:1]:
                self.join(*torch.broadcast_tensors(self._one_row(a), self._one_row(b)))
        if not summed[0] or not summed[1]:  # summed over with what has no channels, as with the inputs of the network
            for layer in (*summed[0], *summed[1]):
                self.fixed.append((_core(layer).unique(), INPUTS))
        return found

    def _one_row(self, layer: Tensor) -> Tensor:
        """Labels (..., k) of rows (..., n, k), which are joined."""
        if _varies(layer, layer.dim() - 2):
            self.join(layer, layer.narrow(-2, 0, 1).expand_as(layer))
        return layer.select(-2, 0)

    def _mm(self, func: Any, out: Any, args: Any, kwargs: Any, inputs: list[Tensor]) -> None:
        self.put(out, self._product(out, args[0], args[1]))

    _bmm = _mm

    def _addmm(self, func: Any, out: Any, args: Any, kwargs: Any, inputs: list[Tensor]) -> None:
        found = self._product(out, args[1], args[2])
        for layer in self.layers(args[0]):
            spread = self._spread(layer, args[0], out.shape)
            found = found if spread is None else self._with(found, spread)
            if args[0] in self._weights:
                self._uses(self.computes, layer)
        self.put(out, found)

    _baddbmm = _addmm

    def _convolution(self, func: Any, out: Any, args: Any, kwargs: Any, inputs: list[Tensor]) -> None:
        (x, weight, bias), transposed, groups = args[:3], args[6], args[8]
        first, second, given = self._lines(weight, 0), self._lines(weight, 1), self._channels(x)
        into, made = (first, second) if transposed else (second, first)
        if groups > 1 and groups == x.shape[1] and weight.shape[1] == 1:  # depthwise
            made = first
            if given is not None and made is not None:
                self.join(given.repeat_interleave(len(made) // len(given)), made)
        elif into is not None:
            self._uses(self.reads, into)
            if given is None:
                self.fixed.append((into, INPUTS))
            else:
                self.join(given, into if transposed else into.repeat(groups))
            if transposed:
                self.join(into, into.view(groups, -1)[0].repeat(groups))
        if made is None:
            return self.put(out, [])
        if weight.shape[1] > 1:  # of each group of the convolution as many
            made = made.repeat(groups) if transposed else made
            self.join(made, made.view(groups, -1)[0].repeat(groups))
        self._uses(self.computes, made)
        if bias is not None and (line := self._lines(bias, 0)) is not None:
            self._uses(self.computes, line)
            self.join(line, made)
        self.put(out, [_along(made, 1, out.shape)])

    def _lines(self, weight: Tensor, dim: int) -> Tensor | None:
        """Labels of a weight along a dimension."""
        for layer in self.layers(weight):
            if weight.shape[dim] > 1 and _varies(layer, dim):
                return layer.movedim(dim, 0).reshape(weight.shape[dim], -1)[:, 0]
        return None

    def _channels(self, x: Tensor) -> Tensor | None:
        """Labels of images (batch, channels, ...) for each channel; those of different places are joined."""
        for layer in self.layers(x):
            if 1 in _dims(layer):
                flat = layer.movedim(1, 0).reshape(layer.shape[1], -1)
                if bool((flat != flat[:, :1]).any()):
                    self.join(flat, flat[:, :1].expand_as(flat))
                return flat[:, 0]
        return None

    def _norm(self, x: Tensor, out: Any, others: Iterable[Any], dim: int) -> None:
        """One number for each channel along `dim`, in each of `others`."""
        result, layers = out[0] if isinstance(out, tuple) else out, list(self.layers(x))
        for other in others:
            for layer in self.layers(other):
                self._uses(self.computes, layer)
                layers = self._with(
                    layers, _along(layer.reshape(-1), dim, x.shape) if layer.dim() == 1 else layer.expand(x.shape)
                )
        self.put(result, layers)

    def _native_batch_norm(self, func: Any, out: Any, args: Any, kwargs: Any, inputs: list[Tensor]) -> None:
        self._norm(args[0], out, [one for one in args[1:5] if isinstance(one, Tensor)], 1)

    _cudnn_batch_norm = _miopen_batch_norm = _native_batch_norm
    _batch_norm_with_update = __native_batch_norm_legit = __native_batch_norm_legit_no_training = _native_batch_norm

    def _native_group_norm(self, func: Any, out: Any, args: Any, kwargs: Any, inputs: list[Tensor]) -> None:
        x, groups = args[0], args[6]
        if (labels := self._channels(x)) is not None:
            first = labels.view(groups, -1)[:, :1].expand(groups, len(labels) // groups).reshape(-1)
            self.join(labels, first)
            if groups == 1:
                self.fixed.append((labels, "they pass through GroupNorm with one group, whose channels cannot be removed"))
        self._norm(x, out, args[1:3], 1)

    def _native_layer_norm(self, func: Any, out: Any, args: Any, kwargs: Any, inputs: list[Tensor]) -> None:
        x, last = args[0], len(args[1])
        name = "RMSNorm" if "rms" in func.overloadpacket.__name__ else "LayerNorm"
        for layer in self.layers(x):
            if any(_varies(layer, x.dim() - 1 - dim) for dim in range(last)):
                self.fixed.append((_core(layer).unique(), f"they pass through {name}, whose channels cannot be removed"))
        self._norm(x, out, args[2:4], x.dim() - 1)

    __fused_rms_norm = _native_layer_norm

    def _embedding(self, func: Any, out: Any, args: Any, kwargs: Any, inputs: list[Tensor]) -> None:
        if (labels := self._lines(args[0], 1)) is not None:
            self._uses(self.computes, labels)
            self.put(out, [_along(labels, out.dim() - 1, out.shape)])


@torch.no_grad()
def flow_groups(net: nn.Module, example: Any) -> list[tuple[Group, str | None]]:
    """Groups of channels, each with the reason why it cannot be removed, if there is one.

    Raises what the forward pass raises.
    """
    from scipy.sparse import coo_array  # here, since this takes 0.2 s, and most runs prune no channels
    from scipy.sparse.csgraph import connected_components

    with sdpa_kernel(SDPBackend.MATH), Flow(net) as flow:
        output = call(net, example)
    for _, tensor in tensors_in(output):
        flow.fixed += [(_core(layer).unique(), OUTPUTS) for layer in flow.layers(tensor)]
    ones, others = torch.cat([torch.empty(0, 2, dtype=torch.long), *flow.pairs]).numpy().T
    links = coo_array((torch.ones(len(ones)).numpy(), (ones, others)), (flow.count, flow.count))
    _, parts = connected_components(links, directed=False)
    units: dict[int, dict[tuple[str, int], list[int]]] = defaultdict(dict)
    for axis, (start, size) in flow.axes.items():
        if axis in flow.reads | flow.computes:
            for place, part in enumerate(parts[start : start + size].tolist()):
                units[part].setdefault(axis, []).append(place)
    why = {part: reason for labels, reason in flow.fixed for part in parts[labels[labels >= 0].numpy()].tolist()}
    head_size = {int(parts[label]): size for label, size in flow.inner.items()}
    alike: dict[tuple[Any, ...], list[int]] = defaultdict(list)  # units that have as many places of the same tensors
    for part, axes in units.items():
        if not flow.reads.isdisjoint(axes) and not flow.computes.isdisjoint(axes):
            reason = SHARED if not (flow.reads & flow.computes).isdisjoint(axes) else why.get(part)
            alike[tuple((axis, len(places)) for axis, places in axes.items()), reason, head_size.get(part, 1)].append(part)
    found = dict[str, tuple[Group, str | None]]()
    for (pattern, reason, size), same in alike.items():
        slices = [
            Slice(tensor, dim, torch.tensor([units[part][tensor, dim] for part in same]), (tensor, dim) in flow.reads)
            for (tensor, dim), _ in pattern
        ]
        names = (one.tensor for one in slices if not one.reads and one.tensor.endswith("weight") and one.tensor not in found)
        if name := next(names, None):
            slices.sort(key=lambda one: one.tensor != name)
            group = Group(name, len(same), tuple(slices), _resized(net, slices, len(same), size))
            found[name] = group, reason or (ALONE if len(same) == 1 else None)
    return list(found.values())


def _resized(net: nn.Module, slices: Iterable[Slice], units: int, head: int) -> tuple[Resized, ...]:
    """The whole numbers among the attributes of the layers and of what they are in that count these channels.

    A name with `head` in it counts heads, others count channels; of a layer, only of what it computes.
    """
    found: dict[tuple[str, str], int] = {}
    widths: dict[str, set[int]] = defaultdict(set)
    for one in slices:
        owner, width = one.tensor.rpartition(".")[0], one.index.shape[1]
        if not one.reads and not isinstance(net.get_submodule(owner), _KNOWN):
            widths[owner].add(width)
        if owner:
            widths[owner.rpartition(".")[0]].add(width)
    for path, several in widths.items():
        for name, value in vars(net.get_submodule(path)).items():
            if type(value) is int:
                counts = {width // head for width in several} if head > 1 and _counts_heads(name) else several
                found.update({(path, name): value // units for each in counts if value == each * units})  # noqa: B035
    return tuple(Resized(path, name, each) for (path, name), each in found.items())


_KNOWN = (nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.Embedding)


def _counts_heads(name: str) -> bool:
    return "head" in name and not any(word in name for word in ("dim", "size", "width", "channels"))


def _along(labels: Tensor, dim: int, shape: Iterable[int]) -> Tensor:
    """Labels along a dimension of a shape, the same along the others."""
    shape = tuple(shape)
    return labels.view([-1 if place == dim else 1 for place in range(len(shape))]).expand(shape)


def _segments(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[range, range]]:
    """The dimensions of a shape, and those that they become in a view; as few as possible at a time."""
    found, place, start = [], 0, 0
    while place < len(before) and start < len(after):
        end, last, wide, tall = place, start, before[place], after[start]
        while wide != tall:
            if wide < tall:
                end += 1
                wide *= before[end]
            else:
                last += 1
                tall *= after[last]
        found.append((range(place, end + 1), range(start, last + 1)))
        place, start = end + 1, last + 1
    return found


def _core(layer: Tensor) -> Tensor:
    """The labels with length 1 in the dimensions along which they are expanded."""
    for dim in range(layer.dim()):
        if layer.stride(dim) == 0 and layer.shape[dim] > 1:
            layer = layer.narrow(dim, 0, 1)
    return layer


def _varies(layer: Tensor, dim: int) -> bool:
    if layer.shape[dim] == 1 or layer.stride(dim) == 0:
        return False
    layer = _core(layer)
    return bool((layer != layer.narrow(dim, 0, 1)).any())


def _dims(layer: Tensor) -> set[int]:
    return {dim for dim in range(layer.dim()) if _varies(layer, dim)}


def _small(layer: Tensor) -> Tensor:
    """The same labels without copies along dimensions where they are equal."""
    for dim in range(layer.dim()):
        if layer.shape[dim] > 1 and layer.stride(dim) and not _varies(layer, dim):
            layer = layer.narrow(dim, 0, 1).expand(layer.shape)
    return layer
