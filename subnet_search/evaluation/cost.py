"""Cost of a network: number of weights and of multiply-accumulates, with and without zeros."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode

from subnet_search.core.nested import length_of, moved
from subnet_search.nets import call, gated_layers, left_whole, prunable, without_fused_attention
from subnet_search.nets.dynamic import Gate


@dataclass(frozen=True)
class Whole:
    """A parameter that is not pruned: not part of any density, but part of all counts of parameters and operations."""

    name: str
    why: str
    parameters: int
    parameters_share: float  # fraction of the counted parameters, prunable ones included
    macs: int
    macs_share: float  # fraction of the network's multiply-accumulates


@dataclass(frozen=True)
class Cost:
    """Counts for one input. Only counted parameters (nets/weights.py) contribute multiply-accumulates (MACs); no biases."""

    weights: int  # prunable weights, dead and alive
    kept: int  # prunable weights alive
    macs: int  # multiply-accumulates of the dense network
    kept_macs: int  # those with weights that are alive or not pruned: the operations left when zeros are skipped
    left_whole: Sequence[Whole] = ()

    @property
    def kept_parameters(self) -> int:
        """Prunable weights alive, plus all parameters not pruned."""
        return self.kept + sum(one.parameters for one in self.left_whole)


def cost(
    net: nn.Module,
    masks: Mapping[str, Tensor],
    shape: tuple[int, ...],
    example: Any = None,
    reasons: Mapping[str, str] | None = None,
) -> Cost:
    """Count weights and multiply-accumulates in one forward pass of an input of `shape`.

    Counted parameters without a mask are not pruned; reasons: why, default as `left_whole` finds. example: as for `layer_macs`.
    """
    parameters, reasons = dict(net.named_parameters()), left_whole(net, masks) if reasons is None else reasons
    shapes = {name: tuple(parameters[name].shape) for name in (*masks, *reasons)}
    macs = layer_macs(net, shapes, shape, example)
    alive = {name: int(mask.count_nonzero()) for name, mask in masks.items()}
    numel, operations = sum(map(math.prod, shapes.values())), sum(macs.values())
    whole = [
        Whole(name, why, (size := math.prod(shapes[name])), size / numel, macs[name], macs[name] / max(1, operations))
        for name, why in reasons.items()
    ]
    return Cost(
        weights=sum(mask.numel() for mask in masks.values()),
        kept=sum(alive.values()),
        macs=operations,
        kept_macs=round(sum(macs[name] * (alive[name] / mask.numel()) for name, mask in masks.items()))
        + sum(one.macs for one in whole),
        left_whole=whole,
    )


def in_words(whole: Sequence[Whole]) -> str:
    """One line about the parameters not pruned, with their fractions of parameters and multiply-accumulates."""
    names: dict[str, list[str]] = {}
    for one in whole:
        names.setdefault(one.why, []).append(one.name)
    parts = [f"{_listed(found)} ({why})" for why, found in names.items()]
    parameters, macs = sum(one.parameters_share for one in whole), sum(one.macs_share for one in whole)
    return f"not pruned: {'; '.join(parts)}: {parameters:.1%} of the parameters, {macs:.1%} of the multiply-accumulates"


def _listed(names: Sequence[str], shown: int = 3) -> str:
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


@torch.no_grad()
def layer_macs(
    net: nn.Module, weights: Mapping[str, Sequence[int]], shape: tuple[int, ...], example: Any = None
) -> dict[str, int]:
    """Multiply-accumulates of each weight for one input of `shape`, zeros included. weights: shapes by name.

    example: inputs of two items, as `nets.call` passes them; default: zeros (2, *shape).
    """
    owners: dict[str, list[str]] = {}
    for name in weights:
        owners.setdefault(name.rpartition(".")[0], []).append(name)
    macs = dict.fromkeys(weights, 0)

    def count(owner: str) -> Any:
        def hook(module: nn.Module, args: Any, named: Any, out: Any) -> None:
            names = owners[owner]
            if isinstance(module, nn.MultiheadAttention):
                prefix = f"{owner}." if owner else ""
                for own, tokens in _tokens(module, args, named, out[0]).items():
                    if prefix + own in macs:
                        macs[prefix + own] += round(tokens * math.prod(weights[prefix + own]))
            elif isinstance(module, nn.RNNBase | nn.RNNCellBase):  # every weight once for each time step
                for name in names:
                    macs[name] += _steps(out) * math.prod(weights[name])
            elif isinstance(out, Tensor) and len(names) == 1 and names[0].endswith("weight") and not _looks_up(module):
                dims = weights[names[0]]
                by_inputs = len(dims) == 2 and out.shape[-1] == dims[1] != dims[0]  # as the Conv1D of transformers stores them
                outputs = dims[1] if by_inputs or getattr(module, "transposed", False) else dims[0]
                macs[names[0]] += out.numel() // outputs * math.prod(dims)

        return hook

    device, was_training = next(net.parameters()).device, net.training
    # Two: a dynamic layer leaves out filters for one.
    inputs = torch.zeros(2, *shape, device=device) if example is None else moved(example, device)
    handles = [net.get_submodule(owner).register_forward_hook(count(owner), with_kwargs=True) for owner in owners]
    try:
        with without_fused_attention():  # torch does not count the fused operation
            call(net.eval(), inputs)
            for handle in handles:
                handle.remove()
            if silent := [name for name, found in macs.items() if not found]:
                macs |= _by_operation(net, silent, inputs)
    finally:
        net.train(was_training)
        for handle in handles:
            handle.remove()
    return {name: count // length_of(inputs) for name, count in macs.items()}


def _tokens(module: nn.MultiheadAttention, args: Any, named: Any, out: Tensor) -> dict[str, float]:
    """How often each weight of an attention layer is used: once for each query, key or value. out: (..., width)."""
    given = dict(zip(("query", "key", "value"), args, strict=False)) | named
    query = out.numel() // module.embed_dim
    key, value = (given[name].numel() // given[name].shape[-1] if name in given else query for name in ("key", "value"))
    uses: dict[str, float] = {"q_proj_weight": query, "k_proj_weight": key, "v_proj_weight": value, "out_proj.weight": query}
    return {**uses, "in_proj_weight": (query + key + value) / 3}  # a third of its rows each


def _looks_up(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding | nn.EmbeddingBag)


def _steps(out: Any) -> int:
    """The number of time steps, over all sequences, in the outputs of a recurrent layer or cell."""
    out = out[0] if isinstance(out, tuple) and not isinstance(out, PackedSequence) else out
    out = out.data if isinstance(out, PackedSequence) else out
    return int(out.numel() // out.shape[-1])


class _Operations(TorchDispatchMode):
    """Counts the multiply-accumulates of operations on the given tensors or their views, by tensor name."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = {tensor.untyped_storage().data_ptr(): name for name, tensor in tensors.items()}
        self.found: dict[str, int] = dict.fromkeys(tensors, 0)
        from torch.utils.flop_counter import flop_registry  # here, since it imports triton

        self.formulas = flop_registry

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (count := self.formulas.get(func._overloadpacket)) is not None:
            places = [arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, Tensor)]
            if name := next((self.names[place] for place in places if place in self.names), None):
                self.found[name] += count(*args, **(kwargs or {}), out_val=out) // 2
        return out


