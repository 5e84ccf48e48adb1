"""A subnetwork as a file that is smaller or faster: tried before it is written, measured beside the dense network."""

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
from subnet_search.core.tensor_files import save_tensors, write_atomically
from subnet_search.data import Batches, prepare
from subnet_search.deploy.benchmark import advice, counts, measured
from subnet_search.deploy.exported_network import Deployed
from subnet_search.deploy.normalised import how_to_prepare, normalised, statistics
from subnet_search.deploy.onnx import OnnxNetwork, to_onnx
from subnet_search.deploy.rebuild import data_of, network_of
from subnet_search.deploy.sparse import BLOCK, Choice, sparsify
from subnet_search.deploy.sparse_layers import Kind
from subnet_search.nets import opened
from subnet_search.structure.compact import compact, difference_between
from subnet_search.topology.units import parse

FORMATS = ("compact", "csr", "bsr", "2:4", "onnx", "state-dict")
TOLERANCE = 1e-4  # between the logits, relative to the largest
HALF_TOLERANCE = 1e-2  # the same for 2:4, whose layers are in half precision
TRIED = 7  # inputs that both are given
_Front = Callable[[nn.Module], nn.Module]


@dataclass(frozen=True)
class _Made:
    """What was made of the masked network."""

    plain: nn.Module  # of dense layers alone, channels taken out
    runs: nn.Module  # what the file holds
    beside: Mapping[str, nn.Module] = field(default_factory=dict)  # what else is measured; `dense`: instead of the masked one
    model: bytes = b""  # of ONNX
    layers: tuple[Choice, ...] = ()
    whole: str | None = None  # why no channel was taken out


def export(
    subnetwork: Subnetwork,
    to: str,
    out: str | os.PathLike[str],
    *,
    network: nn.Module | str | None = None,
    data: Any = None,
    batch: int = 16,
    threads: int = 1,
    recalibrate: int = 0,
    normalise: bool = False,
    seconds: float = 3.0,
) -> dict[str, Any]:
    """Write a subnetwork as a file for other programs to run, and return what was measured.

    to            compact: channels that nothing reads are taken out; csr, bsr, 2:4: linear and 1x1 layers are sparse where
                  that is faster; onnx: a model for ONNX Runtime, of the compact network where there is one;
                  state-dict: the masked network's tensors, by its own names and in its own shapes
    network       as for `evaluate`: needed when the file's network is not one of ours or torchvision's
    data          to recalibrate on, where those of the run were handed in from Python
    batch         decides which layers are sparse; measured beside 1, 16 and 256
    threads       of the CPU, while anything is measured
    recalibrate   so many batches of training data give batch norm its statistics anew
    normalise     the exported network normalises its inputs itself, pixels scaled to 0..1; not for state-dict
    seconds       for measuring one batch size; at least two passes are run

    `input` in what is returned says how an input is prepared for the exported network; the mean and std are in its file too.
    Nothing is written before the result runs and says what the masked network says, within 1e-4 of the largest logit
    (2:4: 1e-2): on inputs of the run where its folder has them, else on random ones of their type and range. Raises
    UserError when the subnetwork cannot be had in this form, RunError when the result says something else or cannot be
    written; an earlier file stays as it was.
    """
    _check(subnetwork, to, normalise, batch=batch, threads=threads, recalibrate=recalibrate)
    if data is not None and not recalibrate:
        raise UserError("data are to recalibrate batch norm on: say on how many batches of them, recalibrate=20")
    path, shape = Path(out), subnetwork.origin.shape
    _check_writable(path)
    masked = network_of(subnetwork, network).eval()
    if recalibrate:
        _recalibrate(masked, subnetwork, data, recalibrate)
    if to == "2:4" and torch.cuda.is_available():
        masked.cuda()
    front = partial(normalised, origin=subnetwork.origin) if normalise else _as_it_is
    made = _make(subnetwork, masked, to, batch, threads, front)
    runs = made.runs if to == "onnx" else front(made.runs)
    nets = {"dense": front(masked), **made.beside, "exported": runs}
    record: dict[str, Any] = {
        "to": to,
        "unit": subnetwork.origin.unit,
        "input": how_to_prepare(subnetwork.origin, normalise),
        "normalise": normalise,
        "normalisation": subnetwork.origin.normalisation,
        **{key: subnetwork.metrics.get(key) for key in ("val_accuracy", "test_accuracy")},  # of the run
        "difference": _same(masked, runs, to, subnetwork, normalise),
        "recalibrated": recalibrate,
        "whole": made.whole,
        "layers": [asdict(choice) for choice in made.layers],
        "dense_bytes": subnetwork.dense_bytes(),
        **counts(masked, made.plain, made.runs, shape),
        "dynamic": subnetwork.origin.dynamic,
        "latency": measured(nets, subnetwork.inputs, batch, threads, seconds),
    }
    if subnetwork.origin.dynamic:
        record["kept_macs"] = subnetwork.metrics["kept_macs"]
    record["faster"] = any(row["faster"] for row in record["latency"])
    record["advice"] = None if record["faster"] else advice(subnetwork.origin.unit, to, masked, shape)
    _write(path, subnetwork, masked, made, record)
    return {**record, "bytes": path.stat().st_size, "file": str(path)}


