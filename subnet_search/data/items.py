"""Items of a Dataset that are read when they are needed, anew in every epoch.

The random numbers of an item are a function of (seed, epoch, index) for torch, numpy and random alike; the order of the items
is one of (seed, epoch).
A run that was stopped at any step therefore continues with the same batches, with any number of worker processes.
"""

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, default_collate

from subnet_search.core.errors import RunError, UserError, reason
from subnet_search.core.nested import Brief, length_of, moved, tensors_in
from subnet_search.core.rng import derive, own_random_state
from subnet_search.data.batch import split_batch
from subnet_search.data.rows import Rows
from subnet_search.data.values import Tally, Values

Key = tuple[int | str, int]
"""The epoch ("val", "test" or "scan" outside of training) and the place of an item to read."""
PER_SCAN = 256  # items in each batch of a scan and of a validation
PREFETCH = 4  # batches of each worker process that are read ahead


@dataclass(frozen=True, repr=False)
class Items(Brief):
    """Items of a Dataset; `split.Split` is the same in memory.

    dataset   map-style, or iterable: then items are read in its own order, and skipped up to the first that is needed
    places    the indices (N,) of the items in the dataset
    length    of the whole dataset
    collate   a list of items to a batch
    workers   processes that read items; 0: this one
    labels    class indices (N,), where the labels are such
    weights   sampling weights (N,) float64 of training items; None: each item once an epoch
    values    of labels and of inputs that are indices, over all items that were scanned: those held out later are counted too
    """

    dataset: Any
    places: Tensor
    length: int
    collate: Callable[[list[Any]], Any] = default_collate
    workers: int = 0
    seed: int = 0
    labels: Tensor | None = None
    weights: Tensor | None = None
    digest: str = ""
    device: torch.device | str = "cpu"
    range: tuple[str, float, float] | None = field(default=None, compare=False)
    values: Mapping[str, Values] = field(default_factory=dict, compare=False)

    def __len__(self) -> int:
        return len(self.places)

    def to(self, device: torch.device | str) -> "Items":
        """The same items, to be read onto `device`."""
        return replace(self, device=device)

    def take(self, index: Tensor) -> "Items":
        """The items at these positions: indices, or a bool mask (N,)."""
        chosen = {name: value[index] for name in ("labels", "weights") if (value := getattr(self, name)) is not None}
        return replace(self, places=self.places[index], **chosen)

    def seeded(self, seed: int) -> "Items":
        """The same items, with random numbers of another seed."""
        return replace(self, seed=seed)

    def first(self, count: int) -> Any:
        """The batch of the first `count` items, read as for validation."""
        return next(self.batches("val", count))

    def batches(self, epoch: int | str, size: int = PER_SCAN) -> Iterator[Any]:
        """Batches of all items in order, at most `size` items each, on the device."""
        keys = [(epoch, position) for position in range(len(self))]
        return self.read(keys[start : start + size] for start in range(0, len(keys), size))

    def read(self, keys: Iterable[Sequence[Key]]) -> Iterator[Any]:
        """The collated batch of each list of keys, in order. Raises RunError with the index of an item that fails."""
        if isinstance(self.dataset, IterableDataset):
            found = self._streamed(keys)
        elif self.workers:
            found = self._from_workers(keys)
        else:
            found = map(self._here, keys)
        for batch in found:
            if isinstance(batch, _Failure):
                raise RunError(batch.text)
            yield moved(batch, self.device)

    def check_length(self) -> None:
        """Raise RunError when the dataset has changed its length since the run began."""
        if hasattr(self.dataset, "__len__") and (now := len(self.dataset)) != self.length:
            raise RunError(f"the data set has {now} items, and had {self.length} when the run began")

    def _here(self, keys: Sequence[Key]) -> Any:
        with own_random_state():
            return _Collate(self.collate)(_Reader(self.dataset, self.places, self.seed).__getitems__(keys))

    def _from_workers(self, keys: Iterable[Sequence[Key]]) -> Iterator[Any]:
        loader = DataLoader(
            _Reader(self.dataset, self.places, self.seed),
            batch_sampler=keys,  # type: ignore[arg-type]  # keys in place of indices
            num_workers=self.workers,
            collate_fn=_Collate(self.collate),
            prefetch_factor=PREFETCH,
            generator=torch.Generator().manual_seed(0),  # the workers' seeds, which every item replaces
        )
        yield from loader

    def _streamed(self, keys: Iterable[Sequence[Key]]) -> Iterator[Any]:
        """Batches of an iterable dataset. It is read again from its beginning for every epoch."""
        now: int | str | None = None
        items: Iterator[Any] = iter(())
        position = 0
        for batch in keys:
            epoch, start = batch[0]
            with own_random_state():  # left before the batch is given away: this generator may never be resumed
                if epoch != now or start < position:
                    now, position = epoch, 0
                    _seed(self.seed, epoch, -1)
                    items = iter(self.dataset)
                read = []
                for index in range(position, int(batch[-1][1]) + 1):
                    _seed(self.seed, epoch, index)
                    item = _guarded(index, lambda items=items: next(items, _END))  # type: ignore[misc]
                    if item is _END:
                        raise RunError(f"the data set has {index} items, and had {self.length} when the run began")
                    if index >= start:
                        read.append(item)
                position = int(batch[-1][1]) + 1
                collated = _Collate(self.collate)(read)
            yield collated


