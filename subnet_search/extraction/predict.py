"""Predictions of a subnetwork or an exported network for new inputs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from subnet_search.artifact.subnetwork import Origin
from subnet_search.core.errors import UserError, guarded, reason
from subnet_search.core.nested import joined, length_of, rows_of, tensors_in
from subnet_search.data import DataSpec, prepare, readers, split_batch
from subnet_search.data.split import PER_BATCH
from subnet_search.data.tables import encode
from subnet_search.deploy.exported_network import Artifact
from subnet_search.deploy.rebuild import network_of, statistics_outside, task_of_run
from subnet_search.nets import call
from subnet_search.tasks import Prediction, Task, task_names

__all__ = ["Prediction", "predict"]

ARRAYS = ("inputs", "images", "test_images")  # names in an npz file, the first that is there


def predict(
    subnetwork: Artifact,
    inputs: Any,
    *,
    network: nn.Module | str | None = None,
) -> Any:
    """Predict new inputs: a `Prediction`, or what the run's task predicts.

    classification       Prediction: classes (N,), probabilities (N, classes), names
    multi_label          MultiLabelPrediction: labels (N, labels) bool, probabilities, names
    regression           RegressionPrediction: values (N,) or (N, targets)
    segmentation         SegmentationPrediction: classes (N, H, W), probabilities (N, classes, H, W), names
    language_modeling    NextTokenPrediction: the likeliest next tokens (N,), probabilities (N, vocabulary)
    a task of your own   what the network returns

    subnetwork
              a subnetwork, or an exported network
    inputs    a tensor or array (N, ...), a list of them without N, or one: uint8 images (N, C, H, W), which are normalised as
              in the run, or other inputs as they were in training; a Dataset, or a DataLoader that does not shuffle, whose
              labels are left out; images of Pillow, image files, or a folder of them, which are resized and cropped to the
              run's size; an .npy or .npz file; of a run on a table a .csv or .parquet file with its columns. A tuple or
              mapping of tensors or arrays, if the network takes several inputs. For language_modeling, tokens (N, any length)
    network   a module or `package.module:factory`; needed if the network is neither built in nor from torchvision

    Raises UserError for inputs of another shape or type than the run's, and for files that cannot be read.
    """
    origin = subnetwork.origin
    net = network_of(subnetwork, network).eval()
    built_in = (origin.task or {"name": "classification"})["name"] in task_names()
    task: Task = task_of_run(subnetwork) if built_in else Task(name="own")
    values = _checked(_values(inputs, origin, task.kind_of_labels.key), origin, task.any_length)
    outside = statistics_outside(subnetwork)
    found = []
    with guarded("the network fails on these inputs"), torch.no_grad():
        for start in range(0, length_of(values), task.predicted_at_once):
            part = rows_of(values, start, start + task.predicted_at_once)
            part = prepare(part, *outside) if isinstance(part, Tensor) else part
            found.append(task.answer(call(net, part), part))
    return task.prediction(joined(found), origin.classes, origin.class_names)


def _checked(values: Any, origin: Origin, any_length: bool) -> Any:
    """The inputs with the types of the run's. Raises UserError when their structure, shapes or types differ from those."""
    if origin.input_spec is None:
        if not isinstance(values, Tensor):
            raise UserError(f"the inputs are a {type(values).__name__}; the subnetwork takes one tensor of {origin.shape}")
        values = values[None] if tuple(values.shape) == origin.shape else values
        if tuple(values.shape[1:]) != origin.shape and not (any_length and values.dim() == 1 + len(origin.shape)):
            got = f"{str(values.dtype).removeprefix('torch.')} of shape {tuple(values.shape)}"
            raise UserError(f"the inputs are {got}; the subnetwork takes {_wanted(values, origin)}")
        if not len(values):
            raise UserError("the inputs are empty")
        if origin.mean is not None and values.dtype != torch.uint8:
            raise UserError(
                f"the subnetwork takes uint8 images, which are normalised as in its run; got {values.dtype}: if these are "
                "0 to 1, pass (255 * inputs).round().byte()"
            )
        if (
            origin.mean is None
            and values.dtype == torch.uint8
            and origin.high is not None
            and (high := int(values.max())) > origin.high
        ):
            raise UserError(
                f"the inputs are uint8 up to {high}, and those of the run were {origin.dtype} from {origin.low:g} to "
                f"{origin.high:g}: scale them in the same way, such as inputs / 255"
            )
        if origin.mean is not None:
            return values
    wanted, given = (dict(tensors_in(one)) for one in (origin.inputs(1), values))
    if wanted.keys() != given.keys():
        got, names = (", ".join(name or "one tensor" for name in one) for one in (given, wanted))
        raise UserError(f"the inputs are {got or 'empty'}; the subnetwork takes {names}")
    for name, like in wanted.items():
        tensor, what = given[name], f"the inputs {name}".rstrip()
        if tensor.dim() != like.dim():
            raise UserError(f"{what} have shape {tuple(tensor.shape)}; the subnetwork takes {('N', *like.shape[1:])}")
        if not like.is_floating_point() and tensor.is_floating_point():
            raise UserError(f"the subnetwork takes indices ({str(like.dtype).removeprefix('torch.')}), got {tensor.dtype}")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(f"{what} contain NaN or infinite values")
    if len({len(tensor) for tensor in given.values()}) > 1:
        raise UserError(f"the inputs have different lengths: {', '.join(str(len(tensor)) for tensor in given.values())}")
    return _like(values, origin.inputs(1))


