"""Data passed from Python: tensors, arrays, a Dataset or a DataLoader; every item is read once, in order."""

from collections.abc import Iterable, Iterator
from itertools import combinations, count, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
)

from subnet_search.core.errors import UserError, guarded
from subnet_search.data.sources import Data, DataSpec, Split, assemble, load

_END = object()


def from_user(data: Any, val_fraction: float = 0.1, split_seed: int = 0, *, mean: Any = None, std: Any = None) -> Data:
    """Data from tensors `(inputs, labels)`, a map-style or iterable Dataset, a DataLoader, or a name.

    A Dataset is read once and kept as tensors, so a random transform is applied only once (use `Recipe(augment=...)`
    instead). From a DataLoader the dataset is read in order, without workers; collate_fn is used, shuffling and drop_last
    are not. A SubsetRandomSampler selects the items; a sampler that may draw an item more than once is refused, since
    copies of an item could be in both training and validation.
    uint8 images (N, C, H, W) are scaled to 0..1 and normalised by `mean` and `std`, one number for each channel (default:
    the mean and standard deviation of the training images). Other inputs are not normalised. Only data by name has a
    test split.
    Raises UserError for anything that is not a classification data set, and for an invalid mean or std.
    """
    set_here = {key: value for key, value in (("mean", mean), ("std", std)) if value is not None}
    if isinstance(data, Data):
        if set_here:
            raise UserError("this data is already loaded: pass mean and std to load_data")
        return data
    if isinstance(data, str | DataSpec | dict):
        named = DataSpec.of(data)
        return load(DataSpec.of({**named.model_dump(exclude_unset=True), **set_here}))
    if isinstance(data, DataLoader):
        _refuse_copies(data.dataset)
        inputs, labels = _joined(_batches(data), stacked=False)
    elif isinstance(data, Dataset):
        _refuse_copies(data)
        inputs, labels = _joined(_items(data), stacked=True)
    elif isinstance(data, tuple | list) and len(data) == 2:
        inputs, labels = _tensor(data[0], "the inputs"), _tensor(data[1], "the labels")
        labels = labels.view(-1) if labels.shape == (len(inputs), 1) else labels
    else:
        raise UserError(
            "data must be a name, a pair (inputs, labels), a Dataset or DataLoader of such pairs, "
            f"or the result of subnet_search.load_data, got {type(data).__name__}"
        )
    if labels.is_floating_point() or labels.is_complex():
        raise UserError(f"labels must be whole numbers (class indices), got {labels.dtype}")
    if inputs.is_complex():
        raise UserError(f"inputs must be real numbers, got {inputs.dtype}")
    if inputs.dtype == torch.float64:
        inputs = inputs.float()
    spec = DataSpec.of({"name": "digits", "val_fraction": val_fraction, "split_seed": split_seed, **set_here})
    return assemble(spec, Split(inputs, labels.long()), None, lambda: None, None, given=True)


def _tensor(part: Any, what: str) -> Tensor:
    """A dense, detached tensor on the CPU. Raises UserError for anything else."""
    if isinstance(part, Tensor):
        tensor = part.detach()
    else:
        try:
            tensor = torch.as_tensor(part)
        except Exception as error:  # arrays and array-likes of any library
            raise UserError(f"{what} cannot be converted to a tensor: {_reason(part, error)}") from error
    if tensor.layout != torch.strided or tensor.is_nested:
        raise UserError(f"{what} are sparse or nested: pass a dense tensor (tensor.to_dense())")
    if tensor.is_meta:
        raise UserError(f"{what} are on the meta device, which has no values")
    return tensor.cpu()


def _reason(part: Any, error: Exception) -> str:
    kind = type(part)
    if kind.__module__.partition(".")[0] == "PIL":
        return "it is a PIL image; add torchvision.transforms.v2.PILToTensor() to the data set's transform"
    try:
        array = np.asarray(part)
    except Exception:
        return str(error).strip().partition("\n")[0]
    if array.dtype.kind in "USO":
        first = array.reshape(-1)[0] if array.size else None
        held = "text" if array.dtype.kind in "US" or isinstance(first, str) else f"objects ({type(first).__name__})"
        return f"it holds {held}; labels must be class indices from 0, inputs arrays of one numeric type"
    return str(error).strip().partition("\n")[0]


