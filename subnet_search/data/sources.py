"""Data sets by name, as tensors, with a seeded and stratified validation split.

The test split is read from disk only when `Data.test()` is called, so that training and model selection cannot use it by
accident.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from subnet_search.core.errors import UserError, guarded, invalid, unknown
from subnet_search.core.rng import generator
from subnet_search.core.settings import Settings
from subnet_search.core.tensor_files import digest
from subnet_search.data import readers
from subnet_search.data.normalisation import Mean, Std, check_both, normalisation, prepare

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


MANY = 1000  # more classes than this, and than there are items, are taken for an error in the labels


class DataSpec(Settings):
    """The data set and its split. A string is short for the name."""

    name: str
    """digits, fashion_mnist, cifar10, cifar100, `npz:FILE` or `image_folder:DIR`."""
    root: str | None = None
    """Folder of the data set's files, and of downloads. Default: known folders, then `data/`."""
    val_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Fraction of the training images held out for validation, unless the data has a validation split."""
    split_seed: int = Field(default=0, ge=0)
    """Seed of the split, separate from the run's seed, so that all runs use the same validation images."""
    limit: int | None = Field(default=None, ge=2)
    """Maximum number of training images, in the same class proportions."""
    size: int = Field(default=32, ge=8, le=4096)
    """Height and width of the images of an image folder, after resizing."""
    mean: Mean = None
    """Mean of each channel of images scaled to 0..1, to normalise by. Default: that of the training images."""
    std: Std = None
    """Standard deviation of each channel, to normalise by. Default: that of the training images."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @classmethod
    def of(cls, value: Any) -> "DataSpec":
        """A spec from a name, a mapping or a spec. Raises UserError when it is invalid."""
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
    """Inputs (N, ...) and labels (N,) int64. Images are uint8; other inputs are not normalised."""

    inputs: Tensor
    labels: Tensor
    weights: Tensor | None = None
    """Sampling weights of training items (N,) float64: an epoch draws N items with replacement. None: each item once."""

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Split":
        return Split(self.inputs.to(device), self.labels.to(device), self.weights)

    def take(self, index: Tensor) -> "Split":
        weights = None if self.weights is None else self.weights[index]
        return Split(self.inputs[index], self.labels[index], weights)


class InputRange(NamedTuple):
    """Type and range of the inputs before normalisation."""

    dtype: str  # "uint8", "float32", ...
    low: float
    high: float


@dataclass(frozen=True)
class Data:
    """A loaded data set: splits, classes, and the statistics to normalise images by."""

    name: str
    train: Split
    val: Split
    classes: int
    mean: Tensor | None = None  # (channels,), of images scaled to 0..1; None: inputs are not normalised
    std: Tensor | None = None
    spec: DataSpec | None = None  # None: passed from Python
    class_names: tuple[str, ...] | None = None
    _test: Callable[[], Split | None] = field(default=lambda: None, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.train.inputs.shape[1:])

    @cached_property
    def input_range(self) -> InputRange:
        """Type and range of the inputs: 0 to 255 for images, otherwise the minimum and maximum of the training inputs."""
        kind = str(self.train.inputs.dtype).removeprefix("torch.")
        if self.mean is not None:
            return InputRange(kind, 0, 255)
        values = self.train.inputs.float()
        return InputRange(kind, values.min().item(), values.max().item())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over inputs, labels and weights of training and validation, the number of classes, mean and std."""
        tensors = {f"{name}.{key}": value for name in ("train", "val") for key, value in vars(getattr(self, name)).items()}
        tensors |= {"mean": self.mean, "std": self.std, "classes": torch.tensor(self.classes)}
        return digest({key: value for key, value in tensors.items() if value is not None})

    def examples(self, count: int = 2) -> Tensor:
        """The first `count` training inputs as passed to the network: normalised images, other inputs as float32."""
        return prepare(self.train.inputs[:count], self.mean, self.std)

    def to(self, device: torch.device | str) -> "Data":
        """The same data with its splits and statistics on `device`. The test split is not loaded."""
        moved = {name: getattr(self, name) for name in ("mean", "std")}
        moved = {name: None if value is None else value.to(device) for name, value in moved.items()}
        return replace(self, train=self.train.to(device), val=self.val.to(device), **moved)

    def test(self) -> Split | None:
        """Read the test split; None when the data has none. Raises UserError when it cannot be read."""
        with guarded(f"the test split of {self.name} cannot be read"):
            split = self._test()
        if split is not None:
            _check(f"{self.name} (test)", split, self.classes, self.train)
        return split


def load(spec: DataSpec | str | dict[str, Any]) -> Data:
    """Read the training and validation images of a data set. Raises UserError with the name of the file at fault."""
    spec = DataSpec.of(spec)
    with guarded(f"{spec.name} cannot be read"):
        return _load(spec)


