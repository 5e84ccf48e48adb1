"""Export a subnetwork to a smaller or faster file: verified before it is written, and timed against the dense network."""

import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from subnet_search.artifact import Subnetwork
from subnet_search.core.errors import RunError, UserError
from subnet_search.core.nested import moved
from subnet_search.core.task_metrics import leading_in
from subnet_search.core.tensor_files import save_tensors, write_atomically
from subnet_search.data import Batches, in_order, prepare
from subnet_search.deploy.benchmark import advice, counts, measured, same_operations
from subnet_search.deploy.exported_network import Deployed
from subnet_search.deploy.formats import CHECKED, Made, Options, Stage, check_dynamic, check_format, check_runs, make, silent
from subnet_search.deploy.normalised import how_to_prepare, normalised, statistics
from subnet_search.deploy.onnx import input_names
from subnet_search.deploy.rebuild import data_of, network_of, split_of, statistics_outside, task_of_run
from subnet_search.nets import opened
from subnet_search.tasks import inputs_sent

TOLERANCE = 1e-4  # largest difference of logits, relative to the largest logit
HALF_TOLERANCE = 1e-2  # the same for 2:4, whose layers are in half precision


def export(
    subnetwork: Subnetwork,
    to: str,
    out: str | os.PathLike[str],
    *,
    network: nn.Module | str | None = None,
    data: Any = None,
    task: Any = None,
    split: Literal["val", "test"] = "val",
    batch: int = 16,
    threads: int = 1,
    recalibrate: int = 0,
    normalise: bool = False,
    latency: bool = True,
    seconds: float = 3.0,
    on_stage: Stage = silent,
) -> dict[str, Any]:
    """Export a subnetwork to the file `out` and return a record of sizes, operations and latencies.

    to            compact: channels that no weight reads are removed; csr, bsr, 2:4: linear and 1x1 layers are sparse where
                  that is faster; onnx: a model for ONNX Runtime, compact if possible; state-dict: the masked network's
                  tensors, with its names and shapes
    network       as for `evaluate`: needed when the file's network is not one of ours or torchvision's
    data          for `recalibrate` and onnx, when the data of the run was passed from Python
    task          for `recalibrate` and onnx, the run's task if it is one of your own
    split         for onnx, the split that the file is evaluated on: val or test
    batch         batch size for choosing sparse layers; also timed, in addition to 1, 16 and 256
    threads       CPU threads while timing
    recalibrate   number of training batches to compute new batch norm statistics from; 0: keep them
    normalise     the exported network normalises its inputs (pixels scaled to 0..1) itself; not for state-dict
    latency       False: time no forward passes (layers of csr, bsr and 2:4 are timed, since that chooses their form)
    seconds       time for one batch size; at least two passes are run
    on_stage      called with what is done now, such as the batch size that is timed

    `input` in the record describes how to prepare an input; mean and std are in the file too.
    An ONNX file is evaluated in ONNX Runtime after it is written: `evaluated` in the record has the `split`, the number of
    `items`, the `metric` that leads in the task, and its values for the `exported` and the `masked` network; or, as `error`,
    why it was not, as when the data of the run was passed from Python.
    The file is written only if the logits equal the masked network's within 1e-4 of the largest logit (2:4: 1e-2), on
    inputs of the run if its folder has them, otherwise on random inputs of their dtype and range. Raises UserError when the
    subnetwork cannot be exported in this format, RunError when the logits differ or the file cannot be written; an
    existing file is then unchanged.
    """
    _check(subnetwork, to, normalise, batch=batch, threads=threads, recalibrate=recalibrate)
    _check_data(to, data, task, split, recalibrate)
    origin = subnetwork.origin
    path, example = Path(out), subnetwork.inputs(2)
    _check_writable(path)
    masked = network_of(subnetwork, network).eval()
    how = how_to_prepare(origin, normalise, input_names(masked, example))
    if recalibrate:
        on_stage("recalibrating batch norm")
        _recalibrate(masked, subnetwork, data, task, recalibrate)
    if to == "2:4" and torch.cuda.is_available():
        masked.cuda()
    made = make(subnetwork, masked, to, Options(batch, threads, normalise, how, latency=latency, on_stage=on_stage))

    def front(net: nn.Module) -> nn.Module:
        return normalised(net, origin) if normalise else net

    runs = made.runs if to == "onnx" else front(made.runs)
    leading = leading_in(subnetwork.metrics)
    on_stage("comparing the outputs with the masked network's")
    record: dict[str, Any] = {
        "to": to,
        "unit": origin.unit,
        "input": how,
        "normalise": normalise,
        "normalisation": origin.normalisation,
        **{key: subnetwork.metrics.get(key) for key in (f"val_{leading}", f"test_{leading}")},  # of the run
        "difference": _check_outputs(masked, runs, to, subnetwork, normalise),
        "recalibrated": recalibrate,
        "whole": made.whole,
        "layers": [asdict(choice) for choice in made.layers],
        "dense_bytes": subnetwork.dense_bytes(),
        **counts(masked, made.plain, made.runs, example),
        "dynamic": origin.dynamic,
        "latency": [],
    }
    if origin.dynamic:
        record["kept_macs"] = subnetwork.metrics["kept_macs"]
    if latency:
        nets = {"dense": front(masked), **made.beside, "exported": runs}
        same = same_operations(opened(masked), made.plain, made.runs)
        record["latency"] = measured(nets, subnetwork.inputs, batch, threads, seconds, same=same, on_stage=on_stage)
    record["faster"] = any(row["faster"] for row in record["latency"]) if latency else None
    record["advice"] = None if record["faster"] is not False else advice(origin.unit, to, masked, example)
    _write(path, subnetwork, masked, made, record)
    if to == "onnx":
        record["evaluated"] = _evaluated(subnetwork, masked, runs, data, task, split, normalise, on_stage)
    return {**record, "bytes": path.stat().st_size, "file": str(path)}


