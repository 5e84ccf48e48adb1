"""Data passed from Python: tensors, arrays, a Dataset or a DataLoader, whole or in parts."""

import copy
import hashlib
import logging
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from functools import partial
from itertools import combinations
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
    default_collate,
    default_convert,
)

from subnet_search.core.errors import RunError, UserError, guarded, unknown
from subnet_search.core.nested import length_of, map_tensors, tensors_in
from subnet_search.data.batch import Labels, instead, split_batch
from subnet_search.data.items import Items, counted, scan
from subnet_search.data.rows import Rows, is_mapped, shared_rows
from subnet_search.data.sources import Data, DataSpec, assemble, load
from subnet_search.data.split import Split

log = logging.getLogger(__name__)

CLASSES = Labels()
PARTS = ("train", "val", "test")
AS_FLOAT = (torch.float64, torch.uint16, torch.uint32, torch.uint64)  # torch 2.6 cannot index the unsigned ones


def from_user(
    data: Any,
    val_fraction: float = 0.1,
    split_seed: int = 0,
    *,
    mean: Any = None,
    std: Any = None,
    labels: Labels = CLASSES,
    workers: int | None = None,
    val_transform: Any = None,
    all_is_test: bool = False,
    named: DataSpec | None = None,
) -> Data:
    """Data from tensors, a Dataset, a DataLoader, or a name; or from such parts.

    Tensors are `(inputs, labels)`, each a tensor or nested tensors with one row for each item; a mapping of tensors; or, for
    a task without class labels, one tensor such as token ids. Parts
    are `(train, val, test)`, `(train, val)` or `{"train": ..., "val": ..., "test": ...}`; val and test may be None or missing.
    Without a validation part, `val_fraction` of the training items are held out, and all copies of an item are in one part.
    The test part is read only when it is needed; `{"test": ...}` may be a function that returns it. With `all_is_test`, data
    that is not in parts is its own test split: for evaluation alone.

    Tensors and a TensorDataset stay in memory. The items of any other Dataset, and the rows of memory-mapped arrays
    (`np.memmap`), are read when they are needed, anew in every epoch, by `workers` processes (default: a DataLoader's,
    otherwise none), with random numbers that are a function of (seed, epoch, index). One pass before training checks all
    items. Held-out items have the data set's own transform, with the same random numbers at each validation, unless
    `val_transform` replaces it: a callable in place of the attribute `transform` of the Dataset, or {attribute: callable}.
    An iterable Dataset is read in its own order, and needs a validation part.
    From a DataLoader come the dataset, the collate function and the workers; the order is ours. A SubsetRandomSampler selects
    the items, and the weights of a WeightedRandomSampler are sampling weights of the training items; any other sampler that
    may draw an item more than once is refused.

    labels: what the labels are. named: the spec that this data was made for; its settings replace those given here.
    uint8 images (N, C, H, W) are scaled to 0..1 and normalised by `mean` and `std`, one number for each channel (default:
    the mean and standard deviation of the training images). Other inputs are not normalised.
    Raises UserError for data of another kind, for items that are in two parts, and for an invalid mean or std.
    """
    if named is not None:
        val_fraction, split_seed, mean, std = named.val_fraction, named.split_seed, named.mean, named.std
    set_here = {key: value for key, value in (("mean", mean), ("std", std)) if value is not None}
    if isinstance(data, Data):
        if set_here:
            raise UserError("this data is already loaded: pass mean and std to load_data")
        return data
    spec = named or DataSpec.of({"name": "digits", "val_fraction": val_fraction, "split_seed": split_seed, **set_here})
    parts = _parts(data)
    if not parts and isinstance(data, str | DataSpec | dict) and not _is_batch(data):
        spec = DataSpec.of({**DataSpec.of(data).model_dump(exclude_unset=True), **set_here})
        return load(spec, labels, all_is_test)
    read = partial(_split_of, kind=labels, workers=workers)
    put = partial(assemble, spec, given=named is None, kind=labels)
    if parts:
        _refuse_shared_items(parts)
        train, val, test = (parts.get(name) for name in PARTS)

        def test_split() -> Split | Items | None:
            made = test() if callable(test) else test
            return None if made is None else _changed(read(made, scanned=False, part="the test part")[0], val_transform)

        train_split, sums = read(train, part="the training part")
        val_split = None if val is None else _changed(read(val, part="the validation part")[0], val_transform)
        if isinstance(train_split, Split) and isinstance(val_split, Split):
            _warn_of_copies(train_split, val_split)
        groups = None
        if val_split is None:
            groups = _groups(train, train_split)
            _check_can_be_held_out(train_split, val_transform)
        found = put(train_split, val_split, test_split, _names(train), sums=sums, groups=groups)
        return found if val is not None else replace(found, val=_changed(found.val, val_transform))
    split, sums = read(data)
    if all_is_test:
        return put(split, split, lambda: split, _names(data), sums=sums)
    _check_can_be_held_out(split, val_transform)
    found = put(split, None, lambda: None, _names(data), sums=sums, groups=_groups(data, split))
    return replace(found, val=_changed(found.val, val_transform))


