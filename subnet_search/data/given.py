"""Data passed from Python: tensors, arrays, a Dataset or a DataLoader; every item is read once, in order."""

import logging
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sized
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
    TensorDataset,
    WeightedRandomSampler,
)

from subnet_search.core.errors import UserError, guarded, unknown
from subnet_search.data.sources import Data, DataSpec, Split, assemble, load

log = logging.getLogger(__name__)

_END = object()
PARTS = ("train", "val", "test")
AS_FLOAT = (torch.float64, torch.uint16, torch.uint32, torch.uint64)  # torch 2.6 cannot index the unsigned ones


def from_user(
    data: Any, val_fraction: float = 0.1, split_seed: int = 0, *, mean: Any = None, std: Any = None, all_is_test: bool = False
) -> Data:
    """Data from tensors `(inputs, labels)`, a map-style or iterable Dataset, a DataLoader, or a name; or from such parts.

    Parts are `(train, val, test)`, `(train, val)` or `{"train": ..., "val": ..., "test": ...}`; val and test may be None or
    missing. Without a validation part, `val_fraction` of the training items are held out. The test part is read only when
    it is needed. With `all_is_test`, data that is not in parts is its own test split: for evaluation alone.
    A Dataset is read once and kept as tensors, so a random transform is applied only once (use `Recipe(augment=...)`
    instead). From a DataLoader the dataset is read in order, without workers; collate_fn is used, shuffling and drop_last
    are not. A SubsetRandomSampler selects the items, and the weights of a WeightedRandomSampler are sampling weights of the
    training items; any other sampler that may draw an item more than once is refused, since copies of an item could be in
    both training and validation.
    uint8 images (N, C, H, W) are scaled to 0..1 and normalised by `mean` and `std`, one number for each channel (default:
    the mean and standard deviation of the training images). Other inputs are not normalised.
    Raises UserError for anything that is not a classification data set, for items that are in two parts, and for an invalid
    mean or std.
    """
    set_here = {key: value for key, value in (("mean", mean), ("std", std)) if value is not None}
    if isinstance(data, Data):
        if set_here:
            raise UserError("this data is already loaded: pass mean and std to load_data")
        return data
    spec = DataSpec.of({"name": "digits", "val_fraction": val_fraction, "split_seed": split_seed, **set_here})
    if parts := _parts(data):
        _refuse_shared_items(parts)
        train, val, test = (parts.get(name) for name in PARTS)
        test_split = lambda: None if test is None else _split(test)  # noqa: E731
        train_split, val_split = _split(train), None if val is None else _split(val)
        if val_split is not None:
            _warn_of_copies(train_split, val_split)
        return assemble(spec, train_split, val_split, test_split, _names(train), given=True)
    if isinstance(data, str | DataSpec | dict):
        named = DataSpec.of(data)
        return load(DataSpec.of({**named.model_dump(exclude_unset=True), **set_here}))
    split = _split(data)
    if all_is_test:
        return assemble(spec, split, split, lambda: split, _names(data), given=True)
    return assemble(spec, split, None, lambda: None, _names(data), given=True)


def _names(data: Any) -> list[str] | None:
    """The class names of a Dataset, if it has a list of them in `classes`, as those of torchvision do."""
    while isinstance(data, DataLoader | Subset):
        data = data.dataset
    names = getattr(data, "classes", None)
    if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
        return list(names)
    return None


def _parts(data: Any) -> dict[str, Any] | None:
    """The parts of data that is passed in parts; None for a whole. Raises UserError for parts without training items."""
    if isinstance(data, dict) and data.keys() & set(PARTS):
        if unknown_keys := data.keys() - set(PARTS):
            raise unknown("part of the data", str(min(unknown_keys, key=str)), PARTS)
        parts = dict(data)
    elif isinstance(data, tuple) and len(data) in (2, 3) and all(map(_is_whole, data)):
        parts = dict(zip(PARTS, data, strict=False))
    else:
        return None
    if parts.get("train") is None:
        raise UserError("data in parts needs a training part: (train, val, test) or {'train': ..., 'val': ..., 'test': ...}")
    return parts


def _is_whole(data: Any) -> bool:
    """Whether this is a data set or missing, and not the inputs or labels of one."""
    pair = isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor | np.ndarray) for part in data)
    return data is None or pair or (isinstance(data, Dataset | DataLoader) and not isinstance(data, Tensor))


def _refuse_shared_items(parts: Mapping[str, Any]) -> None:
    """Raise UserError when two parts have an item of a Dataset in common, or are the same tensors."""
    items = {name: _identities(part) for name, part in parts.items() if part is not None}
    for (one, mine), (other, theirs) in combinations(items.items(), 2):
        if mine & theirs:
            raise UserError(f"the {one} and {other} parts of the data have {len(mine & theirs):,} items in common")


