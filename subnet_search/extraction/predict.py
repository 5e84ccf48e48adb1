"""Predictions of a subnetwork or an exported network for new inputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from subnet_search.artifact import Subnetwork
from subnet_search.artifact.subnetwork import Origin
from subnet_search.core.errors import UserError, guarded
from subnet_search.data import DataSpec, prepare, readers
from subnet_search.data.tables import encode
from subnet_search.deploy.exported_network import Deployed
from subnet_search.deploy.normalised import Normalised
from subnet_search.deploy.rebuild import dense_of
from subnet_search.evaluation.accuracy import outputs_of

ARRAYS = ("inputs", "images", "test_images")  # names in an npz file, the first that is there


@dataclass(frozen=True)
class Prediction:
    """The predicted classes of inputs, and the probabilities of all classes."""

    classes: Tensor  # (N,) int64
    probabilities: Tensor  # (N, classes) float32
    names: tuple[str, ...] | None  # of the classes, if the run's data had names

    def rows(self) -> list[dict[str, Any]]:
        """The class (name or number) and its probability for each input, in plain values."""
        chosen = self.probabilities.gather(1, self.classes.view(-1, 1)).view(-1).tolist()
        found = self.classes.tolist()
        return [
            {"class": self.names[index] if self.names else index, "probability": probability}
            for index, probability in zip(found, chosen, strict=True)
        ]


def predict(
    subnetwork: Subnetwork | Deployed,
    inputs: Any,
    *,
    network: nn.Module | str | None = None,
) -> Prediction:
    """Predict the class of each input.

    inputs    a tensor or array (N, ...): uint8 images (N, C, H, W), which are normalised as in the run, or other inputs as
              they were in training; or image files, or a folder of them, or an .npy or .npz file; or of a run on a table, a
              .csv or .parquet file with its columns
    network   a module or `package.module:factory`; needed if the network is neither built in nor from torchvision

    Raises UserError for inputs of another shape or type than the run's, and for files that cannot be read.
    """
    origin = subnetwork.origin
    net = subnetwork.on(dense_of(subnetwork, network)).eval()
    mean, std = (None if t is None else torch.tensor(t) for t in (origin.mean, origin.std))
    values = _values(inputs, origin)
    if tuple(values.shape[1:]) != origin.shape:
        raise UserError(f"the inputs have shape {tuple(values.shape[1:])}; the subnetwork takes {origin.shape}")
    if mean is not None and values.dtype != torch.uint8:
        raise UserError(f"the subnetwork takes uint8 images, which are normalised as in its run; got {values.dtype}")
    wanted = getattr(torch, origin.dtype)
    if mean is None and not wanted.is_floating_point and values.is_floating_point():
        raise UserError(f"the subnetwork takes indices ({origin.dtype}), got {values.dtype}")
    if mean is None and wanted.is_floating_point:
        values = values.to(wanted)
    if values.is_floating_point() and not values.isfinite().all():
        raise UserError("the inputs contain NaN or infinite values")
    scaled = (torch.zeros(1), torch.ones(1)) if isinstance(net, Normalised) else (mean, std)
    with guarded("the network fails on these inputs"):
        outputs = outputs_of(net, lambda chunk: prepare(chunk, *scaled), values)[:, : origin.classes]
    probabilities = outputs.float().softmax(1)
    return Prediction(probabilities.argmax(1), probabilities, origin.class_names)


def _values(inputs: Any, origin: Origin) -> Tensor:
    """The inputs as a tensor (N, ...)."""
    if isinstance(inputs, str | Path):
        inputs = [inputs]
    if isinstance(inputs, Sequence) and inputs and isinstance(inputs[0], str | Path):
        return _read([Path(path) for path in inputs], origin)
    try:
        values = torch.as_tensor(inputs).detach().cpu()
    except Exception as error:  # arrays of any library
        raise UserError(f"the inputs cannot be converted to a tensor: {error}") from error
    return values.float() if values.dtype == torch.float64 else values


def _read(paths: list[Path], origin: Origin) -> Tensor:
    [first, *others] = paths
    if not others and first.suffix in (".csv", ".parquet"):
        encoding = DataSpec.of(origin.data).encoding if origin.data else None
        if encoding is None or not encoding.columns:
            raise UserError(f"{first} is a table, and the run was on other data")
        return encode(first, encoding.columns)
    if not others and first.suffix in (".npy", ".npz"):
        with guarded(f"{first} is not a readable {first.suffix} file"):
            loaded = np.load(first, allow_pickle=False)
            if first.suffix == ".npz":
                name = next((name for name in ARRAYS if name in loaded), None)
                if name is None:
                    raise UserError(f"{first} has none of the arrays {', '.join(ARRAYS)}; it holds {', '.join(loaded)}")
                loaded = loaded[name]
            values = torch.from_numpy(np.ascontiguousarray(loaded))
        channels_last = values.dtype == torch.uint8 and origin.mean is not None
        if channels_last and values.dim() == 3:
            values = values.unsqueeze(-1)
        if channels_last and values.dim() == 4 and tuple(values.shape[1:]) != origin.shape:
            values = values.permute(0, 3, 1, 2).contiguous()
        return values
    if origin.mean is None or len(origin.shape) != 3 or origin.shape[1] != origin.shape[2]:
        raise UserError(f"the subnetwork takes inputs of shape {origin.shape}, and no images: pass an .npy or .npz file")
    files = [file for path in paths for file in (readers.images_in(path) if path.is_dir() else [path])]
    if not files:
        raise UserError(f"{first} has no images")
    return readers.images(files, origin.shape[1], origin.shape[0])
