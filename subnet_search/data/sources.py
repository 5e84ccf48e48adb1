"""Data sets by name or from the user's hands, as tensors, with a seeded and stratified validation split.

The test split is behind a method, `Data.test()`, and is read from disk only when that is called: nothing that
searches or selects a model can touch it by accident.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from subnet_search.data import readers
from subnet_search.data.normalisation import Mean, Std, check_both, normalisation
from subnet_search.errors import UserError, invalid, unknown
from subnet_search.seeds import generator
from subnet_search.settings import Settings

NAMES = {
    "digits": "scikit-learn's handwritten digits: 1797 grey images of 8x8, 10 classes; ships with scikit-learn",
    "fashion_mnist": "Fashion-MNIST: 70000 grey images of 28x28, 10 classes; idx files, or a 30 MB download",
    "cifar10": "CIFAR-10: 60000 colour images of 32x32, 10 classes; torchvision, a 170 MB download",
    "cifar100": "CIFAR-100: 60000 colour images of 32x32, 100 classes; torchvision, a 170 MB download",
}
PREFIXES = {
    "npz:FILE": "an npz file in the MedMNIST layout: train_images, train_labels, [val_...], test_images, test_labels",
    "image_folder:DIR": "DIR/[train|val|test/]CLASS/*.png and so on, resized to data.size pixels",
}


class DataSpec(Settings):
    """Which data, and how it is split. A bare string is the name."""

    name: str
    """digits, fashion_mnist, cifar10, cifar100, `npz:FILE` or `image_folder:DIR`."""
    root: str | None = None
    """Folder of the data set's files; where a download goes. Default: known places, then `data/`."""
    val_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Fraction of the training images held out for validation, unless the data brings its own validation split."""
    split_seed: int = Field(default=0, ge=0)
    """Seed of the split. Apart from the run's seed, so that runs with other seeds are validated on the same images."""
    limit: int | None = Field(default=None, ge=2)
    """Use at most this many training images, an equal share of each class."""
    size: int = Field(default=32, ge=8)
    """Height and width that an image folder's images are resized to."""
    mean: Mean = None
    """What is subtracted from each channel of images scaled to 0..1. Default: the mean of the training images."""
    std: Std = None
    """What each channel is divided by after that. Default: the standard deviation of the training images."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @classmethod
    def of(cls, value: Any) -> "DataSpec":
        """A spec from a name, a mapping or a spec. Raises UserError in one line."""
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise invalid(error) from error

    @model_validator(mode="after")
    def _known(self) -> "DataSpec":
        if self.name not in NAMES and not self.name.startswith(("npz:", "image_folder:")):
            raise unknown("data set", self.name, [*NAMES, *PREFIXES])
        check_both(self.mean, self.std)
        return self


@dataclass(frozen=True)
class Split:
    """Inputs (N, ...) and labels (N,) int64. Images are uint8; other inputs are floats and are used as they are."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Split":
        return Split(self.inputs.to(device), self.labels.to(device))

    def take(self, index: Tensor) -> "Split":
        return Split(self.inputs[index], self.labels[index])


@dataclass(frozen=True)
class Data:
    """A data set ready to train on: its splits, its classes, and the statistics that normalise its images."""

    name: str
    train: Split
    val: Split
    classes: int
    mean: Tensor | None = None  # (channels,), of images scaled to 0..1; None: inputs are not normalised
    std: Tensor | None = None
    spec: DataSpec | None = None  # None: handed in from Python
    _test: Callable[[], Split | None] = field(default=lambda: None, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.train.inputs.shape[1:])

    def to(self, device: torch.device | str) -> "Data":
        """The same data with its splits and statistics on `device`; the test split stays where it is until asked for."""
        moved = {name: getattr(self, name) for name in ("mean", "std")}
        moved = {name: None if value is None else value.to(device) for name, value in moved.items()}
        return replace(self, train=self.train.to(device), val=self.val.to(device), **moved)

    def test(self) -> Split | None:
        """The test split, read now; None when the data has none."""
        split = self._test()
        if split is not None:
            _check(f"{self.name} (test)", split, self.classes, self.train)
        return split


