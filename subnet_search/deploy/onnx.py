"""Export to ONNX, and run with ONNX Runtime."""

import importlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn

from subnet_search.core.errors import UserError
from subnet_search.core.imports import required
from subnet_search.core.nested import length_of, map_tensors, tensors_in
from subnet_search.nets import LogitsOnly, arguments, call, outputs_in

NEEDED = ("onnx", "onnxscript", "onnxruntime")
INSTEAD = "its forward pass must not choose by the values of tensors; --to compact or state-dict needs no ONNX"


def check_installed() -> None:
    """Raise UserError when a package is missing that writes or runs ONNX models."""
    for name in NEEDED:
        required(name, "onnx", "ONNX")


def to_onnx(net: nn.Module, example: Any, metadata: Mapping[str, str] | None = None, every: bool = False) -> bytes:
    """The serialised ONNX model of a network in evaluation mode, for any batch size; it names no files of this machine.

    One tensor (batch, ...) is `input`; several have the names of the network's arguments, and nested ones their paths. The
    output is `logits`, or several with their paths.
    example: at least two inputs, as `nets.call` passes them; metadata: for the model's `metadata_props`; every: as for
    `nets.outputs_in`. Raises UserError when a package is missing, or the network cannot be exported.
    """
    check_installed()
    try:
        with _quiet():
            with torch.no_grad():
                output = call(net.eval(), example)
            outputs = outputs_in(output, every)
            if isinstance(example, Tensor) and len(outputs) == 1:
                plain: nn.Module = net if isinstance(output, Tensor) else LogitsOnly(net, every)
            else:
                plain = _Flat(net, example, every)
            names, batch = input_names(net, example), torch.export.Dim("batch")
            shapes: Any = tuple({0: batch} for _ in names)
            program: Any = torch.onnx.export(
                plain,
                tuple(tensor for _, tensor in tensors_in(example)),
                dynamo=True,
                verbose=False,
                input_names=names,
                output_names=list(outputs),
                dynamic_shapes=(shapes,) if isinstance(plain, _Flat) else shapes,
            )
        model = program.model_proto
        _remove_paths(model.graph, *model.functions)
        for key, value in (metadata or {}).items():
            model.metadata_props.add(key=key, value=value)
        return bytes(model.SerializeToString())
    except UserError:
        raise
    except Exception as error:  # a user's forward pass can make the exporter raise anything
        raise UserError(f"this network cannot be exported to ONNX: {_reason(error)}; {INSTEAD}") from error


def input_names(net: nn.Module, inputs: Any) -> list[str]:
    """The names of the tensors in the inputs of a network: its arguments' names, with the paths of nested ones."""
    if isinstance(inputs, Tensor):
        return ["input"]
    positional, named = arguments(inputs)
    parameters = [
        name
        for name, parameter in inspect.signature(net.forward).parameters.items()
        if parameter.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    ]
    by_name = {(parameters[i] if i < len(parameters) else f"input.{i}"): value for i, value in enumerate(positional)} | named
    return [path for path, _ in tensors_in(by_name)]


class _Flat(nn.Module):
    """A network whose inputs and outputs are not nested: the tensors in them, in order."""

    def __init__(self, net: nn.Module, example: Any, every: bool) -> None:
        super().__init__()
        self.net, self.every = net, every
        self.form = map_tensors(lambda _: torch.empty(0), example)
        self.train(net.training)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = iter(tensors)
        inputs = map_tensors(lambda _: next(given), self.form)
        return tuple(outputs_in(call(self.net, inputs), self.every).values())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's warnings and its progress."""
    loggers = {logger: logger.level for logger in map(logging.getLogger, ("torch.onnx", "onnxscript"))}
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in loggers.items():
            logger.setLevel(level)


def _remove_paths(*graphs: Any) -> None:
    """Remove the source lines that the exporter notes at every node: they name files of this machine."""
    for graph in graphs:
        for part in (graph, *graph.node, *getattr(graph, "initializer", ()), *graph.value_info):
            part.ClearField("doc_string")
            kept = [(entry.key, entry.value) for entry in part.metadata_props if not entry.key.endswith("stack_trace")]
            del part.metadata_props[:]
            for key, value in kept:
                part.metadata_props.add(key=key, value=value)
        for node in graph.node:
            for attribute in node.attribute:
                _remove_paths(*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs)


def _reason(error: BaseException) -> str:
    """The first line of the exception that an error began with."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class OnnxNetwork(nn.Module):
    """An ONNX model run by ONNX Runtime on the CPU: called like the network that was exported.

    Returns the tensor, or of several outputs a dict or tuple, nested by their paths.
    """

    def __init__(self, model: bytes, threads: int) -> None:
        super().__init__()
        onnxruntime = importlib.import_module("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.inputs = [one.name for one in self.session.get_inputs()]
        self.outputs = [one.name for one in self.session.get_outputs()]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Raises UserError when the model does not run, as when the exporter fixed the batch size."""
        given = dict(zip(self.inputs, (tensor for _, tensor in tensors_in(args)), strict=False)) | dict(tensors_in(kwargs))
        try:
            found = self.session.run(None, {name: tensor.numpy() for name, tensor in given.items()})
        except Exception as error:  # exception types of ONNX Runtime depend on its version
            batch = length_of((args, kwargs))
            raise UserError(f"the ONNX model does not run at batch {batch}: {' '.join(str(error).split())}") from error
        tensors = [torch.from_numpy(one) for one in found]
        return tensors[0] if len(tensors) == 1 else _nested(dict(zip(self.outputs, tensors, strict=True)))


def _nested(by_path: Mapping[str, Tensor]) -> Any:
    """Tensors as a dict by the first part of their paths, or as a tuple where these are numbers; nested likewise."""
    if "" in by_path:
        return by_path[""]
    parts: dict[str, dict[str, Tensor]] = {}
    for path, tensor in by_path.items():
        first, _, rest = path.partition(".")
        parts.setdefault(first, {})[rest] = tensor
    found = {name: _nested(inner) for name, inner in parts.items()}
    return tuple(found.values()) if all(name.isdigit() for name in found) else found
