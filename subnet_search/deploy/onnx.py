"""Export to ONNX, and run with ONNX Runtime."""

import importlib
import io
import logging
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn

from subnet_search.core.errors import UserError
from subnet_search.nets import LogitsOnly

NEEDED = ("onnx", "onnxscript", "onnxruntime")


def to_onnx(net: nn.Module, example: Tensor, metadata: Mapping[str, str] | None = None) -> bytes:
    """The serialised ONNX model of a network in evaluation mode: `input` (batch, ...) with any batch size, to `logits`.

    example: at least two inputs; metadata: for the model's `metadata_props`. Raises UserError when a package is missing, or
    the network cannot be exported.
    """
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"ONNX needs the package {name}: pip install 'subnet-search[onnx]'") from error
    loggers = {logger: logger.level for logger in map(logging.getLogger, ("torch.onnx", "onnxscript"))}
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(io.StringIO()):
            with torch.no_grad():
                output = net.eval()(example)
            program: Any = torch.onnx.export(
                net if isinstance(output, Tensor) else LogitsOnly(net),
                (example,),
                dynamo=True,
                verbose=False,
                input_names=["input"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
        model = program.model_proto
        for key, value in (metadata or {}).items():
            model.metadata_props.add(key=key, value=value)
        return bytes(model.SerializeToString())
    except Exception as error:  # a user's forward pass can make the exporter raise anything
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"this network cannot be exported to ONNX: {reason.strip()}") from error
    finally:
        for logger, level in loggers.items():
            logger.setLevel(level)


class OnnxNetwork(nn.Module):
    """An ONNX model run by ONNX Runtime on the CPU: inputs (batch, ...) to logits (batch, classes)."""

    def __init__(self, model: bytes, threads: int) -> None:
        super().__init__()
        onnxruntime = importlib.import_module("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def forward(self, x: Tensor) -> Tensor:
        """Raises UserError when the model does not run, as when the exporter fixed the batch size."""
        try:
            [logits] = self.session.run(None, {"input": x.numpy()})
        except Exception as error:  # exception types of ONNX Runtime depend on its version
            raise UserError(f"the ONNX model does not run at batch {len(x)}: {' '.join(str(error).split())}") from error
        return torch.from_numpy(logits)