def load(spec: DataSpec | str | dict[str, Any]) -> Data:
    """Read the training and validation images of a data set. Raises UserError that names the file at fault."""
    spec = DataSpec.of(spec)
    kind, _, path = spec.name.partition(":")
    val: Split | None = None
    test: Callable[[], Split | None]
    classes: int | None = None
    match kind:
        case "digits":
            rest, held = _hold_out(Split(*readers.digits()), 0.2, seed=0)  # the test images never depend on a setting
            train, test = rest, lambda: held
        case "fashion_mnist":
            train = Split(*readers.fashion_mnist(spec.root, train=True))
            test = lambda: Split(*readers.fashion_mnist(spec.root, train=False))  # noqa: E731
        case "cifar10" | "cifar100":
            train = Split(*readers.cifar(kind, spec.root, train=True))
            test = lambda: Split(*readers.cifar(kind, spec.root, train=False))  # noqa: E731
        case "npz":
            file = Path(spec.root or ".") / Path(path).expanduser()
            arrays = readers.npz(file, "train")
            if arrays is None:
                raise UserError(f"{file} has no array 'train_images'")
            train, val = Split(*arrays), _optional(readers.npz(file, "val"))
            test = lambda: _optional(readers.npz(file, "test"))  # noqa: E731
        case _:
            folder = Path(spec.root or ".") / Path(path).expanduser()
            train, val, test, classes = _image_folder(folder, spec.size)
    return _assemble(spec, train, val, test, classes)


def from_user(data: Any, val_fraction: float = 0.1, split_seed: int = 0, *, mean: Any = None, std: Any = None) -> Data:
    """Data from tensors `(inputs, labels)`, a map-style or iterable Dataset, a DataLoader, or a name.

    Datasets and loaders are read once, from beginning to end, and kept as tensors: random augmentation inside them
    is frozen (use `Recipe(augment=...)` instead). uint8 images (N, C, H, W) are scaled to 0..1 and normalised by `mean`
    and `std`, one number for each channel, or else by the mean and standard deviation of the training images; other
    inputs are used as they are. There is no test split, other than in data by name.
    Raises UserError for anything that is not a classification data set, and for a mean or std that cannot be.
    """
    set_here = {key: value for key, value in (("mean", mean), ("std", std)) if value is not None}
    if isinstance(data, Data):
        if set_here:
            raise UserError("this data is loaded already: give mean and std to load_data where it is read")
        return data
    if isinstance(data, str | DataSpec | dict):
        named = DataSpec.of(data)
        return load(DataSpec.of({**named.model_dump(exclude_unset=True), **set_here}))
    if isinstance(data, DataLoader | Dataset):
        join = torch.cat if isinstance(data, DataLoader) else torch.stack
        inputs, labels = _collect(data, join)
    elif isinstance(data, tuple | list) and len(data) == 2:
        inputs, labels = (torch.as_tensor(part) for part in data)
        labels = labels.view(-1) if labels.shape == (len(inputs), 1) else labels
    else:
        raise UserError(
            "data must be a name, a pair (inputs, labels), a Dataset or a DataLoader of such pairs, "
            f"or subnet_search.load_data(...), got {type(data).__name__}"
        )
    if labels.is_floating_point() or labels.is_complex():
        raise UserError(f"labels must be whole numbers (class indices), got {labels.dtype}")
    if inputs.dtype == torch.float64:
        inputs = inputs.float()
    spec = DataSpec.of({"name": "digits", "val_fraction": val_fraction, "split_seed": split_seed, **set_here})
    return _assemble(spec, Split(inputs, labels.long()), None, lambda: None, None, given=True)


def _collect(data: Any, join: Callable[[list[Tensor]], Tensor]) -> tuple[Tensor, Tensor]:
    """Everything in a Dataset (items to stack) or a DataLoader (batches to concatenate)."""
    try:
        items = [data[i] for i in range(len(data))] if join is torch.stack and hasattr(data, "__len__") else list(data)
        pairs = [(torch.as_tensor(inputs), torch.as_tensor(labels)) for inputs, labels in items]
    except (TypeError, ValueError) as error:
        raise UserError(f"every item of the data must be a pair (inputs, label): {error}") from error
    if not pairs:
        raise UserError("the data set is empty")
    try:
        return join([inputs for inputs, _ in pairs]), join([labels for _, labels in pairs])
    except RuntimeError as error:
        raise UserError(f"the items of the data have different shapes: {str(error).splitlines()[0]}") from error


