"""Export a subnetwork to a smaller or faster file: verified before it is written, and timed against the dense network."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from subnet_search.artifact import Subnetwork
from subnet_search.core.errors import RunError, UserError, unknown
from subnet_search.core.nested import moved
from subnet_search.core.task_metrics import leading_in
from subnet_search.core.tensor_files import save_tensors, write_atomically
from subnet_search.data import Batches, prepare
from subnet_search.deploy.benchmark import advice, counts, measured
from subnet_search.deploy.exported_network import Deployed
from subnet_search.deploy.normalised import how_to_prepare, normalised, statistics
from subnet_search.deploy.onnx import OnnxNetwork, check_installed, input_names, to_onnx
from subnet_search.deploy.rebuild import data_of, network_of, task_of_run
from subnet_search.deploy.sparse import BLOCK, Choice, sparsify
from subnet_search.deploy.sparse_layers import Kind
from subnet_search.nets import opened
from subnet_search.structure.compact import compact, difference_between
from subnet_search.tasks import inputs_sent
from subnet_search.topology.units import parse

FORMATS = ("compact", "csr", "bsr", "2:4", "onnx", "state-dict")
TOLERANCE = 1e-4  # largest difference of logits, relative to the largest logit
HALF_TOLERANCE = 1e-2  # the same for 2:4, whose layers are in half precision
CHECKED = 7  # inputs for the comparison
_Front = Callable[[nn.Module], nn.Module]


@dataclass(frozen=True)
class _Made:
    """The exported forms of a masked network."""

    plain: nn.Module  # with dense layers only, channels removed
    runs: nn.Module  # the network in the file
    beside: Mapping[str, nn.Module] = field(default_factory=dict)  # others to time; `dense` replaces the masked network
    model: bytes = b""  # serialised ONNX model
    layers: tuple[Choice, ...] = ()
    whole: str | None = None  # reason why no channel was removed


def export(
    subnetwork: Subnetwork,
    to: str,
    out: str | os.PathLike[str],
    *,
    network: nn.Module | str | None = None,
    data: Any = None,
    task: Any = None,
    batch: int = 16,
    threads: int = 1,
    recalibrate: int = 0,
    normalise: bool = False,
    seconds: float = 3.0,
) -> dict[str, Any]:
    """Export a subnetwork to the file `out` and return a record of sizes, operations and latencies.

    to            compact: channels that no weight reads are removed; csr, bsr, 2:4: linear and 1x1 layers are sparse where
                  that is faster; onnx: a model for ONNX Runtime, compact if possible; state-dict: the masked network's
                  tensors, with its names and shapes
    network       as for `evaluate`: needed when the file's network is not one of ours or torchvision's
    data          for `recalibrate`, when the data of the run was passed from Python
    task          for `recalibrate`, the run's task if it is one of your own
    batch         batch size for choosing sparse layers; also timed, in addition to 1, 16 and 256
    threads       CPU threads while timing
    recalibrate   number of training batches to compute new batch norm statistics from; 0: keep them
    normalise     the exported network normalises its inputs (pixels scaled to 0..1) itself; not for state-dict
    seconds       time for one batch size; at least two passes are run

    `input` in the record describes how to prepare an input; mean and std are in the file too.
    The file is written only if the logits equal the masked network's within 1e-4 of the largest logit (2:4: 1e-2), on
    inputs of the run if its folder has them, otherwise on random inputs of their dtype and range. Raises UserError when the
    subnetwork cannot be exported in this format, RunError when the logits differ or the file cannot be written; an
    existing file is then unchanged.
    """
    _check(subnetwork, to, normalise, batch=batch, threads=threads, recalibrate=recalibrate)
    if (data is not None or task is not None) and not recalibrate:
        what = "data" if data is not None else "task"
        raise UserError(f"{what} is only used to recalibrate batch norm: set the number of batches, such as recalibrate=20")
    path, example = Path(out), subnetwork.inputs(2)
    _check_writable(path)
    masked = network_of(subnetwork, network).eval()
    how = how_to_prepare(subnetwork.origin, normalise, input_names(masked, example))
    if recalibrate:
        _recalibrate(masked, subnetwork, data, task, recalibrate)
    if to == "2:4" and torch.cuda.is_available():
        masked.cuda()
    front = partial(normalised, origin=subnetwork.origin) if normalise else _unchanged
    made = _make(subnetwork, masked, to, batch, threads, front, how)
    runs = made.runs if to == "onnx" else front(made.runs)
    nets = {"dense": front(masked), **made.beside, "exported": runs}
    leading = leading_in(subnetwork.metrics)
    record: dict[str, Any] = {
        "to": to,
        "unit": subnetwork.origin.unit,
        "input": how,
        "normalise": normalise,
        "normalisation": subnetwork.origin.normalisation,
        **{key: subnetwork.metrics.get(key) for key in (f"val_{leading}", f"test_{leading}")},  # of the run
        "difference": _check_outputs(masked, runs, to, subnetwork, normalise),
        "recalibrated": recalibrate,
        "whole": made.whole,
        "layers": [asdict(choice) for choice in made.layers],
        "dense_bytes": subnetwork.dense_bytes(),
        **counts(masked, made.plain, made.runs, example),
        "dynamic": subnetwork.origin.dynamic,
        "latency": measured(nets, subnetwork.inputs, batch, threads, seconds),
    }
    if subnetwork.origin.dynamic:
        record["kept_macs"] = subnetwork.metrics["kept_macs"]
    record["faster"] = any(row["faster"] for row in record["latency"])
    record["advice"] = None if record["faster"] else advice(subnetwork.origin.unit, to, masked, example)
    _write(path, subnetwork, masked, made, record)
    return {**record, "bytes": path.stat().st_size, "file": str(path)}


def _unchanged(net: nn.Module) -> nn.Module:
    return net


def check_format(to: str) -> None:
    """Raise UserError for an unknown format, and when the packages that write it are missing."""
    if to not in FORMATS:
        raise unknown("format", to, FORMATS)
    if to == "onnx":
        check_installed()


def _check(subnetwork: Subnetwork, to: str, normalise: bool, **counts: int) -> None:
    """Raise UserError for invalid arguments."""
    if not isinstance(subnetwork, Subnetwork):
        raise UserError(f"export needs a subnetwork, ss.Subnetwork.load(path), got {type(subnetwork).__name__}")
    check_format(to)
    if subnetwork.origin.dynamic and to not in ("state-dict", "onnx"):
        raise UserError(
            f"each input of this network chooses its filters ({subnetwork.origin.extractor['name']}), so none can go: "
            "--to state-dict keeps the gates; with another method, unit=channel and --to compact drop filters for all inputs"
        )
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


def _make(subnetwork: Subnetwork, masked: nn.Module, to: str, batch: int, threads: int, front: _Front, how: str) -> _Made:
    match to:
        case "state-dict":
            return _Made(masked, masked, {"dense": opened(masked)})
        case "compact":
            small = compact(masked, subnetwork.inputs(2), every=subnetwork.origin.every_output)
            return _Made(small, small)
        case "onnx":
            return _onnx(subnetwork, masked, threads, front, how)
        case "csr":
            return _sparse(subnetwork, *_smaller(subnetwork, masked), "csr", batch, threads)
        case "bsr":
            why = "removing channels would break up its blocks"
            return _sparse(subnetwork, masked, why, "bsr", batch, threads)
        case _:
            why = "removing channels would break up its groups of four"
            return _sparse(subnetwork, masked, why, "2:4", batch, threads)


def _onnx(subnetwork: Subnetwork, masked: nn.Module, threads: int, front: _Front, how: str) -> _Made:
    """front: adds the normalisation to the network and to those it is compared with. how: to prepare an input."""
    example = subnetwork.inputs(2)
    (small, whole), plain = _smaller(subnetwork, masked), opened(masked)
    every = subnetwork.origin.every_output
    model = to_onnx(front(small), example, _metadata(subnetwork, how, front is not _unchanged), every)
    dense = model if small is plain else to_onnx(front(plain), example, every=every)  # both are timed in ONNX Runtime
    beside = {"dense": OnnxNetwork(dense, threads), "dense in torch": front(plain)}
    return _Made(small, OnnxNetwork(model, threads), beside, model, whole=whole)


def _metadata(subnetwork: Subnetwork, how: str, built_in: bool) -> dict[str, str]:
    """Metadata of the ONNX model: how to prepare an input."""
    found = {"input": how}
    if subnetwork.origin.mean is not None:
        found |= {key: json.dumps(getattr(subnetwork.origin, key)) for key in ("mean", "std")}
        found["normalisation"] = "built in" if built_in else "to be done before"
    return found


def _sparse(subnetwork: Subnetwork, plain: nn.Module, whole: str | None, kind: Kind, batch: int, threads: int) -> _Made:
    origin, (unit, sizes) = subnetwork.origin, parse(subnetwork.origin.unit)
    example = moved(subnetwork.inputs(batch), next(plain.parameters()).device)
    try:
        runs, layers = sparsify(plain, kind, example, sizes[0] if unit == "block" else BLOCK, threads)
    except UserError as error:
        if kind == "2:4":
            raise
        raise UserError(f"{error}; {advice(origin.unit, kind, plain, subnetwork.inputs(2))}") from error
    return _Made(plain, runs, layers=layers, whole=whole)


def _smaller(subnetwork: Subnetwork, masked: nn.Module) -> tuple[nn.Module, str | None]:
    """The compact network and None; or the masked network and the reason (None for dynamic networks, which keep all)."""
    if subnetwork.origin.dynamic:
        return masked, None
    try:
        return compact(masked, subnetwork.inputs(2), every=subnetwork.origin.every_output), None
    except (UserError, RunError) as error:
        return masked, str(error)


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
    try:
        difference = difference_between(masked, runs, inputs, origin.every_output)
    except AttributeError as error:  # a sparse layer has no `weight`
        raise UserError(f"cannot export to {to}: the forward pass reads weights of its layers directly: {error}") from error
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


def _write(path: Path, subnetwork: Subnetwork, masked: nn.Module, made: _Made, record: dict[str, Any]) -> None:
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
