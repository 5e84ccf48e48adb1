"""The formats of exported networks: what each is made of, and which networks can be written in it."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from subnet_search.artifact import Origin, Subnetwork
from subnet_search.core.errors import RunError, UserError, unknown
from subnet_search.core.nested import moved
from subnet_search.deploy.benchmark import advice
from subnet_search.deploy.exported_network import Deployed
from subnet_search.deploy.normalised import normalised
from subnet_search.deploy.onnx import OnnxNetwork, check_installed, to_onnx
from subnet_search.deploy.onnx_file import metadata_of
from subnet_search.deploy.sparse import BLOCK, Choice, sparsify
from subnet_search.deploy.sparse_layers import Kind
from subnet_search.nets import opened, own_copy
from subnet_search.structure.compact import compact, difference_between
from subnet_search.topology.masks import Masks
from subnet_search.topology.units import Units, parse

FORMATS = ("compact", "csr", "bsr", "2:4", "onnx", "state-dict")
KEEP_ALL = ("onnx", "state-dict")  # formats that need no zero weights, and can have gates
CHECKED = 7  # inputs that the outputs of both networks are compared on
Stage = Callable[[str], None]
"""Called with what is done now, in a few words."""


def silent(text: str) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Options:
    """How an export is made."""

    batch: int = 16  # batch size for choosing sparse layers
    threads: int = 1  # CPU threads while timing
    normalise: bool = False  # whether the network includes the normalisation of its inputs
    how: str = ""  # how to prepare an input
    measure: bool = True  # whether layers are sparse only where that is faster, measured
    latency: bool = True  # whether networks are made to time beside this one
    on_stage: Stage = silent


@dataclass(frozen=True)
class Made:
    """The exported forms of a masked network."""

    plain: nn.Module  # with dense layers only, channels removed
    runs: nn.Module  # the network in the file
    beside: Mapping[str, nn.Module] = field(default_factory=dict)  # others to time; `dense` replaces the masked network
    model: bytes = b""  # serialised ONNX model
    layers: tuple[Choice, ...] = ()
    whole: str | None = None  # reason why no channel was removed


def check_format(to: str) -> None:
    """Raise UserError for an unknown format, and when the packages that write it are missing."""
    if to not in FORMATS:
        raise unknown("format", to, FORMATS)
    if to == "onnx":
        check_installed()


def check_dynamic(origin: Origin, to: str) -> None:
    """Raise UserError when each input chooses its filters and the format cannot do that."""
    if origin.dynamic and to not in KEEP_ALL:
        raise UserError(
            f"each input of this network chooses its filters ({origin.extractor['name']}), so none can go: "
            "--to state-dict keeps the gates; with another method, unit=channel and --to compact drop filters for all inputs"
        )


def check_exportable(net: nn.Module, units: Units, density: float | None, origin: Origin, examples: Any, to: str) -> None:
    """Raise UserError when the result of a run could not be written in a format, whatever its weights are.

    The format is tried on the network before training, with half of the units pruned: nothing is timed or written.

    net       the network of the run, which is not changed
    density   the density asked for; None: the method chooses
    examples  a few inputs, as passed to the network
    """
    check_format(to)
    check_dynamic(origin, to)
    if density == 1 and to not in KEEP_ALL:
        raise UserError(f"{to} needs zero weights, and density 1 prunes none: set a lower density")
    masked = own_copy(net).cpu().eval()
    half = units.relevant({name: torch.linspace(-1, 1, _size(shape)).view(shape) for name, shape in units.shapes.items()}, None)
    masks = Masks({name: mask.bool() for name, mask in units.expand(half).items()})
    with torch.no_grad():
        for name, mask in masks.items():
            masked.get_parameter(name).mul_(mask)
    tried = replace(Subnetwork.of(masked, masks, {}, origin, {}), examples=examples)
    if to == "2:4" and torch.cuda.is_available():
        masked.cuda()
    with suppress(RunError):  # differences of the outputs depend on the weights
        made = make(tried, masked, to, Options(measure=False, latency=False))
        check_runs(tried, masked, made.runs, to)
        if to not in KEEP_ALL:
            Deployed.of(made.runs, masked, origin, to, {}).on(masked.cpu())


def _size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def check_runs(subnetwork: Subnetwork, masked: nn.Module, runs: nn.Module, to: str, inputs: Any = None) -> float:
    """The largest difference of outputs, relative to the largest. inputs: default: some of the run.

    Raises UserError when the exported network does not run.
    """
    given = subnetwork.inputs(CHECKED) if inputs is None else inputs
    device = next(masked.parameters()).device
    try:
        return difference_between(masked, runs, moved(given, device), subnetwork.origin.every_output)
    except AttributeError as error:  # a sparse layer has no `weight`
        raise UserError(f"cannot export to {to}: the forward pass reads weights of its layers directly: {error}") from error


def make(subnetwork: Subnetwork, masked: nn.Module, to: str, options: Options) -> Made:
    """The network of a format. masked: the dense network with zeros. Raises UserError when it cannot be made."""
    match to:
        case "state-dict":
            return Made(masked, masked, {"dense": opened(masked)})
        case "compact":
            small = compact(masked, subnetwork.inputs(2), every=subnetwork.origin.every_output)
            return Made(small, small)
        case "onnx":
            return _onnx(subnetwork, masked, options)
        case "csr":
            return _sparse(subnetwork, *_smaller(subnetwork, masked), "csr", options)
        case "bsr":
            return _sparse(subnetwork, masked, "removing channels would break up its blocks", "bsr", options)
        case _:
            return _sparse(subnetwork, masked, "removing channels would break up its groups of four", "2:4", options)


def _onnx(subnetwork: Subnetwork, masked: nn.Module, options: Options) -> Made:
    example, every, threads = subnetwork.inputs(2), subnetwork.origin.every_output, options.threads
    plain = opened(masked)
    small, whole = _smaller(subnetwork, masked) if plain is masked else (masked, None)  # gates need all filters

    def front(net: nn.Module) -> nn.Module:
        return normalised(net, subnetwork.origin) if options.normalise else net

    options.on_stage("converting the network to ONNX")
    model = to_onnx(front(small), example, metadata_of(subnetwork, options.how, options.normalise), every)
    if not options.latency:
        return Made(small, OnnxNetwork(model, threads), model=model, whole=whole)
    dense = model if small is plain else to_onnx(front(plain), example, every=every)  # both are timed in ONNX Runtime
    beside = {"dense": OnnxNetwork(dense, threads), "dense in torch": front(plain)}
    return Made(small, OnnxNetwork(model, threads), beside, model, whole=whole)


def _sparse(subnetwork: Subnetwork, plain: nn.Module, whole: str | None, kind: Kind, options: Options) -> Made:
    origin, (unit, sizes) = subnetwork.origin, parse(subnetwork.origin.unit)
    example = moved(subnetwork.inputs(options.batch), next(plain.parameters()).device)
    block = sizes[0] if unit == "block" else BLOCK
    try:
        runs, layers = sparsify(plain, kind, example, block, options.threads, options.measure, options.on_stage)
    except UserError as error:
        if kind == "2:4":
            raise
        raise UserError(f"{error}; {advice(origin.unit, kind, plain, subnetwork.inputs(2))}") from error
    return Made(plain, runs, layers=layers, whole=whole)


def _smaller(subnetwork: Subnetwork, masked: nn.Module) -> tuple[nn.Module, str | None]:
    """The compact network and None; or the masked network and the reason."""
    try:
        return compact(masked, subnetwork.inputs(2), every=subnetwork.origin.every_output), None
    except (UserError, RunError) as error:
        return masked, str(error)
