"""The file of an exported network: its tensors as they are computed with, and how to build what holds them.

One safetensors file, no pickle: shrunk tensors, and of sparse layers values and int32 indices, with a manifest in the
header. Reading it needs torch, and neither what found the subnetwork nor what traced it.
"""

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from subnet_search.artifact.subnetwork import Origin, Subnetwork, holds
from subnet_search.core.errors import UserError, guarded
from subnet_search.core.tensor_files import damaged, load_tensors, save_tensors
from subnet_search.deploy.normalised import normalised
from subnet_search.deploy.sparse_layers import FORMS, Sparse, put
from subnet_search.nets import check_output, own_copy
from subnet_search.structure.shrink import shrunk
from subnet_search.structure.verify_groups import first_line

FORMAT = 3  # 1: without a normalisation that is built in; 1 and 2: without a hash over the header
LARGEST_BLOCK = 2**16


@dataclass(frozen=True)
class Deployed:
    """An exported network: everything that makes it out of the dense network it came from."""

    tensors: Mapping[str, Tensor]  # of the exported network, by name
    shapes: Mapping[str, tuple[int, ...]]  # of those that are smaller than in the dense network
    sparse: Mapping[str, Mapping[str, Any]]  # sparse layers: `form`, and what its constructor takes
    origin: Origin
    to: str  # compact, csr, bsr, 2:4
    metrics: Mapping[str, Any]  # the record of the run, and under `export` that of the export
    normalise: bool = False  # whether it normalises its inputs by itself, by the mean and std of the run

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
        """What `net`, made of the network `dense`, is to be stored as; copied to the CPU.

        normalise   whether the normalisation of the run is built in when the file is read
        """
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in net.state_dict().items()}
        own = {name: tuple(value.shape) for name, value in dense.state_dict().items()}
        shapes = {name: tuple(value.shape) for name, value in tensors.items() if own.get(name, value.shape) != value.shape}
        sparse = {
            name: {"form": type(module).__name__, **module.settings()}
            for name, module in net.named_modules()
            if isinstance(module, Sparse)
        }
        return cls(tensors, shapes, sparse, origin, to, metrics, normalise)

    def network(self) -> nn.Module:
        """The exported network, built from its name. Raises UserError when that is not one of ours or torchvision's."""
        return self.on(self.origin.build())

    def inputs(self, batch: int) -> Tensor:
        """Random inputs (batch, *shape) to try the network on."""
        return self.origin.inputs(batch)

    def on(self, net: nn.Module) -> nn.Module:
        """The exported network, made of a copy of the dense network `net`. Raises UserError when it is another's."""
        dense = own_copy(net)
        try:
            for name, shape in self.shapes.items():
                if tuple(self.tensors[name].shape) != shape:
                    raise ValueError(f"{name} is of shape {tuple(self.tensors[name].shape)}, and said to be of {shape}")
            out = shrunk(dense, self.shapes)
            for name, settings in self.sparse.items():
                layer = self._layer(name, settings, out.get_submodule(name))
                layer.to(self.tensors[f"{name}.values"].dtype)
                put(out, name, layer.to(next(out.parameters(), layer.values).device))
            own = out.state_dict()
        except UserError:
            raise
        except Exception as error:  # whatever sizes that do not fit make torch raise
            raise UserError(f"this exported network belongs to another network: {first_line(error)}") from error
        wrong = sorted(own.keys() ^ self.tensors.keys())
        wrong = wrong or [name for name, value in own.items() if value.shape != self.tensors[name].shape]
        if wrong:
            raise UserError(f"this exported network belongs to another network: {wrong[0]} differs ({len(wrong)} in all)")
        own.update(self.tensors)  # and not the tensors alone: some modules look at the version that comes with a state
        out.load_state_dict(own)
        for module in out.modules():
            if isinstance(module, Sparse):
                module.check()
        check_output(out, self.origin.shape, self.origin.classes, example=self.inputs(2))
        return (normalised(out, self.origin) if self.normalise else out).eval()

    def _layer(self, name: str, settings: Mapping[str, Any], dense: Any) -> Sparse:
        """A sparse layer without values yet. Raises ValueError for sizes that are not those of its tensors and its place."""
        form = {**settings}
        make = FORMS[form.pop("form")]
        if not 1 <= form.get("block", 1) <= LARGEST_BLOCK:
            raise ValueError(f"the blocks of the sparse layer {name} are of size {form['block']}")
        with torch.device("meta"):  # what the file claims takes no memory before it is checked
            blank = make(**form)
        here = {key: tuple(tensor.shape) for key, tensor in self.tensors.items() if key.rpartition(".")[0] == name}
        own = {f"{name}.{key}": tuple(tensor.shape) for key, tensor in blank.state_dict().items()}
        rows, columns = dense.weight.flatten(1).shape
        if own != here or blank.rows > rows or blank.columns > columns:
            raise ValueError(f"the sizes of the sparse layer {name} are not those of its tensors")
        return make(**form)

    def summary(self) -> dict[str, Any]:
        """The record of the run that found the subnetwork, and under `export` what was measured when it was exported."""
        return copy.deepcopy(dict(self.metrics))

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write the file, atomically, and return its size in bytes. Raises RunError when it cannot be written."""
        manifest = {
            "format": FORMAT,
            "normalise": self.normalise,
            "to": self.to,
            "shapes": self.shapes,
            "sparse": self.sparse,
            "origin": self.origin.model_dump(mode="json"),
            "metrics": self.metrics,
        }
        save_tensors(Path(path), self.tensors, {"deployed": manifest})
        return Path(path).stat().st_size

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Deployed":
        """Read a file. Raises UserError when it is damaged, of a newer format, or none of an exported network."""
        path = Path(path)
        tensors, header = load_tensors(path, "exported network")
        manifest = header.get("deployed")
        if not isinstance(manifest, dict):
            raise UserError(f"{path} is not an exported network: subnet-search export makes one of a subnetwork")
        if manifest.get("format") not in range(1, FORMAT + 1):
            raise UserError(f"{path} has format {manifest.get('format')}, this version reads {FORMAT}: update subnet-search")
        with guarded(damaged(path, "exported network")):
            shapes = {name: tuple(shape) for name, shape in manifest["shapes"].items()}
            sparse = {name: dict(settings) for name, settings in manifest["sparse"].items()}
            origin, metrics = Origin.model_validate(manifest["origin"]), dict(manifest["metrics"])
            return cls(tensors, shapes, sparse, origin, str(manifest["to"]), metrics, bool(manifest.get("normalise", False)))


def load_deployed(path: str | os.PathLike[str], net: nn.Module | None = None) -> nn.Module:
    """The exported network in a file, ready to run, on the CPU; with its normalisation where that was built in.

    net   the dense network it came from, where that is not one of ours or torchvision's; its weights do not matter

    Raises UserError for a damaged file, and for another network.
    """
    found = Deployed.load(path)
    return found.network() if net is None else found.on(net)


def read_artifact(path: str | os.PathLike[str]) -> Subnetwork | Deployed:
    """The subnetwork or the exported network in a file. Raises UserError when it holds neither."""
    return Deployed.load(path) if holds(Path(path), "deployed") else Subnetwork.load(path)