def _wanted(values: Tensor, origin: Origin) -> str:
    """What a subnetwork takes, and how to get there from the shape of these inputs, if that is clear."""
    kind = "uint8" if origin.mean is not None else origin.dtype
    shape, given = ", ".join(("N", *map(str, origin.shape))), tuple(values.shape)
    hint = ""
    if len(origin.shape) == len(given[-3:]) == 3 and (given[-1], *given[-3:-1]) == origin.shape:
        order = "0, 3, 1, 2" if len(given) == 4 else "2, 0, 1"
        hint = f"; images are (N, channels, height, width): pass inputs.permute({order})"
    elif len(given) == len(origin.shape) and origin.shape[0] == 1 and given[1:] == origin.shape[1:]:
        hint = "; pass inputs[:, None]"
    return f"{kind} ({shape}){hint}"


def _like(values: Any, example: Any) -> Any:
    """The inputs with the types of those of the run, and with its values of what is no tensor."""
    if isinstance(example, Mapping):
        return {name: _like(values.get(name), one) for name, one in example.items()}
    if isinstance(example, tuple):
        return tuple(_like(values[index] if index < len(values) else None, one) for index, one in enumerate(example))
    return values.to(example.dtype) if isinstance(example, Tensor) else example


def _values(inputs: Any, origin: Origin, label_key: str | None) -> Any:
    """The inputs as a tensor (N, ...), or as nested tensors if the network takes several."""
    if isinstance(inputs, str | Path | Image.Image):
        inputs = [inputs]
    if isinstance(inputs, Sequence) and inputs and isinstance(inputs[0], str | Path):
        return _from_files([Path(path) for path in inputs], origin)
    if isinstance(inputs, DataLoader | Dataset):
        inputs = _of_items(inputs, label_key)
    elif isinstance(inputs, Sequence) and inputs and isinstance(inputs[0], Image.Image):
        return _images(inputs, origin)
    elif origin.input_spec is None and isinstance(inputs, tuple):
        raise UserError(f"the inputs are a tuple; the subnetwork takes one tensor (N, {str(origin.shape)[1:]}, without labels")
    elif origin.input_spec is None and isinstance(inputs, list) and inputs and isinstance(inputs[0], Tensor | np.ndarray):
        with guarded("the inputs cannot be put together in one tensor"):
            inputs = torch.stack([torch.as_tensor(one) for one in inputs])
    return _tensors(inputs, nested=origin.input_spec is not None)


def _of_items(data: Any, label_key: str | None) -> Any:
    """The inputs of all items of a Dataset, or of all batches of a DataLoader, in their order."""
    loader = data if isinstance(data, DataLoader) else DataLoader(data, batch_size=PER_BATCH)
    if isinstance(loader.sampler, RandomSampler):
        raise UserError("the DataLoader shuffles, so the order of the predictions would not be known: pass its dataset")
    with guarded("the data cannot be read"):
        batches = [batch[0] if _single(batch) else split_batch(batch, label_key)[0] for batch in loader]
    if not batches:
        raise UserError("the data is empty")
    return joined(batches)


def _single(batch: Any) -> bool:
    """Whether a batch has inputs alone, as of a TensorDataset of one tensor."""
    return isinstance(batch, tuple | list) and len(batch) == 1


def _tensors(inputs: Any, nested: bool) -> Any:
    if isinstance(inputs, Mapping):
        return {str(name): _tensors(value, nested) for name, value in inputs.items()}
    if nested and isinstance(inputs, tuple | list):
        return tuple(_tensors(value, nested) for value in inputs)
    if nested and (inputs is None or isinstance(inputs, bool | int | float | str)):
        return inputs
    try:
        values = torch.as_tensor(np.asarray(inputs) if hasattr(inputs, "iloc") else inputs).detach().cpu()
    except Exception as error:  # arrays of any library
        raise UserError(f"the inputs cannot be converted to a tensor: {type(inputs).__name__}, {reason(error)}") from error
    return values.float() if values.dtype == torch.float64 else values


def _from_files(paths: list[Path], origin: Origin) -> Any:
    [first, *others] = paths
    if not others and first.suffix in (".csv", ".parquet"):
        encoding = DataSpec.of(origin.data).encoding if origin.data else None
        if encoding is None or not encoding.columns:
            raise UserError(f"{first} is a table, and the run was on other data")
        return encode(first, encoding.columns)
    if not others and first.suffix in (".npy", ".npz"):
        with guarded(f"{first} is not a readable {first.suffix} file"):
            loaded = np.load(first, allow_pickle=False)
            if first.suffix == ".npz" and origin.input_spec is not None:
                return {name: torch.from_numpy(loaded[name]) for name in loaded}
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
    files = [file for path in paths for file in (readers.images_in(path) if path.is_dir() else [path])]
    if not files:
        raise UserError(f"{first} has no images")
    return _images(files, origin)


def _images(files: Sequence[Any], origin: Origin) -> Tensor:
    """Image files, or images of Pillow, as uint8 (N, channels, height, width) of the run's size."""
    if origin.mean is None or len(origin.shape) != 3 or origin.shape[1] != origin.shape[2]:
        raise UserError(f"the subnetwork takes inputs of shape {origin.shape}, and no images: pass an .npy or .npz file")
    return readers.images(files, origin.shape[1], origin.shape[0])