def _as_it_is(net: nn.Module) -> nn.Module:
    return net


def _check(subnetwork: Subnetwork, to: str, normalise: bool, **counts: int) -> None:
    """Raise UserError for what does not depend on the network."""
    if not isinstance(subnetwork, Subnetwork):
        raise UserError(f"a subnetwork is exported, ss.Subnetwork.load(path), got {type(subnetwork).__name__}")
    if to not in FORMATS:
        raise unknown("format", to, FORMATS)
    if subnetwork.origin.dynamic and to not in ("state-dict", "onnx"):
        raise UserError(
            f"each input of this network chooses its filters ({subnetwork.origin.extractor['name']}), so none can go: "
            "--to state-dict keeps the gates; with another method, unit=channel and --to compact drop filters for all inputs"
        )
    if normalise and to == "state-dict":
        raise UserError(
            "a state dict has the network's own tensors alone, so normalise is for the other formats; "
            "mean and std are in the file's metadata"
        )
    if normalise:
        statistics(subnetwork.origin)
    for name, count in counts.items():
        if count < (least := 0 if name == "recalibrate" else 1):
            raise UserError(f"{name} must be at least {least}, got {count}")


def _check_writable(path: Path) -> None:
    """Raise UserError or RunError for a file that could not be written in the end."""
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder: name the file to write")
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is a device: name the file to write")
        tempfile.TemporaryFile(dir=next(parent for parent in path.absolute().parents if parent.exists())).close()
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error


def _make(subnetwork: Subnetwork, masked: nn.Module, to: str, batch: int, threads: int, front: _Front) -> _Made:
    match to:
        case "state-dict":
            return _Made(masked, masked, {"dense": opened(masked)})
        case "compact":
            small = compact(masked, subnetwork.inputs(2))
            return _Made(small, small)
        case "onnx":
            return _onnx(subnetwork, masked, threads, front)
        case "csr":
            return _sparse(subnetwork, *_smaller(subnetwork, masked), "csr", batch, threads)
        case "bsr":
            why = "its blocks would not stay whole without some of their rows and columns"
            return _sparse(subnetwork, masked, why, "bsr", batch, threads)
        case _:
            why = "its groups of four would not stay whole without some of their columns"
            return _sparse(subnetwork, masked, why, "2:4", batch, threads)


def _onnx(subnetwork: Subnetwork, masked: nn.Module, threads: int, front: _Front) -> _Made:
    """front: what is put before the network, and before those that it is measured beside."""
    example = subnetwork.inputs(2)
    (small, whole), plain = _smaller(subnetwork, masked), opened(masked)
    model = to_onnx(front(small), example, _metadata(subnetwork, front is not _as_it_is))
    dense = model if small is plain else to_onnx(front(plain), example)  # both are timed in ONNX Runtime
    beside = {"dense": OnnxNetwork(dense, threads), "dense in torch": front(plain)}
    return _Made(small, OnnxNetwork(model, threads), beside, model, whole=whole)