def _changed(split: Any, transform: Any) -> Any:
    """The items with another transform, for validation. Raises UserError when the dataset has no such attribute."""
    if transform is None:
        return split
    if not isinstance(split, Items):
        raise UserError("val_transform replaces the transform of a Dataset, and this data is tensors in memory")
    changes = transform if isinstance(transform, Mapping) else {"transform": transform}
    dataset = _with_attributes(split.dataset, dict(changes))
    return replace(split, dataset=dataset)


def _with_attributes(data: Any, changes: dict[str, Any]) -> Any:
    """A copy of a dataset, and of the one inside a Subset, with other attributes."""
    copied = copy.copy(data)
    if isinstance(data, Subset) and not all(hasattr(data, name) for name in changes):
        copied.dataset = _with_attributes(data.dataset, changes)
        return copied
    if missing := [name for name in changes if not hasattr(data, name)]:
        raise UserError(f"val_transform: {type(data).__name__} has no attribute {missing[0]!r}")
    for name, value in changes.items():
        setattr(copied, name, value)
    return copied


def _check_can_be_held_out(split: Split | Items, val_transform: Any) -> None:
    """Raise UserError for an iterable dataset; log when the held-out items are random, as with augmentation."""
    if not isinstance(split, Items):
        return
    if isinstance(split.dataset, IterableDataset):
        raise UserError("an iterable data set keeps its order, so no items can be held out for validation: pass (train, val)")
    if val_transform is None and _is_random(split):
        log.warning(
            "the items of the data are random, and so are those held out for validation: pass (train, val), or val_transform"
        )


def _is_random(items: Items, looked_at: int = 8) -> bool:
    """Whether some of the first items differ between two readings."""
    positions = range(min(looked_at, len(items)))
    one, other = (next(items.read([[(epoch, position) for position in positions]])) for epoch in ("val", "scan"))
    pairs = zip(tensors_in(one), tensors_in(other), strict=True)
    return any(not torch.equal(mine, theirs) for (_, mine), (_, theirs) in pairs)


def _groups(data: Any, split: Split | Items) -> Tensor | None:
    """For each item the number of its first copy (N,); None where no item has a copy."""
    if isinstance(split, Split):
        return first_copies(split.inputs)
    if isinstance(split.dataset, Rows):
        return None
    dataset = data.dataset if isinstance(data, DataLoader) else data
    return _first(list(_located(dataset, split.places.tolist())))


def first_copies(inputs: Any) -> Tensor | None:
    """For each item the number of the first one with equal inputs (N,); None where no two are equal."""
    return _first(list(_row_digests(inputs)))


def _first(keys: list[Any]) -> Tensor | None:
    first: dict[Any, int] = {}
    numbers = [first.setdefault(key, index) for index, key in enumerate(keys)]
    return None if len(first) == len(keys) else torch.tensor(numbers)


def _row_digests(inputs: Any) -> Iterator[bytes]:
    """A hash of each item's inputs."""
    if not length_of(inputs):
        return
    tensors = [tensor.contiguous().view(len(tensor), -1).view(torch.uint8).numpy() for _, tensor in tensors_in(inputs)]
    for rows in zip(*tensors, strict=True):
        yield hashlib.blake2b(b"".join(row.tobytes() for row in rows), digest_size=16).digest()


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
    arrays = Tensor | np.ndarray
    pair = isinstance(data, tuple | list) and len(data) == 2 and isinstance(data[1], arrays)
    pair = pair and (isinstance(data[0], arrays | tuple) or _is_batch(data[0]))
    return data is None or pair or _is_batch(data) or isinstance(data, DataLoader) or _is_map_style(data)