def _joined(pairs: Iterable[Any], stacked: bool) -> tuple[Tensor, Tensor]:
    """Stack items (`stacked`) or concatenate batches. Raises UserError when they are not pairs, or differ in shape."""
    inputs, labels = list[Tensor](), list[Tensor]()
    for index, pair in enumerate(pairs):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            got = f"{type(pair).__name__} of {len(pair)}" if hasattr(pair, "__len__") else type(pair).__name__
            raise UserError(f"every item of the data must be a pair (inputs, label), got {got}")
        inputs.append(_tensor(pair[0], f"the inputs of item {index}" if stacked else "the inputs"))
        labels.append(_tensor(pair[1], f"the label of item {index}" if stacked else "the labels"))
    if not inputs:
        raise UserError("the data set is empty")
    join = torch.stack if stacked or not labels[0].dim() else torch.cat
    try:
        return join(inputs), join(labels)
    except RuntimeError as error:
        raise UserError(f"the items of the data have different shapes: {str(error).splitlines()[0]}") from error


def _items(data: Any, order: Iterable[Any] | None = None) -> Iterator[Any]:
    """The items of a dataset, in order; with `order` those at these indices."""
    if order is None and not isinstance(data, IterableDataset) and hasattr(data, "__len__"):
        order = range(len(data))
    reader = iter(()) if order is not None else iter(data)
    for index in count() if order is None else order:
        with guarded(f"item {index} of the data cannot be read"):
            item = next(reader, _END) if order is None else data[index]
        if item is _END:
            return
        yield item


def _batches(loader: DataLoader[Any]) -> Iterator[Any]:
    """The collated batches of a loader's dataset, in order."""
    iterable = isinstance(loader.dataset, IterableDataset)
    items = _items(loader.dataset, None if iterable else _order(loader))
    size = getattr(loader.batch_sampler, "batch_size", None)
    with guarded("the DataLoader's collate_fn fails"):
        if loader.batch_sampler is None:  # automatic batching is off: each item is a batch
            yield from (loader.collate_fn(item) for item in items)
            return
        while batch := list(islice(items, size)):
            yield loader.collate_fn(batch)


def _order(loader: DataLoader[Any]) -> Iterable[Any]:
    """The indices of the items that a loader draws, sorted. Raises UserError when it may draw an item more than once."""
    sampler: Any = loader.sampler
    if loader.batch_sampler is not None:
        sampler = loader.batch_sampler.sampler if type(loader.batch_sampler) is BatchSampler else loader.batch_sampler
    kind = type(sampler)
    if kind is SequentialSampler:
        return range(len(sampler.data_source))
    if kind is RandomSampler and not sampler.replacement and sampler.num_samples <= len(sampler.data_source):
        return range(len(sampler.data_source))
    if kind is SubsetRandomSampler or kind in (list, tuple, range):
        with guarded("the sampler's indices cannot be read"):
            return sorted({int(index) for index in getattr(sampler, "indices", sampler)})
    raise UserError(
        f"a DataLoader with {kind.__name__} may draw an item more than once, so the validation split could contain training "
        "items: pass its dataset"
    )


def _refuse_copies(data: Any) -> None:
    """Raise UserError for a Subset or ConcatDataset with repeated items."""
    repeated = False
    if isinstance(data, Subset):
        repeated = len({int(index) for index in data.indices}) < len(data.indices)
        _refuse_copies(data.dataset)
    elif isinstance(data, ConcatDataset):
        repeated = any(one is other for one, other in combinations(data.datasets, 2))
        for part in data.datasets:
            _refuse_copies(part)
    if repeated:
        raise UserError(
            f"this {type(data).__name__} holds items more than once, so the validation split could contain training items: "
            "remove the duplicates"
        )