def _metadata(subnetwork: Subnetwork, built_in: bool) -> dict[str, str]:
    """How an input is prepared, for a reader of the model who has nothing else."""
    found = {"input": how_to_prepare(subnetwork.origin, built_in)}
    if subnetwork.origin.mean is not None:
        found |= {key: json.dumps(getattr(subnetwork.origin, key)) for key in ("mean", "std")}
        found["normalisation"] = "built in" if built_in else "to be done before"
    return found


def _sparse(subnetwork: Subnetwork, plain: nn.Module, whole: str | None, kind: Kind, batch: int, threads: int) -> _Made:
    origin, (unit, sizes) = subnetwork.origin, parse(subnetwork.origin.unit)
    example = subnetwork.inputs(batch).to(next(plain.parameters()).device)
    try:
        runs, layers = sparsify(plain, kind, example, sizes[0] if unit == "block" else BLOCK, threads)
    except UserError as error:
        if kind == "2:4":
            raise
        raise UserError(f"{error}; {advice(origin.unit, kind, plain, origin.shape)}") from error
    return _Made(plain, runs, layers=layers, whole=whole)


def _smaller(subnetwork: Subnetwork, masked: nn.Module) -> tuple[nn.Module, str | None]:
    """The compact network; or the masked one as it is, and why it cannot be smaller (None where inputs choose the filters)."""
    if subnetwork.origin.dynamic:
        return masked, None
    try:
        return compact(masked, subnetwork.inputs(2)), None
    except (UserError, RunError) as error:
        return masked, str(error)


class _Fed(nn.Module):
    """A network given pixels scaled to 0..1, which are prepared as a run prepares its images."""

    def __init__(self, net: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.net, self.mean, self.std = net, mean, std
        self.train(net.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(prepare(255 * x, x.new_tensor(self.mean), x.new_tensor(self.std)))  # type: ignore[no-any-return]


def _same(masked: nn.Module, runs: nn.Module, to: str, subnetwork: Subnetwork, normalise: bool) -> float:
    """The greatest difference of what both say, relative to the largest logit. Raises RunError when it is too great."""
    origin = subnetwork.origin
    inputs: Tensor = subnetwork.inputs(TRIED).to(next(masked.parameters()).device)
    if normalise:
        mean, std = (inputs.new_tensor(values).view(-1, 1, 1) for values in statistics(origin))
        inputs, masked = (inputs * std + mean).clamp(0, 1), _Fed(masked, *statistics(origin))
    try:
        difference = difference_between(masked, runs, inputs)
    except AttributeError as error:  # of a sparse layer's weight
        raise UserError(f"this network cannot be had as {to}, its forward pass reads weights of its layers: {error}") from error
    if not difference <= (HALF_TOLERANCE if to == "2:4" else TOLERANCE):
        raise RunError(
            f"nothing is written: the logits as {to} differ from the masked network's by {difference:.2g} of the largest"
        )
    return difference


def _recalibrate(net: nn.Module, subnetwork: Subnetwork, data: Any, batches: int) -> None:
    """Give batch norm the mean statistics of so many training batches."""
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        raise UserError("this network has no batch norm to recalibrate")
    origin = subnetwork.origin
    mean, std = (None if t is None else torch.tensor(t) for t in (origin.mean, origin.std))
    source = Batches(data_of(subnetwork, data).train, mean, std, origin.recipe["batch_size"], origin.seed)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # every batch counts the same
        norm.train()
    with torch.no_grad():
        for step in range(batches):
            net(source.batch(step)[0])
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
            _same(masked.cpu(), deployed.on(masked), to, subnetwork, normalise)  # as whoever loads it will build it
            deployed.save(path)