def _optional(arrays: readers.Arrays | None) -> Split | None:
    return Split(*arrays) if arrays else None


def _image_folder(folder: Path, size: int) -> tuple[Split, Split | None, Callable[[], Split | None], int]:
    if not folder.is_dir():
        raise UserError(f"no such image folder: {folder}")

    @cache
    def read(split: str | None) -> tuple[Split, list[str]]:
        inputs, labels, names = readers.image_folder(folder, split, size)
        return Split(inputs, labels), names

    if not (folder / "train").is_dir():
        everything, names = read(None)
        train, held = _hold_out(everything, 0.2, seed=0)
        return train, None, lambda: held, len(names)
    train, names = read("train")

    def optional(split: str) -> Split | None:
        if not (folder / split).is_dir():
            return None
        found, others = read(split)
        if others != names:
            raise UserError(
                f"{folder / split} and {folder / 'train'} have different classes: {sorted(set(others) ^ set(names))}"
            )
        return found

    return train, optional("val"), partial(optional, "test"), len(names)


def _assemble(
    spec: DataSpec, train: Split, val: Split | None, test: Callable[[], Split | None], classes: int | None, given: bool = False
) -> Data:
    name = "given data" if given else spec.name
    if classes is None:
        classes = int(train.labels.max()) + 1 if len(train.labels) else 0
    _check(name, train, classes)
    if spec.limit is not None and spec.limit < len(train):
        if spec.limit < 2 * classes:
            raise UserError(f"{name}: a limit of {spec.limit} leaves less than two images of each of {classes} classes")
        train, _ = _stratify(train, len(train) - spec.limit, seed=0)
    if val is None:
        train, val = _hold_out(train, spec.val_fraction, spec.split_seed)
    _check(f"{name} (validation)", val, classes, train)
    mean, std = normalisation(name, spec.mean, spec.std, train.inputs)
    return Data(name, train, val, classes, mean, std, None if given else spec, test)


def _check(name: str, split: Split, classes: int, like: Split | None = None) -> None:
    if split.labels.dim() != 1 or not split.inputs.dim():
        raise UserError(f"{name}: labels must be one class index for each input, got shape {tuple(split.labels.shape)}")
    if len(split.inputs) != len(split.labels):
        raise UserError(f"{name}: {len(split.inputs)} inputs but {len(split.labels)} labels")
    if not len(split):
        raise UserError(f"{name} is empty")
    if like is not None and (split.inputs.shape[1:], split.inputs.dtype) != (like.inputs.shape[1:], like.inputs.dtype):
        here, there = (f"{tuple(s.inputs.shape[1:])} {s.inputs.dtype}" for s in (split, like))
        raise UserError(f"{name}: inputs are {here}, but {there} in training")
    low, high = int(split.labels.min()), int(split.labels.max())
    if low < 0 or high >= classes:
        raise UserError(f"{name}: label {low if low < 0 else high} is outside the classes 0 to {classes - 1}")


def _hold_out(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    return _stratify(split, round(fraction * len(split)), seed)


def _stratify(split: Split, held: int, seed: int) -> tuple[Split, Split]:
    """Split off `held` items, the same share of each class and at least one; both parts keep their order.

    The whole numbers come from largest remainders, so the count is exact unless there are more classes than `held`.
    """
    labels, sizes = split.labels.unique(return_counts=True)
    shares = held * sizes.double() / len(split)
    takes = torch.minimum(shares.floor().long().clamp(min=1), sizes - 1)
    for index in (takes - shares).argsort(stable=True).tolist():
        takes[index] += int(takes.sum() < held and takes[index] < sizes[index] - 1)
    chosen = torch.zeros(len(split), dtype=torch.bool)
    for label, take in zip(labels.tolist(), takes.tolist(), strict=True):
        members = (split.labels == label).nonzero().view(-1)
        chosen[members[torch.randperm(len(members), generator=generator(seed, "split", label))][:take]] = True
    if not chosen.any() or chosen.all():
        raise UserError(f"{len(split)} items in {len(labels)} classes are too few to hold some out")
    return split.take(~chosen), split.take(chosen)