_END = object()


@dataclass(frozen=True)
class _Failure:
    """An item that could not be read, in the place of its batch: exceptions of workers have many lines."""

    text: str


class _Reader(Dataset[Any]):
    """The items of a dataset by key, each with its own random numbers.

    A dataset that reads a whole batch at once (`__getitems__`) has the same random numbers for all items of a batch.
    """

    def __init__(self, dataset: Any, places: Tensor, seed: int) -> None:
        self.dataset, self.places, self.seed = dataset, places, seed
        self.batched = _reads_batches(dataset)

    def __getitems__(self, keys: Sequence[Key]) -> list[Any]:
        if self.batched:
            places = [int(self.places[position]) for _, position in keys]
            _seed(self.seed, keys[0][0], places[0])
            try:
                return list(self.dataset.__getitems__(places))
            except Exception:  # read one at a time, to name the item
                pass
        return [self[key] for key in keys]

    def __getitem__(self, key: Key) -> Any:
        epoch, position = key
        place = int(self.places[position])
        _seed(self.seed, epoch, place)
        return _guarded(place, lambda: self.dataset[place])


def _reads_batches(dataset: Any) -> bool:
    return _reads_batches(dataset.dataset) if isinstance(dataset, Subset) else hasattr(dataset, "__getitems__")


class _Collate:
    """The collate function, with failures passed on."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, items: list[Any]) -> Any:
        failed = next((item for item in items if isinstance(item, _Failure)), None)
        if failed is not None:
            return failed
        try:
            if self.collate is default_collate:
                items = [_plain(item) for item in items]
            return self.collate(items)
        except Exception as error:  # a collate function of a user can raise anything
            return _Failure(f"the items of the data cannot be put together in a batch: {_why(items, error)}")


def _guarded(index: int, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # a dataset of a user can raise anything
        return _Failure(f"item {index} of the data cannot be read: {reason(error)}")


def _why(items: list[Any], error: Exception) -> str:
    return _image(items[0]) or reason(error)


def _image(item: Any) -> str:
    """What to do about an item that is an image of PIL; empty for others."""
    if any(type(part).__module__.partition(".")[0] == "PIL" for part in _parts(item)):
        return "it is a PIL image; add torchvision.transforms.v2.PILToTensor() to the data set's transform"
    return ""


def _parts(item: Any) -> Iterable[Any]:
    if isinstance(item, Mapping):
        return item.values()
    return item if isinstance(item, tuple | list) else [item]


def _plain(item: Any) -> Any:
    """An item whose lists of numbers are tensors: token ids, as Hugging Face's data sets have them."""
    if isinstance(item, Mapping):
        return {key: _plain(value) for key, value in item.items()}
    if isinstance(item, tuple):
        return tuple(map(_plain, item))
    if isinstance(item, list):
        numbers = item and all(isinstance(value, int | float) and not isinstance(value, bool) for value in item)
        return torch.tensor(item) if numbers else [_plain(value) for value in item]
    return item