def _refuse_shared_items(parts: Mapping[str, Any]) -> None:
    """Raise UserError when two parts have an item of a Dataset in common, or are the same tensors."""
    items = {name: _identities(part) for name, part in parts.items() if part is not None}
    for (one, mine), (other, theirs) in combinations(items.items(), 2):
        mapped = is_mapped(parts[one]) and is_mapped(parts[other])
        if shared := shared_rows(parts[one], parts[other]) if mapped else len(mine & theirs):
            raise UserError(f"the {one} and {other} parts of the data have {shared:,} items in common")


def _warn_of_copies(train: Split, val: Split) -> None:
    """Log how many validation inputs are equal to a training input: validation does not measure generalisation on those."""
    rows = set(_row_digests(train.inputs))
    if copies := sum(row in rows for row in _row_digests(val.inputs)):
        log.warning("%d of %d validation inputs are equal to a training input", copies, len(val))


def _identities(data: Any) -> set[tuple[int, int]]:
    """The items of a part, each as the identity of its data set and its index there."""
    if is_mapped(data):
        return set()
    if isinstance(data, DataLoader):
        return (
            _identities(data.dataset)
            if isinstance(data.dataset, IterableDataset)
            else set(_located(data.dataset, _order(data)))
        )
    if isinstance(data, tuple | list | dict | Tensor | np.ndarray):
        return _rows(next((one for one in _leaves(data)), None))
    if isinstance(data, TensorDataset):
        return _rows(data.tensors[0])
    if isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
        return {(id(data), 0)}
    return set(_located(data, range(len(data))))


def _leaves(data: Any) -> Iterator[Any]:
    """The tensors and arrays in nested data."""
    if isinstance(data, Mapping | tuple | list):
        for part in data.values() if isinstance(data, Mapping) else data:
            yield from _leaves(part)
    else:
        yield data


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


def _split_of(
    data: Any, *, kind: Labels, workers: int | None, scanned: bool = True, part: str = "the data set"
) -> tuple[Split | Items, Tensor | None]:
    """Data that is not in parts, and sums of the pixels of its images if they are read item by item.

    part: what it is, for messages.
    """
    if isinstance(data, Dataset) and isinstance(data, Sized) and not len(data):
        raise UserError(f"{part} is empty")
    if is_mapped(data):
        return _items(Rows(_flat_labels(data, kind)), kind.key, workers, scanned)
    if isinstance(data, DataLoader | Dataset) or _is_map_style(data):
        inner = _in_memory(data)
        if inner is None:
            return _items(data, kind.key, workers, scanned)
        weights = _weights(data, len(inner)) if isinstance(data, DataLoader) else None
        return replace(_checked(inner, kind.classes), weights=weights), None
    if isinstance(data, tuple | list) and len(data) == 2:
        inputs, labels = _tensors(data[0], "the inputs"), _tensors(data[1], "the labels")
        return _checked(Split(inputs, labels), kind.classes), None
    if _is_batch(data) or (isinstance(data, Tensor | np.ndarray) and not kind.classes):
        return Split(map_tensors(_as_whole, _tensors(data, "the data")), None), None
    several = "; a network of several inputs: ((a, b), labels)" if isinstance(data, tuple | list) and len(data) > 2 else ""
    raise UserError(
        "data must be a name, a pair (inputs, labels), a Dataset or DataLoader, (train, val, test) of these, "
        f"or the result of subnet_search.load_data, got {type(data).__name__}{several}"
    )


def _flat_labels(data: Any, kind: Labels) -> Any:
    """A pair of arrays; class labels (N, 1) as (N,)."""
    if isinstance(data, tuple | list) and len(data) == 2 and kind.classes and np.shape(data[1])[1:] == (1,):
        return data[0], data[1].reshape(-1)
    return data


def _checked(split: Split, class_labels: bool) -> Split:
    """The split with the types that training needs. Raises UserError for labels that are no class indices."""
    labels = split.labels
    if class_labels and isinstance(labels, Tensor):
        if labels.is_floating_point() or labels.is_complex():
            whole = not labels.is_complex() and bool((labels == labels.round()).all())
            raise UserError(f"labels must be whole numbers (class indices), got {labels.dtype}{instead(labels, whole)}")
        labels = (labels.flatten() if labels.shape[1:] == (1,) else labels).long()
    return Split(map_tensors(_as_input, split.inputs), map_tensors(_as_label, labels), split.weights)


