"""What a network weighs and takes beside the dense one it came from, and what would be faster where it is not."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from subnet_search.artifact.subnetwork import Subnetwork
from subnet_search.core.errors import RunError, UserError
from subnet_search.core.timing import Latency
from subnet_search.deploy.sparse_layers import Sparse
from subnet_search.evaluation import cost
from subnet_search.evaluation.cost import all_macs
from subnet_search.evaluation.latency import latencies
from subnet_search.nets import gated_layers, prunable
from subnet_search.structure.compact import compact

BATCHES = (1, 16, 256)  # that are measured
FASTER = 1.05  # a speedup below this is none


def counts(masked: nn.Module, plain: nn.Module, runs: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """Prunable weights and multiply-accumulates (MACs) for one input of `shape`, of the dense network and of the exported.

    masked: the dense network with zeros; plain: what is left of it, of dense layers; runs: the same, some layers sparse
    weights, macs: that are stored, and done; kept, kept_macs: those of a weight that is not zero
    """
    before, after = (cost(net, {name: w.ne(0) for name, w in prunable(net).items()}, shape) for net in (masked, plain))
    share = {f"{name}.weight": module.multiplied for name, module in runs.named_modules() if isinstance(module, Sparse)}
    return {
        "dense_weights": before.weights,
        "weights": sum(round(share.get(name, 1) * weight.numel()) for name, weight in prunable(plain).items()),
        "kept": after.kept,
        "dense_macs": before.macs,
        "dense_kept_macs": before.kept_macs,
        "macs": sum(round(share.get(name, 1) * macs) for name, macs in all_macs(plain, shape).items()),
        "kept_macs": after.kept_macs,
    }


def without_dead(masked: nn.Module, subnetwork: Subnetwork) -> nn.Module:
    """What is timed of a masked network: where channels are the units, it without those that nothing reads."""
    if subnetwork.origin.unit == "channel":
        with suppress(UserError, RunError):  # none is gone, or they cannot be taken out: then they take their time
            return compact(masked, subnetwork.inputs(2).to(next(masked.parameters()).device))
    return masked


def measured(
    nets: Mapping[str, nn.Module],
    inputs: Callable[[int], Tensor],
    batch: int = 1,
    threads: int = 1,
    seconds: float = 1.0,
) -> list[dict[str, Any]]:
    """A row for every batch size, 1, 16, 256 and `batch`: milliseconds of each network, a pass of each in turn.

    nets: `dense`, `exported`, and others; `speedup` is of the former two. `verdict` is `faster` or `slower` where that is
    beyond the spread of both, `as fast` where there is next to no difference, and else `unsure`.
    inputs: gives as many as it is asked for
    """
    rows = []
    for size in sorted({*BATCHES, batch}):
        given = inputs(size)
        found = latencies([*nets.values()], tuple(given.shape[1:]), size, threads, inputs=given, seconds=seconds, passes=50)
        times = dict(zip(nets, found, strict=True))
        dense, exported = times["dense"], times["exported"]
        verdict = compared(dense, exported)
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


def compared(dense: Latency, exported: Latency) -> str:
    """Whether one is faster than the other, in a word: by their medians, and only where their quartiles are apart."""
    speedup = dense.median / exported.median
    if speedup >= FASTER and exported.high < dense.low:
        return "faster"
    if speedup <= 1 / FASTER and dense.high < exported.low:
        return "slower"
    return "as fast" if 1 / FASTER < speedup < FASTER else "unsure"


def advice(unit: str, to: str, masked: nn.Module, shape: tuple[int, ...]) -> str:
    """Which unit or format would be faster, for a subnetwork found by `unit` that is not as `to`."""
    if gated_layers(masked):
        return (
            "filters that an input does not choose save time at batch 1, where layers are large; unit=channel does at any batch"
        )
    macs, weights = all_macs(masked, shape), prunable(masked)
    pointwise = sum(count for name, count in macs.items() if masked.get_parameter(name).shape[2:].numel() == 1)
    if unit == "channel":
        if to in ("compact", "onnx"):
            return "too few channels went for layers of this size: a lower density or round_to=16 would be faster"
        return "--to compact takes out the channels that went, which is what is faster"
    if 2 * pointwise < sum(macs.values()):
        return "weights that are zero make a convolution no faster: unit=channel and --to compact would"
    alive = sum(int(weight.count_nonzero()) for weight in weights.values()) / sum(w.numel() for w in weights.values())
    if alive > 0.2 or to in ("csr", "bsr"):
        return (
            "sparse layers are faster where they are large and nine in ten of their weights are zero; "
            "unit=channel and --to compact would be at other densities too"
        )
    return "zeros make a dense layer no faster: where it is large, --to csr would, or unit=block:16 and --to bsr"
