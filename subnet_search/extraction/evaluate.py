"""Evaluate a subnetwork or an exported network: accuracy, calibration, robustness, isometry, cost, latency."""

from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from subnet_search.artifact import Subnetwork
from subnet_search.core.errors import UserError, shown
from subnet_search.data import in_order
from subnet_search.deploy.benchmark import advice, measured, same_operations, without_dead
from subnet_search.deploy.exported_network import Artifact
from subnet_search.deploy.formats import Stage, silent
from subnet_search.deploy.normalised import Normalised, normalised
from subnet_search.deploy.onnx_file import OnnxFile
from subnet_search.deploy.rebuild import (
    check_given,
    dense_of,
    network_of,
    split_of,
    statistics_outside,
    task_of_run,
    training_data_of,
)
from subnet_search.evaluation.corruption_files import benchmark_mean
from subnet_search.evaluation.cost import chosen_macs
from subnet_search.evaluation.items import interval
from subnet_search.evaluation.robustness import check_noise, corruption_table, noise_curve
from subnet_search.extraction.against import (
    Against,
    Ready,
    check_alike,
    compared,
    corrupted_files,
    other_network,
    passed_module,
    reference,
)
from subnet_search.extraction.ensemble import Drawn, check_drawable, ensemble_record
from subnet_search.extraction.isometry import isometry_inputs, isometry_record
from subnet_search.extraction.refit import with_readout
from subnet_search.nets import opened
from subnet_search.tasks import Classification, Task
from subnet_search.training.readout import Readout


def evaluate(
    subnetwork: Artifact,
    split: Literal["val", "test"] = "val",
    *,
    network: nn.Module | str | None = None,
    data: Any = None,
    task: Any = None,
    noise: bool = False,
    corruptions: bool | str | Path = False,
    latency: bool = False,
    against: Against | None = None,
    isometry: bool = False,
    readout: Readout | None = None,
    readout_penalty: float | None = None,
    readout_layer: str | None = None,
    ensemble: int | None = None,
    seed: int = 0,
    on_stage: Stage = silent,
) -> dict[str, Any]:
    """Evaluate on one split of the data; returns the record of the run with the new measurements.

    network       a module or `package.module:factory`; needed if the network is neither built in nor from torchvision
    data          another data set than the run's; images are normalised as in the run. Of data from Python without parts, the
                  split "test" is all of it
    task          the run's task, if it is one of your own: an object, or `package.module:Name`
    noise         add accuracy under uniform noise; for classification
    corruptions   add accuracy under common corruptions, by kind and severity; for classification. A folder: on the corrupted
                  images of its files, those of CIFAR-10-C, instead of images of the split
    latency       add medians and quartiles of a forward pass in milliseconds, at batch sizes 1, 16 and 256 on one CPU
                  thread, alternating with the dense network. With `unit: channel`, dead channels are removed first
                  (`compacted`). Not of an ONNX file
    against       another network to compare with on the same items: a subnetwork or an exported network, the file of one, a
                  file with a state dict of the dense network, a module, or "dense": the network with the trained weights that
                  the run started from. Adds `against` (see `extraction.against.compared`), and to the rows of `noise` the
                  agreement and the functional distance
    isometry      add the mean singular value of the input-output Jacobian over the first 128 items, also of the trained
                  network before pruning where its weights are known (`dense_isometry`); for float inputs
    readout       "ridge": first solve the last layer by ridge regression on the training items of the data;
                  "forward_ridge": one linear layer after another. Adds `readout`; the file is not changed. readout_penalty,
                  readout_layer: as in a recipe
    ensemble      also draw this many networks, from relevance or weight statistics in the file, and average their predictions:
                  adds `ensemble` (see docs/ensembles.md)
    seed          of the draws
    on_stage      called with what is timed now

    Under `interval` is the 95 % bootstrap interval of the leading metric of a built-in task, over the items; for
    classification, `calibration` has the rows of a reliability diagram.

    Raises UserError if the split does not exist, or the network and data do not match.
    """
    if split not in ("val", "test"):
        raise UserError(f"split must be val or test, got {split!r}")
    if not isinstance(subnetwork, Artifact):
        raise UserError(f"evaluate takes a subnetwork, ss.Subnetwork.load(path), got {shown(subnetwork)}")
    origin = subnetwork.origin
    if latency and isinstance(subnetwork, OnnxFile):
        raise UserError("export measures the latency of an ONNX file, beside that of the dense network in ONNX Runtime")
    check_given(subnetwork, network, data, task)
    task = task_of_run(subnetwork, task)
    how: dict[str, Any] = {}
    if ensemble is not None and readout is not None:
        raise UserError("members of an ensemble have the last layer that they were drawn with: leave readout out")
    if ensemble is not None:
        check_drawable(subnetwork, ensemble, task)
    if readout is not None:
        subnetwork, how = _refitted(subnetwork, network, data, task, split, readout, readout_layer, readout_penalty)
    net = network_of(subnetwork, network).eval()
    if (noise or corruptions) and not isinstance(task, Classification):
        raise UserError(f"accuracy under noise and corruptions needs the task classification, got {task.name}")
    if (noise or corruptions) and isinstance(subnetwork, OnnxFile) and subnetwork.normalise:
        raise UserError("noise is added to normalised images, and this ONNX file normalises: export it without --normalise")
    chosen = split_of(subnetwork, net, data, task, split)
    if noise:
        check_noise(chosen)
    this = Ready(net, origin, "the subnetwork", statistics_outside(subnetwork))
    inner, mean, std = this.inner, this.mean, this.std  # noise is added to normalised images
    files = corrupted_files(corruptions, origin, chosen)
    other = None if against is None else other_network(against, subnetwork, network)
    if other:
        check_alike(task, this, other)
    compare_with = reference(this, other) if other and noise else None
    more = {}
    if isometry:
        if isinstance(subnetwork, OnnxFile):
            raise UserError("ONNX Runtime gives no gradients: measure the isometry of the subnetwork's own file")
        inputs = isometry_inputs(inner, task, in_order(chosen, mean, std))
        own = passed_module(subnetwork, network)
        more = isometry_record(subnetwork, inner, dense_of(subnetwork, network), own, inputs)
    drawn = None
    if ensemble is not None and isinstance(subnetwork, Subnetwork):
        own, given = passed_module(subnetwork, network), training_data_of(subnetwork, data, task, split)
        drawn = Drawn.of(subnetwork, dense_of(subnetwork, network), own, task, given, seed)
    measure = cache(partial(this.measure, task, chosen))  # once
    macs = chosen_macs(net, subnetwork.inputs(2), measure)
    found, items = measure()
    record = {**subnetwork.summary(), "split": split, "items": len(chosen), **found, **more, **how, **macs}
    if items is not None:
        record["interval"] = interval(items)
    if other:
        record["against"] = compared(task, (found, items), other.measure(task, chosen), other.name)
    if drawn and ensemble:
        record["ensemble"] = ensemble_record(drawn, (found, items), chosen, ensemble)
    if noise:
        record["noise"] = noise_curve(inner, compare_with, chosen, mean, std)
    if files:
        record["corruptions"] = files.table(inner, mean, std)
        record["corrupted_accuracy"] = benchmark_mean(record["corruptions"])
    elif corruptions:
        record["corruptions"] = corruption_table(inner, chosen, mean, std)
    if latency:
        record |= _timed(subnetwork, dense_of(subnetwork, network), net, on_stage)
    return record