def _as_input(inputs: Tensor) -> Tensor:
    if inputs.is_complex():
        raise UserError(f"inputs must be real numbers, got {inputs.dtype}")
    return inputs.float() if inputs.dtype in AS_FLOAT else inputs


def _as_whole(tensor: Tensor) -> Tensor:
    """Part of a whole batch, such as token ids: unsigned whole numbers as int64."""
    return tensor.long() if tensor.dtype in AS_FLOAT and not tensor.is_floating_point() else tensor


def _as_label(labels: Tensor) -> Tensor:
    return labels.float() if labels.dtype == torch.float64 else labels


def _is_batch(data: Any) -> bool:
    """Whether this is a mapping of tensors, one row for each item."""
    return isinstance(data, dict) and any(isinstance(value, Tensor | np.ndarray) for value in data.values())


def _is_map_style(data: Any) -> bool:
    """Whether this is a data set that is no torch Dataset, as Hugging Face's are."""
    if isinstance(data, str | tuple | list | dict | Tensor | np.ndarray):
        return False
    return hasattr(data, "__len__") and hasattr(data, "__getitem__")


def _in_memory(data: Any) -> Split | None:
    """The tensors of a TensorDataset, also in a Subset, ConcatDataset or DataLoader; None for other data sets."""
    if isinstance(data, DataLoader):
        if data.collate_fn not in (default_collate, default_convert) or isinstance(data.dataset, IterableDataset):
            return None
        inner, index = _in_memory(data.dataset), torch.tensor(list(_order(data)))
        return inner if inner is None or len(index) == len(inner) else inner.take(index)
    if type(data) is Subset:
        inner = _in_memory(data.dataset)
        return None if inner is None else inner.take(torch.tensor([int(index) for index in data.indices]))
    if type(data) is ConcatDataset:
        parts = [_in_memory(part) for part in data.datasets]
        if any(part is None for part in parts):
            return None
        pairs = [(part.inputs, part.labels) for part in parts if part is not None]
        with guarded("the items of the data have different shapes"):
            return Split(*(_concatenated(one) for one in zip(*pairs, strict=True)))
    if type(data) is TensorDataset:
        tensors = [_tensor(part, "the tensors of the data") for part in data.tensors]
        inputs, labels = split_batch(tuple(tensors))
        return Split(inputs, labels)
    return None


def _concatenated(values: Sequence[Any]) -> Any:
    if isinstance(values[0], Tensor):
        return torch.cat(list(values))
    return None if values[0] is None else tuple(torch.cat(list(parts)) for parts in zip(*values, strict=True))


def _items(data: Any, label_key: str | None, workers: int | None, scanned: bool) -> tuple[Items, Tensor | None]:
    """Items that are read when they are needed, after one pass over them."""
    loader = data if isinstance(data, DataLoader) else None
    dataset: Any = data if loader is None else loader.dataset
    iterable = isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__")
    length = counted(dataset) if iterable else len(dataset)
    if not length:
        raise UserError("the data set is empty")
    places = torch.arange(length) if loader is None or iterable else torch.tensor(list(_order(loader)))
    custom = loader is not None and loader.collate_fn not in (default_collate, default_convert)
    found = Items(
        dataset,
        places,
        length,
        loader.collate_fn if loader is not None and custom else default_collate,
        workers if workers is not None else loader.num_workers if loader is not None else 0,
        weights=_weights(loader, length) if loader is not None and not iterable else None,
    )
    if not scanned:
        return found, None
    try:
        seen = scan(found, label_key)
    except RunError as error:  # before training: the data is at fault
        raise UserError(str(error)) from error
    labels = None if seen.labels is None or seen.labels.is_floating_point() else seen.labels.long()
    return replace(found, labels=labels, digest=seen.digest, range=seen.range, values=seen.values), seen.sums


def _tensors(part: Any, what: str) -> Any:
    """Dense, detached tensors on the CPU, nested as they are given."""
    if isinstance(part, Mapping):
        return {key: _tensors(value, f"{what} {key!r}") for key, value in part.items()}
    if isinstance(part, tuple) and part and all(isinstance(one, Tensor | np.ndarray | Mapping | tuple) for one in part):
        return tuple(_tensors(one, what) for one in part)
    return _tensor(part, what)


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
        return (
            f"it holds {held}; labels must be class indices from 0, such as numpy.unique(labels, return_inverse=True)[1], "
            "inputs arrays of one numeric type"
        )
    return str(error).strip().partition("\n")[0]


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