def _warn_of_copies(train: Split, val: Split) -> None:
    """Log how many validation inputs are equal to a training input: validation does not measure generalisation on those."""
    rows = {row.tobytes() for row in train.inputs.numpy()}
    if copies := sum(row.tobytes() in rows for row in val.inputs.numpy()):
        log.warning("%d of %d validation inputs are equal to a training input", copies, len(val))


def _identities(data: Any) -> set[tuple[int, int]]:
    """The items of a part, each as the identity of its data set and its index there."""
    if isinstance(data, DataLoader):
        return (
            _identities(data.dataset)
            if isinstance(data.dataset, IterableDataset)
            else set(_located(data.dataset, _order(data)))
        )
    if isinstance(data, tuple | list):
        return _rows(data[0])
    if isinstance(data, TensorDataset):
        return _rows(data.tensors[0])
    if isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
        return {(id(data), 0)}
    return set(_located(data, range(len(data))))


def _rows(inputs: Any) -> set[tuple[int, int]]:
    """Rows of a tensor or array by their place in memory, which slices of one tensor share."""
    try:
        tensor = torch.as_tensor(inputs)
    except Exception:  # reported when the data is read
        return {(id(inputs), 0)}
    if not tensor.dim() or tensor.layout != torch.strided:
        return {(id(inputs), 0)}
    start, step = tensor.data_ptr(), tensor.stride(0) * tensor.element_size()
    return {(0, start + index * step) for index in range(len(tensor))}


def _located(data: Any, indices: Iterable[Any]) -> Iterator[tuple[int, int]]:
    """Where the items at these indices are, behind every Subset and ConcatDataset."""
    for index in map(int, indices):
        if isinstance(data, Subset):
            yield from _located(data.dataset, [data.indices[index]])
        elif isinstance(data, ConcatDataset):
            part = bisect_right(data.cumulative_sizes, index)
            yield from _located(data.datasets[part], [index - (data.cumulative_sizes[part - 1] if part else 0)])
        elif isinstance(data, TensorDataset):
            tensor = data.tensors[0]
            yield 0, tensor.data_ptr() + index * tensor.stride(0) * tensor.element_size()
        else:
            yield id(data), index


def _split(data: Any) -> Split:
    """Inputs and labels of data that is not in parts."""
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
            "data must be a name, a pair (inputs, labels), a Dataset or DataLoader of such pairs, (train, val, test) of these, "
            f"or the result of subnet_search.load_data, got {type(data).__name__}"
        )
    if labels.is_floating_point() or labels.is_complex():
        raise UserError(f"labels must be whole numbers (class indices), got {labels.dtype}")
    if inputs.is_complex():
        raise UserError(f"inputs must be real numbers, got {inputs.dtype}")
    weights = _weights(data, len(labels)) if isinstance(data, DataLoader) else None
    return Split(inputs.float() if inputs.dtype in AS_FLOAT else inputs, labels.long(), weights)


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
    sampler = _sampler(loader)
    kind = type(sampler)
    if kind is WeightedRandomSampler and isinstance(loader.dataset, Sized):
        return range(len(loader.dataset))  # each item once: the weights are those of training batches
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


def _sampler(loader: DataLoader[Any]) -> Any:
    """What draws the items of a loader."""
    if loader.batch_sampler is None:
        return loader.sampler
    return loader.batch_sampler.sampler if type(loader.batch_sampler) is BatchSampler else loader.batch_sampler


def _weights(loader: DataLoader[Any], count: int) -> Tensor | None:
    """The sampling weights (count,) of a loader with a WeightedRandomSampler. Raises UserError for invalid ones."""
    sampler = _sampler(loader)
    if type(sampler) is not WeightedRandomSampler:
        return None
    weights = torch.as_tensor(sampler.weights, dtype=torch.float64).cpu()
    if weights.shape != (count,):
        raise UserError(f"the WeightedRandomSampler has {weights.numel()} weights, but the data has {count} items")
    if not weights.isfinite().all() or weights.min() < 0 or not weights.any():
        raise UserError("the weights of the WeightedRandomSampler must be finite numbers of at least 0, and not all be 0")
    return weights


def batch_size_of(data: Any) -> int | None:
    """The batch size of a DataLoader, or of the training part of data in parts; None if it has none."""
    parts = _parts(data)
    train = parts["train"] if parts else data
    return getattr(train.batch_sampler, "batch_size", None) if isinstance(train, DataLoader) else None


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