def _refitted(
    subnetwork: Artifact,
    network: nn.Module | str | None,
    data: Any,
    task: Task,
    split: Literal["val", "test"],
    readout: Readout,
    layer: str | None,
    penalty: float | None,
) -> tuple[Subnetwork, dict[str, Any]]:
    """The subnetwork with a readout, and the record of it under `readout`."""
    if readout not in get_args(Readout):
        raise UserError(f"readout must be {' or '.join(get_args(Readout))}, got {shown(readout)}")
    if penalty is not None and not penalty > 0:
        raise UserError(f"readout_penalty must be above 0, got {penalty:g}")
    if not isinstance(subnetwork, Subnetwork):
        raise UserError("an exported network keeps its last layer: evaluate the readout of the subnetwork's own file")
    given, net = training_data_of(subnetwork, data, task, split), network_of(subnetwork, network)
    found, record = with_readout(subnetwork, net, given, task, kind=readout, layer=layer, penalty=penalty)
    return found, {"readout": record}


def _timed(subnetwork: Artifact, dense: nn.Module, net: nn.Module, on_stage: Stage) -> dict[str, Any]:
    """Latencies of both networks, whether this one is faster, and advice if it is not."""
    origin, exported = subnetwork.origin, not isinstance(subnetwork, Subnetwork)
    timed = without_dead(net, subnetwork) if isinstance(subnetwork, Subnetwork) else net
    plain = opened(dense)  # a dynamic network without its gates
    if isinstance(net, Normalised):
        plain = normalised(plain, origin)
    same = same_operations(plain, timed, timed)
    rows = measured({"dense": plain, "exported": timed}, subnetwork.inputs, same=same, on_stage=on_stage)
    faster = any(row["faster"] for row in rows)
    return {
        "compacted": timed is not net,
        "latency": rows,
        "faster": faster,
        "advice": None if faster or exported else advice(origin.unit, "compact", net, subnetwork.inputs(2)),
    }
