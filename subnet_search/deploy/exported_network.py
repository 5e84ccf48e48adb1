"""The file of an exported network: its tensors, and how to build the network from the dense one.

One safetensors file, no pickle: the smaller tensors, values and int32 indices of sparse layers, and a manifest in the
header. Reading it does not need torch-pruning or Optuna.
"""

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from subnet_search.artifact.subnetwork import Origin, Subnetwork, has_header_key
from subnet_search.core.errors import UserError, guarded
from subnet_search.core.tensor_files import damaged, load_tensors, save_tensors
from subnet_search.deploy.normalised import normalised
from subnet_search.deploy.onnx_file import OnnxFile
from subnet_search.deploy.sparse_layers import FORMS, Sparse, replace_layer
from subnet_search.nets import check_accepts, own_copy
from subnet_search.structure.shrink import shrunk
from subnet_search.structure.verify_groups import first_line

FORMAT = 3  # 1: no built-in normalisation; 1 and 2: no hash over the header
LARGEST_BLOCK = 2**16


@dataclass(frozen=True)
class Deployed:
    """An exported network: its tensors, and how it differs from the dense network."""

    tensors: Mapping[str, Tensor]  # of the exported network, by name
    shapes: Mapping[str, tuple[int, ...]]  # of tensors that are smaller than in the dense network
    sparse: Mapping[str, Mapping[str, Any]]  # sparse layers: `form`, and the arguments of its constructor
    origin: Origin
    to: str  # compact, csr, bsr, 2:4
    metrics: Mapping[str, Any]  # the record of the run; under `export` the record of the export
    normalise: bool = False  # whether the network normalises its inputs, by the mean and std of the run
    counts: Mapping[str, int] = field(default_factory=dict)  # other attributes of its modules, as `attention.num_heads`

    @classmethod
    def of(
        cls,
        net: nn.Module,
        dense: nn.Module,
        origin: Origin,
        to: str,
        metrics: Mapping[str, Any],
        normalise: bool = False,
    ) -> "Deployed":
        """The exported network `net`, made from the dense network `dense`; tensors are copied to the CPU.

        normalise   whether the loaded network includes the normalisation of the run
        """
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in net.state_dict().items()}
        own = {name: tuple(value.shape) for name, value in dense.state_dict().items()}
        shapes = {name: tuple(value.shape) for name, value in tensors.items() if own.get(name, value.shape) != value.shape}
        sparse = {
            name: {"form": type(module).__name__, **module.settings()}
            for name, module in net.named_modules()
            if isinstance(module, Sparse)
        }
        expected = dict(shrunk(dense, shapes).named_modules())
        counts = {
            f"{name}.{attribute}": value
            for name, module in net.named_modules()
            if type(module) is type(expected.get(name))
            for attribute, value in vars(module).items()
            if type(value) is int and type(before := vars(expected[name]).get(attribute)) is int and 0 < value < before
        }
        return cls(tensors, shapes, sparse, origin, to, metrics, normalise, counts)

    def network(self) -> nn.Module:
        """Build the exported network by its name. Raises UserError when it is not one of ours or torchvision's."""
        return self.on(self.origin.build())

    def inputs(self, batch: int) -> Any:
        """Random inputs of `batch` items for tests."""
        return self.origin.inputs(batch)

    def on(self, net: nn.Module) -> nn.Module:
        """Build the exported network from a copy of the dense network `net`. Raises UserError when it does not fit."""
        dense = own_copy(net)
        try:
            for name, shape in self.shapes.items():
                if tuple(self.tensors[name].shape) != shape:
                    raise ValueError(f"{name} has shape {tuple(self.tensors[name].shape)}, but the manifest has {shape}")
            out = shrunk(dense, self.shapes)
            for name, count in self.counts.items():
                owner, _, attribute = name.rpartition(".")
                if type(vars(out.get_submodule(owner)).get(attribute)) is not int or type(count) is not int or count < 1:
                    raise ValueError(f"{name} is not a count of channels")
                setattr(out.get_submodule(owner), attribute, count)
            for name, settings in self.sparse.items():
                layer = self._layer(name, settings, out.get_submodule(name))
                layer.to(self.tensors[f"{name}.values"].dtype)
                replace_layer(out, name, layer.to(next(out.parameters(), layer.values).device))
            own = out.state_dict()
        except UserError:
            raise
        except Exception as error:  # sizes that do not match can raise anything
            raise UserError(f"this exported network is of another network: {first_line(error)}") from error
        wrong = sorted(own.keys() ^ self.tensors.keys())
        wrong = wrong or [name for name, value in own.items() if value.shape != self.tensors[name].shape]
        if wrong:
            raise UserError(f"this exported network is of another network: {wrong[0]} differs ({len(wrong)} tensors in all)")
        own.update(self.tensors)  # keeps the version metadata of `state_dict`, which some modules read
        out.load_state_dict(own)
        for module in out.modules():
            if isinstance(module, Sparse):
                module.check()
        check_accepts(out, self.inputs(2), self.origin.logits)
        return (normalised(out, self.origin) if self.normalise else out).eval()

    def _layer(self, name: str, settings: Mapping[str, Any], dense: Any) -> Sparse:
        """An uninitialised sparse layer. Raises ValueError when its sizes do not match its tensors or the dense layer."""
        form = {**settings}
        make = FORMS[form.pop("form")]
        if not 1 <= form.get("block", 1) <= LARGEST_BLOCK:
            raise ValueError(f"the sparse layer {name} has invalid block size {form['block']}")
        with torch.device("meta"):  # sizes are checked before memory is allocated
            blank = make(**form)
        here = {key: tuple(tensor.shape) for key, tensor in self.tensors.items() if key.rpartition(".")[0] == name}
        own = {f"{name}.{key}": tuple(tensor.shape) for key, tensor in blank.state_dict().items()}
        rows, columns = dense.weight.flatten(1).shape
        if own != here or blank.rows > rows or blank.columns > columns:
            raise ValueError(f"the sizes of the sparse layer {name} do not match its tensors")
        return make(**form)

    def summary(self) -> dict[str, Any]:
        """The record of the run that found the subnetwork; under `export` the record of the export."""
        return copy.deepcopy(dict(self.metrics))

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write the file, atomically, and return its size in bytes. Raises RunError when it cannot be written."""
        manifest = {
            "format": FORMAT,
            "normalise": self.normalise,
            "to": self.to,
            "shapes": self.shapes,
            "sparse": self.sparse,
            **({"counts": self.counts} if self.counts else {}),
            "origin": self.origin.model_dump(mode="json"),
            "metrics": self.metrics,
        }
        save_tensors(Path(path), self.tensors, {"deployed": manifest})
        return Path(path).stat().st_size

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Deployed":
        """Read a file. Raises UserError when it is damaged, of a newer format, or not an exported network."""
        path = Path(path)
        tensors, header = load_tensors(path, "exported network")
        manifest = header.get("deployed")
        if not isinstance(manifest, dict):
            raise UserError(f"{path} is not an exported network: make one with subnet-search export")
        if manifest.get("format") not in range(1, FORMAT + 1):
            raise UserError(f"{path} has format {manifest.get('format')}, this version reads {FORMAT}: update subnet-search")
        with guarded(damaged(path, "exported network")):
            shapes = {name: tuple(shape) for name, shape in manifest["shapes"].items()}
            sparse = {name: dict(settings) for name, settings in manifest["sparse"].items()}
            origin, metrics = Origin.model_validate(manifest["origin"]), dict(manifest["metrics"])
            normalise, counts = bool(manifest.get("normalise", False)), dict(manifest.get("counts", {}))
            return cls(tensors, shapes, sparse, origin, str(manifest["to"]), metrics, normalise, counts)


def load_deployed(path: str | os.PathLike[str], net: nn.Module | None = None) -> nn.Module:
    """The exported network in a file, on the CPU, in evaluation mode; with its normalisation if that is built in.

    path   a file of `export` in one of the formats compact, csr, bsr or 2:4
    net    the dense network, needed if it is not one of ours or torchvision's; its weights are not used

    Raises UserError for a damaged file, and for another network.
    """
    if Path(path).suffix == ".onnx":
        raise UserError(f"{path} is an ONNX model: open it with onnxruntime.InferenceSession")
    found = Deployed.load(path)
    return found.network() if net is None else found.on(net)


Artifact = Subnetwork | Deployed | OnnxFile
"""What can be evaluated."""


def read_artifact(path: str | os.PathLike[str]) -> Artifact:
    """The subnetwork or exported network in a file. Raises UserError for other files."""
    if Path(path).is_dir():
        raise UserError(f"{path} is a folder: name the file in it, such as {Path(path) / 'subnetwork.safetensors'}")
    if Path(path).suffix == ".onnx":
        return OnnxFile.load(path)
    if Path(path).suffix in (".pt", ".pth", ".th", ".bin"):
        raise UserError(f"{path} is a file of torch: start a run from its weights with network.state")
    return Deployed.load(path) if has_header_key(Path(path), "deployed") else Subnetwork.load(path)