def _by_operation(net: nn.Module, names: Sequence[str], inputs: Any) -> dict[str, int]:
    """Multiply-accumulates of weights whose modules are not called, counted by torch's FLOP formulas."""
    parameters = dict(net.named_parameters())
    with _Operations({name: parameters[name] for name in names}) as mode:
        call(net, inputs)
    found: dict[str, int] = mode.found
    return found


def chosen_macs(net: nn.Module, example: Any, run: Callable[[], object]) -> dict[str, int]:
    """`kept_macs` of a dynamic network: the mean MACs of one of the inputs that `run` passes through it.

    Those of the filters that win, on channels that are not zero, and those of the gates; layers without one in full.
    Empty for a network without gates; `run` is then not called.
    """
    layers, chosen = gated_layers(net), dict[str, list[Tensor]]()
    if not layers:
        return {}

    def count(name: str) -> Any:
        def hook(gate: Gate, inputs: tuple[Tensor], saliency: Tensor) -> None:
            live, won = inputs[0].ne(0), gate.choose(saliency).ne(0)
            chosen.setdefault(name, []).append(live.float().mean(1) * won.float().mean(1))

        return hook

    handles = [gated.gate.register_forward_hook(count(name)) for name, gated in layers.items()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    shares = {f"{name}.layer.weight": float(torch.cat(rows).double().mean()) for name, rows in chosen.items()}
    gates = sum(gated.gate.phi.numel() for gated in layers.values())
    return {"kept_macs": gates + round(sum(shares.get(name, 1.0) * macs for name, macs in all_macs(net, example).items()))}


def all_macs(net: nn.Module, example: Any) -> dict[str, int]:
    """Multiply-accumulates of every counted weight, prunable or not pruned, for one item of the inputs `example`."""
    weights = prunable(net)
    names, parameters = {*weights, *left_whole(net, weights)}, net.named_parameters()
    return layer_macs(
        net,
        {name: tuple(parameter.shape) for name, parameter in parameters if name in names},
        (),
        example,
    )
