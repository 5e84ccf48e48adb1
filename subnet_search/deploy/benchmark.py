"""Compare an exported network with the dense one: weights, operations, latency; and advice when it is not faster."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from torch import nn

from subnet_search.artifact.subnetwork import Subnetwork
from subnet_search.core.errors import RunError, UserError
from subnet_search.core.nested import moved
from subnet_search.core.timing import Latency
from subnet_search.deploy.sparse_layers import Sparse
from subnet_search.evaluation import cost
from subnet_search.evaluation.cost import all_macs
from subnet_search.evaluation.latency import latencies
from subnet_search.nets import gated_layers, inputs_first, prunable
from subnet_search.structure.compact import compact

BATCHES = (1, 16, 256)  # measured batch sizes
FASTER = 1.05  # minimum ratio of medians for `faster` or `slower`


def counts(masked: nn.Module, plain: nn.Module, runs: nn.Module, example: Any) -> dict[str, Any]:
    """Prunable weights and multiply-accumulates (MACs) for one input, of the dense and the exported network.

    masked: the dense network with zeros. plain: the exported network with dense layers. runs: the exported network.
    `weights` and `macs` are stored and computed; `kept` and `kept_macs` are those of nonzero weights. `channels` has the
    numbers of outputs of the layers that lost some: (kept, dense).
    """
    before, after = (cost(net, {name: w.ne(0) for name, w in prunable(net).items()}, (), example) for net in (masked, plain))
    stored = {f"{name}.weight": module.multiplied for name, module in runs.named_modules() if isinstance(module, Sparse)}
    dense, left, swapped = prunable(masked), prunable(plain), inputs_first(masked)
    outputs = {
        name: (left[name].shape[name in swapped], weight.shape[name in swapped])
        for name, weight in dense.items()
        if name in left
    }
    return {
        "channels": {name.removesuffix(".weight"): [kept, all_] for name, (kept, all_) in outputs.items() if kept != all_},
        "dense_weights": before.weights,
        "weights": sum(round(stored.get(name, 1) * weight.numel()) for name, weight in left.items()),
        "kept": after.kept,
        "dense_macs": before.macs,
        "dense_kept_macs": before.kept_macs,
        "macs": sum(round(stored.get(name, 1) * macs) for name, macs in all_macs(plain, example).items()),
        "kept_macs": after.kept_macs,
    }


def without_dead(masked: nn.Module, subnetwork: Subnetwork) -> nn.Module:
    """The network to time for a subnetwork: with channels as units, the compact network; otherwise the masked network."""
    if subnetwork.origin.unit == "channel":
        with suppress(UserError, RunError):  # no channel can be removed: time the masked network
            example = moved(subnetwork.inputs(2), next(masked.parameters()).device)
            return compact(masked, example, every=subnetwork.origin.every_output)
    return masked


def measured(
    nets: Mapping[str, nn.Module],
    inputs: Callable[[int], Any],
    batch: int = 1,
    threads: int = 1,
    seconds: float = 1.0,
    *,
    same: bool = False,
    on_stage: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Latency of several networks, timed alternately: a row for each of the batch sizes 1, 16, 256 and `batch`.

    nets: `dense`, `exported`, and others. inputs: a function from the batch size to inputs (batch, ...).
    same: both have the same operations (`same_operations`), so that the verdict is `same`, whatever the times.
    on_stage: called with what is timed now.
    Rows: `batch`, `threads`, a `Latency` (milliseconds) for each network, `speedup` (dense / exported), `faster`, and
    `verdict` as by `compared`.
    """
    rows = []
    sizes = sorted({*BATCHES, batch})
    for number, size in enumerate(sizes, 1):
        if on_stage:
            on_stage(f"timing forward passes at batch {size}, {number} of {len(sizes)} batch sizes")
        given = inputs(size)
        found = latencies([*nets.values()], (), size, threads, inputs=given, seconds=seconds, passes=50)
        times = dict(zip(nets, found, strict=True))
        dense, exported = times["dense"], times["exported"]
        verdict = "same" if same else compared(dense, exported)
        rows.append(
            {
                "batch": size,
                "threads": threads,
                **{name: asdict(time) for name, time in times.items()},
                "speedup": dense.median / exported.median,
                "verdict": verdict,
                "faster": verdict == "faster",
            }
        )
    return rows


def same_operations(dense: nn.Module, plain: nn.Module, runs: nn.Module) -> bool:
    """Whether a network has all operations of the dense one, so that a difference of their times is chance.

    plain, runs: the exported network with dense layers, and as it runs; for several forms of one network.
    """
    before, after = ([tuple(tensor.shape) for tensor in net.state_dict().values()] for net in (dense, plain))
    return before == after and not any(isinstance(module, Sparse) for module in runs.modules())


def compared(dense: Latency, exported: Latency) -> str:
    """The exported network is `faster`, `slower`, `as fast` or `unsure`.

    By the ratio of medians; `faster` and `slower` only when the quartile ranges do not overlap.
    """
    speedup = dense.median / exported.median
    if speedup >= FASTER and exported.high < dense.low:
        return "faster"
    if speedup <= 1 / FASTER and dense.high < exported.low:
        return "slower"
    return "as fast" if 1 / FASTER < speedup < FASTER else "unsure"


def advice(unit: str, to: str, masked: nn.Module, example: Any) -> str:
    """Advice for a subnetwork of `unit` that is not faster when exported to `to`: which unit or format would be faster."""
    if gated_layers(masked):
        return (
            "filters that an input does not choose save time at batch 1, where layers are large; unit=channel does at any batch"
        )
    macs, weights = all_macs(masked, example), prunable(masked)
    pointwise = sum(count for name, count in macs.items() if masked.get_parameter(name).shape[2:].numel() == 1)
    if unit == "channel":
        if to in ("compact", "onnx"):
            return "too few channels were removed for layers of this size: try a lower density or round_to=16"
        return "use --to compact, which removes the pruned channels"
    if 2 * pointwise < sum(macs.values()):
        return "zero weights do not make a convolution faster: use unit=channel and --to compact"
    alive = sum(int(weight.count_nonzero()) for weight in weights.values()) / sum(w.numel() for w in weights.values())
    if alive > 0.2 or to in ("csr", "bsr"):
        return (
            "sparse layers are faster only if they are large and about 90 % of their weights are zero; "
            "otherwise use unit=channel and --to compact"
        )
    return "zero weights do not make a dense layer faster: for large layers use --to csr, or unit=block:16 and --to bsr"