def _check_data(to: str, data: Any, task: Any, split: str, recalibrate: int) -> None:
    """Raise UserError for data or a task that the export would not use, and for an unknown split."""
    if split not in ("val", "test"):
        raise UserError(f"split must be val or test, got {split!r}")
    if (data is not None or task is not None) and not recalibrate and to != "onnx":
        what = "data" if data is not None else "task"
        raise UserError(f"{what} is only used to recalibrate batch norm: set the number of batches, such as recalibrate=20")


def _evaluated(
    subnetwork: Subnetwork,
    masked: nn.Module,
    runs: nn.Module,
    data: Any,
    task: Any,
    split: Literal["val", "test"],
    normalise: bool,
    on_stage: Stage,
) -> dict[str, Any]:
    """The leading metric of an exported network and of the masked network on a split; or why it was not measured."""
    try:
        task = task_of_run(subnetwork, task)
        items = split_of(subnetwork, masked, data, task, split)
        on_stage(f"evaluating the file on {len(items):,} items of the {split} split")
        mean, std = statistics_outside(subnetwork)
        outside = (torch.zeros(1), torch.ones(1)) if normalise else (mean, std)
        with torch.no_grad():
            exported = task.measure(runs, in_order(items, *outside))
            own = task.measure(masked, in_order(items, mean, std))
    except (UserError, RunError) as error:  # the file is written
        return {"split": split, "error": str(error)}
    values = {"exported": exported[task.leading], "masked": own[task.leading]}
    return {"split": split, "items": len(items), "metric": task.leading, **values}


def _check(subnetwork: Subnetwork, to: str, normalise: bool, **counts: int) -> None:
    """Raise UserError for invalid arguments."""
    if not isinstance(subnetwork, Subnetwork):
        raise UserError(f"export needs a subnetwork, ss.Subnetwork.load(path), got {type(subnetwork).__name__}")
    check_format(to)
    check_dynamic(subnetwork.origin, to)
    if normalise and to == "state-dict":
        raise UserError(
            "normalise is not possible for state-dict, which has only the network's own tensors; "
            "mean and std are in the file's metadata"
        )
    if normalise:
        statistics(subnetwork.origin)
    for name, count in counts.items():
        if count < (least := 0 if name == "recalibrate" else 1):
            raise UserError(f"{name} must be at least {least}, got {count}")


def _check_writable(path: Path) -> None:
    """Raise UserError or RunError when the file cannot be written, before any work."""
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder: name the file to write")
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is a device: name the file to write")
        tempfile.TemporaryFile(dir=next(parent for parent in path.absolute().parents if parent.exists())).close()
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error


class _Prepared(nn.Module):
    """A network that takes pixels scaled to 0..1 and normalises them as in training, to compare with `normalised`."""

    def __init__(self, net: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.net, self.mean, self.std = net, mean, std
        self.train(net.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(prepare(255 * x, x.new_tensor(self.mean), x.new_tensor(self.std)))  # type: ignore[no-any-return]


def _check_outputs(masked: nn.Module, runs: nn.Module, to: str, subnetwork: Subnetwork, normalise: bool) -> float:
    """The largest difference of logits, relative to the largest logit. Raises RunError when it is too large."""
    origin = subnetwork.origin
    inputs = moved(subnetwork.inputs(CHECKED), next(masked.parameters()).device)
    if normalise:
        mean, std = (inputs.new_tensor(values).view(-1, 1, 1) for values in statistics(origin))
        inputs, masked = (inputs * std + mean).clamp(0, 1), _Prepared(masked, *statistics(origin))
    difference = check_runs(subnetwork, masked, runs, to, inputs)
    if not difference <= (HALF_TOLERANCE if to == "2:4" else TOLERANCE):
        raise RunError(f"not exported: the logits of {to} differ from the masked network's by {difference:.2g} of the largest")
    return difference


def _recalibrate(net: nn.Module, subnetwork: Subnetwork, data: Any, task: Any, batches: int) -> None:
    """Set batch norm statistics to their mean over this number of training batches. Raises UserError without batch norm."""
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        raise UserError("this network has no batch norm to recalibrate")
    origin, task = subnetwork.origin, task_of_run(subnetwork, task)
    mean, std = (None if t is None else torch.tensor(t) for t in (origin.mean, origin.std))
    given = data_of(subnetwork, data, task)
    task = task.fitted(given, "cpu")
    inputs_sent(net, task, given.first(), outputs=task.outputs(given))  # raises UserError where the data does not fit
    source = Batches(given.train, mean, std, origin.recipe["batch_size"], origin.seed)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative mean
        norm.train()
    with torch.no_grad():
        for step in range(batches):
            task.loss(net, source.batch(step))
    net.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _write(path: Path, subnetwork: Subnetwork, masked: nn.Module, made: Made, record: dict[str, Any]) -> None:
    match record["to"]:
        case "onnx":
            write_atomically(path, made.model)
        case "state-dict":
            about = {"network": subnetwork.summary()["network"], "normalisation": record["normalisation"]}
            save_tensors(path, masked.state_dict(), {"format": 2, **about, "input": record["input"]})
        case to:
            metrics, normalise = {**subnetwork.summary(), "export": record}, record["normalise"]
            deployed = Deployed.of(made.runs, masked, subnetwork.origin, to, metrics, normalise)
            _check_outputs(masked.cpu(), deployed.on(masked), to, subnetwork, normalise)  # rebuilt as when it is loaded
            deployed.save(path)