def _seed(seed: int, epoch: int | str, index: int) -> None:
    """Set the states of torch (CPU), numpy and random for an item."""
    number = derive(seed, "item", epoch, index)
    torch.default_generator.manual_seed(number)
    np.random.seed(number % 2**32)
    random.seed(number)


@contextmanager
def fixed_random_state(name: str) -> Iterator[None]:
    """Random numbers of torch (CPU), numpy and random that depend on `name` only; restored afterwards."""
    with own_random_state():
        _seed(0, name, 0)
        yield


@dataclass(frozen=True)
class Scan:
    """What one pass over the items of a dataset finds."""

    digest: str  # SHA-256 of all items
    labels: Tensor | None  # of the items, if they are one number each
    sums: Tensor | None  # sums of pixels and of their squares (N, 2, channels) int64, of uint8 images
    range: tuple[str, float, float] | None  # type, minimum and maximum of inputs that are one tensor
    values: dict[str, Values]  # of labels, and of inputs that are indices


def scan(items: Items, label_key: str | None = None) -> Scan:
    """Read every item once. Raises UserError for values that are not finite, RunError for an item that cannot be read."""
    hashed, labels, sums = hashlib.sha256(), list[Tensor](), list[Tensor]()
    dtype, low, high, count, tally = "", float("inf"), -float("inf"), 0, Tally()
    mapped = isinstance(items.dataset, Rows)
    for batch in items.dataset.chunks() if mapped else items.batches("scan"):
        inputs, found = split_batch(batch, label_key)
        if not length_of(batch):
            raise UserError(f"a batch of the data holds no tensors: {_image(batch) or type(batch).__name__}")
        for path, tensor in tensors_in(batch):
            hashed.update(f"{path} {tensor.dtype} {tuple(tensor.shape)}".encode())
            hashed.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            if tensor.is_floating_point() and not tensor.isfinite().all():
                _refuse_not_finite(tensor, count)
        tally.add(inputs, found)
        if isinstance(found, Tensor) and found.dim() == 1:
            labels.append(found)
        if isinstance(inputs, Tensor):
            dtype = str(inputs.dtype).removeprefix("torch.")
            if inputs.dtype == torch.uint8 and inputs.dim() == 4:
                sums.append(_sums(inputs))
            elif inputs.numel():
                low, high = min(low, float(inputs.min())), max(high, float(inputs.max()))
        count += length_of(batch) if mapped else PER_SCAN
    return Scan(
        hashed.hexdigest(),
        torch.cat(labels) if sum(map(len, labels)) == len(items) else None,
        torch.cat(sums) if sums else None,
        (dtype, low, high) if dtype else None,
        tally.found,
    )


def _refuse_not_finite(tensor: Tensor, before: int) -> None:
    rows = tensor.reshape(len(tensor), -1) if tensor.dim() else tensor.view(1, 1)
    index = int((~rows.isfinite()).any(1).nonzero()[0])
    raise UserError(f"item {before + index} of the data contains NaN or infinite values")


def _sums(images: Tensor) -> Tensor:
    """Sums of the pixels of each image and of their squares (N, 2, channels) int64. images: (N, channels, h, w) uint8."""
    pixels = images.flatten(2).numpy()
    total = np.einsum("ncp->nc", pixels, dtype=np.int64)  # several times as fast as torch, which converts to int64 first
    squares = np.einsum("ncp,ncp->nc", pixels, pixels, dtype=np.int64)
    return torch.from_numpy(np.stack([total, squares], 1))


def statistics(sums: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel (channels,), of pixels scaled to 0..1.

    sums: of pixels and of squares, (N, 2, channels) int64. pixels: in each channel of an image.
    """
    total, squares = sums.sum(0).double() / (len(sums) * pixels)
    mean = total / 255
    variance = squares / 255**2 - mean.square()
    return mean.float(), variance.clamp(min=1e-6).sqrt().float()


def counted(dataset: Any) -> int:
    """The number of items of an iterable dataset: its length if it has one, otherwise it is read once."""
    if hasattr(dataset, "__len__"):
        return len(dataset)
    with own_random_state():
        return sum(1 for _ in dataset)
