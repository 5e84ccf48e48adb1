"""An ONNX file that `export` wrote: the model, and what its metadata says about the run."""

import importlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subnet_search.artifact.subnetwork import Origin, Subnetwork
from subnet_search.core.errors import UserError, guarded, reading
from subnet_search.deploy.onnx import OnnxNetwork, check_installed
from subnet_search.nets import is_ours

RUN = "subnet_search"  # key of the metadata: origin, metrics and normalise as JSON
NAMING_FILES = ("subnetwork", "curve", "test_error")  # entries of a record that contain paths


@dataclass(frozen=True)
class OnnxFile:
    """An exported ONNX model, with the settings and the record of its run; without paths of the machine that wrote it."""

    model: bytes
    origin: Origin
    metrics: Mapping[str, Any]
    normalise: bool  # whether the model normalises its inputs

    def network(self, threads: int = 1) -> OnnxNetwork:
        """The model in ONNX Runtime."""
        return OnnxNetwork(self.model, threads)

    def inputs(self, batch: int) -> Any:
        """Random inputs of `batch` items for tests."""
        return self.origin.inputs(batch)

    def summary(self) -> dict[str, Any]:
        """The record of the run that found the subnetwork."""
        return dict(self.metrics)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "OnnxFile":
        """Read a file. Raises UserError when it is no ONNX file, or was not written by `export`."""
        check_installed()
        path = Path(path)
        with reading(path, "an ONNX model"):
            model = path.read_bytes()
            found = importlib.import_module("onnx").load_from_string(model)
        metadata = {entry.key: entry.value for entry in found.metadata_props}
        if RUN not in metadata:
            raise UserError(
                f"{path} does not say which run it is of, so its inputs and its task are not known: "
                "write it with this version's export --to onnx"
            )
        with guarded(f"{path}: its metadata is damaged"):
            run = json.loads(metadata[RUN])
            return cls(model, Origin.model_validate(run["origin"]), dict(run["metrics"]), bool(run["normalise"]))


def metadata_of(subnetwork: Subnetwork, how: str, normalise: bool) -> dict[str, str]:
    """Metadata of an ONNX model: how to prepare an input, and what `OnnxFile` reads."""
    origin, found = subnetwork.origin, {"input": how}
    if origin.mean is not None:
        found |= {key: json.dumps(getattr(origin, key)) for key in ("mean", "std")}
        found["normalisation"] = "built in" if normalise else "to be done before"
    metrics = {key: value for key, value in subnetwork.summary().items() if key not in NAMING_FILES}
    if origin.network is not None and not is_ours(origin.network.name):
        metrics["network"] = None
    data = _without_folder(origin.data)
    metrics["data"] = data["name"] if data else None
    run = {"origin": _without_paths(origin, data), "metrics": metrics, "normalise": normalise}
    return {**found, RUN: json.dumps(run, default=str)}


def _without_paths(origin: Origin, data: dict[str, Any] | None) -> dict[str, Any]:
    """The origin in plain values, without the network and recipe, which the model does not need and which may name files."""
    return {**origin.model_dump(mode="json"), "network": None, "recipe": {}, "data": data}


def _without_folder(data: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The settings of a data set, with only the last part of its path."""
    if data is None:
        return None
    kind, colon, path = data["name"].partition(":")
    return {**data, "root": None, "options": {}, "name": f"{kind}{colon}{Path(path).name}" if colon else kind}