def _load(spec: DataSpec) -> Data:
    kind, _, path = spec.name.partition(":")
    val: Split | None = None
    test: Callable[[], Split | None]
    names: list[str] | None = None
    match kind:
        case "digits":
            rest, held = _hold_out(Split(*readers.digits()), 0.2, seed=0)  # the same test images with any settings
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
            train, val, test, names = _image_folder(folder, spec.size)
    return assemble(spec, train, val, test, names)


def _optional(arrays: readers.Arrays | None) -> Split | None:
    return Split(*arrays) if arrays else None


def _image_folder(folder: Path, size: int) -> tuple[Split, Split | None, Callable[[], Split | None], list[str]]:
    if not folder.is_dir():
        raise UserError(f"no such image folder: {folder}")
    splits = [folder / split for split in ("train", "val", "test")]
    if not splits[0].is_dir():
        train, held = _hold_out(Split(*readers.image_folder(folder, size)), 0.2, seed=0)
        return train, None, lambda: held, readers.class_names(folder)
    names = readers.class_names(splits[0])
    for split in splits[1:]:  # compares folder names only; no test image is opened
        if split.is_dir() and (others := readers.class_names(split)) != names:
            raise UserError(f"{split} and {splits[0]} have different classes: {sorted(set(others) ^ set(names))}")

    def read(split: Path) -> Split | None:
        return Split(*readers.image_folder(split, size)) if split.is_dir() else None

    return Split(*readers.image_folder(splits[0], size)), read(splits[1]), partial(read, splits[2]), names


def assemble(
    spec: DataSpec,
    train: Split,
    val: Split | None,
    test: Callable[[], Split | None],
    class_names: Sequence[str] | None,
    given: bool = False,
) -> Data:
    """Check the data, split off validation items, and compute mean and std. Raises UserError for invalid data."""
    name = "given data" if given else spec.name
    found = int(train.labels.max()) + 1 if len(train.labels) else 0
    classes = found if class_names is None else len(class_names)
    _check(name, train, classes)
    _check_classes(name, train.labels, classes)
    if spec.limit is not None and spec.limit < len(train):
        if spec.limit < 2 * classes:
            raise UserError(f"{name}: a limit of {spec.limit} leaves fewer than two images for each of {classes} classes")
        train, _ = _stratify(train, len(train) - spec.limit, seed=0)
    if val is None:
        train, val = _hold_out(train, spec.val_fraction, spec.split_seed)
    _check(f"{name} (validation)", val, classes, train)
    mean, std = normalisation(name, spec.mean, spec.std, train.inputs)
    names = None if class_names is None else tuple(class_names)
    return Data(name, train, val, classes, mean, std, None if given else spec, names, test)


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
    _check_finite(name, split.inputs)


def _check_classes(name: str, labels: Tensor, classes: int) -> None:
    """Raise UserError for a label so large that it must be an error."""
    if classes > max(MANY, len(labels)):
        raise UserError(
            f"{name}: label {classes - 1} needs {classes} outputs, but there are {len(labels)} items with "
            f"{len(labels.unique())} different labels: number the classes from 0"
        )


def _check_finite(name: str, inputs: Tensor, chunk: int = 2**22) -> None:
    """Raise UserError when inputs contain NaN or infinity, with their number and the first index."""
    if not inputs.is_floating_point():
        return
    rows, found = max(1, chunk // max(1, inputs[0].numel())), list[int]()
    for start in range(0, len(inputs), rows):
        part = inputs[start : start + rows]
        if not part.sum().isfinite():  # a fast check; a finite part whose sum overflows is checked row by row too
            found += [start + row for row, values in enumerate(part) if not values.isfinite().all()]
    if found:
        raise UserError(
            f"{name}: {len(found)} of {len(inputs)} inputs contain NaN or infinite values; the first is item {found[0]}"
        )


def _hold_out(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    return _stratify(split, round(fraction * len(split)), seed)


def _stratify(split: Split, held: int, seed: int) -> tuple[Split, Split]:
    """Split off `held` items, the same fraction of each class and at least one; both parts keep their order.

    Rounded by largest remainder, so the number is exact unless there are more classes than `held`.
    """
    labels, sizes = split.labels.unique(return_counts=True)
    exact = held * sizes.double() / len(split)
    takes = torch.minimum(exact.floor().long().clamp(min=1), sizes - 1)
    for index in (takes - exact).argsort(stable=True).tolist():
        takes[index] += int(takes.sum() < held and takes[index] < sizes[index] - 1)
    chosen = torch.zeros(len(split), dtype=torch.bool)
    for label, take in zip(labels.tolist(), takes.tolist(), strict=True):
        members = (split.labels == label).nonzero().view(-1)
        chosen[members[torch.randperm(len(members), generator=generator(seed, "split", label))][:take]] = True
    if not chosen.any() or chosen.all():
        raise UserError(f"{len(split)} items in {len(labels)} classes are too few for a validation or test split")
    return split.take(~chosen), split.take(chosen)
