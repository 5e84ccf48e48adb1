"""Data sets by name, as tensors, with a seeded and stratified validation split.

The test split is read from disk only when `Data.test()` is called, so that training and model selection cannot use it by
accident.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, JsonValue, ValidationError, model_validator
from torch import Tensor

from subnet_search.core.errors import UserError, guarded, invalid, unknown
from subnet_search.core.imports import IMPORT_PATH
from subnet_search.core.nested import tensors_in
from subnet_search.core.rng import generator
from subnet_search.core.settings import Settings
from subnet_search.core.tensor_files import digest
from subnet_search.data import readers
from subnet_search.data.batch import Labels, instead, prepared, split_batch
from subnet_search.data.items import Items, statistics
from subnet_search.data.normalisation import Mean, Std, check_both, normalisation
from subnet_search.data.split import Split
from subnet_search.data.values import Values, values_of

log = logging.getLogger(__name__)

NAMES = {
    "digits": "scikit-learn's handwritten digits: 1797 grey images of 8x8, 10 classes; ships with scikit-learn",
    "fashion_mnist": "Fashion-MNIST: 70000 grey images of 28x28, 10 classes; idx files, or a 30 MB download",
    "cifar10": "CIFAR-10: 60000 colour images of 32x32, 10 classes; torchvision, a 170 MB download",
    "cifar100": "CIFAR-100: 60000 colour images of 32x32, 100 classes; torchvision, a 170 MB download",
}
PREFIXES = {
    "npz:FILE": "arrays of an npz file: inputs and labels, or [train|val|test]_images and _labels, or several named inputs",
    "npy:DIR": "DIR/NAME.npy, arrays named as in an npz file",
    "safetensors:FILE": "tensors of a safetensors file, named as in an npz file",
    "image_folder:DIR": "DIR/[train|val|test/]CLASS/*.png and so on, resized to data.size pixels",
    "csv:FILE": "a table with a header; data.target names the column of the labels (or DIR/train.csv, val.csv, test.csv)",
    "parquet:FILE": "a table in a Parquet file, as csv:FILE; needs pyarrow",
    "text:FILE": "text for the task language_modeling, as characters or bytes (or DIR/train.txt, val.txt, test.txt)",
    "package.module:make": "what your function make(**data.options) returns: tensors, a Dataset, a DataLoader, or parts",
}
KINDS = tuple(name.partition(":")[0] for name in PREFIXES if ":" in name and "." not in name)
IMPORTED = "package.module:make"
TABLES, ARRAYS = ("csv", "parquet"), ("npz", "npy", "safetensors")
SETTINGS: dict[str, tuple[str, ...]] = {
    "options": (IMPORTED,),
    "in_memory": (*ARRAYS, "image_folder"),
    "target": TABLES,
    "standardize": TABLES,
    "tokens": ("text",),
    "context": ("text",),
}
"""Settings that only some kinds of data have."""

MANY = 1000  # more classes than this, and than there are items, are taken for an error in the labels


class Encoding(Settings):
    """What a run found in its training items, so that other items are encoded in the same way."""

    columns: dict[str, tuple[float, float] | tuple[str, ...]] = {}
    """The input columns of a table, in order: mean and standard deviation of numbers, or the values of a text column."""
    labels: tuple[str, ...] | None = None
    """The classes of a table whose labels are text."""
    vocabulary: str | None = None
    """The characters of a text; the token of a character is its position."""


class DataSpec(Settings):
    """The data set and its split. A string is short for the name."""

    name: str
    """digits, fashion_mnist, cifar10, cifar100; `npz:`, `npy:`, `safetensors:`, `image_folder:`, `csv:`, `parquet:` or `text:`
    and a path; or `package.module:make`, your own function, called with `options`."""
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
    options: dict[str, JsonValue] = {}
    """Keyword arguments for your own function, `package.module:make`."""
    workers: int | None = Field(default=None, ge=0)
    """Processes that read items, for data that is read item by item. Default: a DataLoader's, otherwise none."""
    in_memory: bool | None = None
    """Read arrays and image folders into memory at the start, or item by item. Default: in memory up to 4 GiB."""
    target: str | tuple[str, ...] | None = None
    """Column of the labels of a table, or a list of columns. Default: the last column."""
    standardize: bool = True
    """Scale the numeric columns of a table by the mean and standard deviation of the training items."""
    tokens: Literal["characters", "bytes"] = "characters"
    """What the tokens of a text are."""
    context: int = Field(default=64, ge=1)
    """Tokens that a network sees at once; an item of a text has one more, the last to predict."""
    encoding: Encoding | None = None
    """How tables and text are encoded, set when a run starts; a file without it is encoded by its own training items."""

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
        if self.name not in NAMES and self.kind is None:
            raise unknown("data set", self.name, [*NAMES, *PREFIXES])
        for key, kinds in SETTINGS.items():
            if self.kind not in kinds and getattr(self, key) != type(self).model_fields[key].default:
                names = " and ".join(name for name in PREFIXES if name in kinds or name.partition(":")[0] in kinds)
                raise UserError(f"{key}: only for {names}, and the data is {self.name}", key)
        check_both(self.mean, self.std)
        return self

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    @property
    def kind(self) -> str | None:
        """The kind of data that `name` begins with; IMPORTED for a function of the user's; None for a built-in name."""
        kind, colon, _ = self.name.partition(":")
        if colon and kind in KINDS:
            return kind
        return IMPORTED if IMPORT_PATH.fullmatch(self.name) else None

    @property
    def path(self) -> Path:
        """The path in `name`, in the folder `root`."""
        return Path(self.root or ".") / Path(self.name.partition(":")[2]).expanduser()


class InputRange(NamedTuple):
    """Type and range of the inputs before normalisation."""

    dtype: str  # "uint8", "float32", ...
    low: float
    high: float


@dataclass(frozen=True, repr=False)
class Data:
    """A loaded data set: splits, classes, and the statistics to normalise images by."""

    name: str
    """For messages, records and reports."""
    train: Split | Items
    """The training items: inputs (N, ...) and labels in memory, or items that are read one by one."""
    val: Split | Items
    """The validation items."""
    classes: int
    """The number of classes. 0: the labels are not class indices."""
    mean: Tensor | None = None
    """Of each channel of images scaled to 0..1, (channels,). None: inputs are not normalised."""
    std: Tensor | None = None
    """The standard deviation, as `mean`."""
    spec: DataSpec | None = None
    """The settings that the data was loaded by. None: passed from Python."""
    class_names: tuple[str, ...] | None = None
    """In the order of the class indices. None: not known."""
    label_key: str | None = None
    """The key of the labels in items that are mappings."""
    _test: Callable[[], Split | Items | None] = field(default=lambda: None, repr=False)
    """Reads the test split, for `test`."""
    held_out: bool = False
    """Whether the validation items were held out of those that were given for training."""

    def __repr__(self) -> str:
        parts = f"{len(self.train):,} training and {len(self.val):,} validation items"
        inputs = f" of shape {shape}" if (shape := self._known_shape) else ""
        classes = f", {self.classes} classes" if self.classes else ""
        where = "read item by item" if isinstance(self.train, Items) else "in memory"
        return f"Data({self.name}: {parts}{inputs}{classes}, {where})"

    @property
    def bytes_in_memory(self) -> int:
        """Bytes of the training and validation items in memory; 0 if they are read item by item."""
        parts = [part for part in (self.train, self.val) if isinstance(part, Split)]
        return sum(tensor.nbytes for part in parts for _, tensor in tensors_in((part.inputs, part.labels)))

    @property
    def _known_shape(self) -> tuple[int, ...]:
        """`shape`, without reading an item."""
        inputs = self.train.inputs if isinstance(self.train, Split) else None
        return tuple(inputs.shape[1:]) if isinstance(inputs, Tensor) else ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input; empty where inputs are not one tensor."""
        inputs, _ = split_batch(self.first(1), self.label_key)
        return tuple(inputs.shape[1:]) if isinstance(inputs, Tensor) else ()

    @cached_property
    def input_range(self) -> InputRange | None:
        """Type and range of the inputs: 0 to 255 for images, otherwise the minimum and maximum of the training inputs.

        None where inputs are not one tensor.
        """
        if isinstance(self.train, Items):
            return InputRange(*self.train.range) if self.train.range else None
        inputs = self.train.inputs
        if not isinstance(inputs, Tensor):
            return None
        kind = str(inputs.dtype).removeprefix("torch.")
        if self.mean is not None:
            return InputRange(kind, 0, 255)
        return InputRange(kind, float(inputs.min()), float(inputs.max()))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over inputs, labels and weights of training and validation, the number of classes, mean and std."""
        tensors: dict[str, Tensor] = {"classes": torch.tensor(self.classes)}
        for name, split in (("train", self.train), ("val", self.val)):
            parts = {key: getattr(split, key) for key in ("inputs", "labels", "weights") if hasattr(split, key)}
            if isinstance(split, Items):
                parts |= {"digest": torch.tensor(list(bytes.fromhex(split.digest))), "places": split.places}
            tensors |= dict(tensors_in({f"{name}.{key}": value for key, value in parts.items()}))
        tensors |= {key: value for key in ("mean", "std") if (value := getattr(self, key)) is not None}
        return digest(tensors)

    @cached_property
    def values(self) -> dict[str, Mapping[str, Values]]:
        """The values of labels, and of inputs that are indices, by part: train and val.

        Where validation items were held out, there is only train, which counts them too.
        """
        if self.held_out:
            return {"train": _values((self.train, self.val), self.label_key)}
        return {"train": _values((self.train,), self.label_key), "val": _values((self.val,), self.label_key)}

    def labels(self) -> Tensor:
        """The class indices (N,) of the training items."""
        found = _labels(self.train, self.label_key)
        assert found is not None, "the labels are not class indices"
        return found

    def numbering(self) -> str:
        """What to do about class indices that seem not to be numbered from 0; empty where each of the classes has items."""
        labels = torch.cat([found for part in (self.train, self.val) if (found := _labels(part, self.label_key)) is not None])
        different = len(labels.unique())
        if (late := _late_start(labels, self.classes)) or different == self.classes:
            return late
        return (
            f"only {different} of the labels 0 to {self.classes - 1} occur: leave out items that have no class, and number the "
            "others from 0, as numpy.unique(labels, return_inverse=True)[1] does"
        )

    def first(self, count: int = 2) -> Any:
        """The prepared batch of the first `count` training items, without augmentation by the recipe."""
        return prepared(self.train.first(count), self.mean, self.std)

    def examples(self, count: int = 2) -> Any:
        """The inputs of `first` (`count` items): normalised images, other inputs as float32 or indices, or nested tensors."""
        return split_batch(self.first(count), self.label_key)[0]

    def to(self, device: torch.device | str) -> "Data":
        """The same data with its splits and statistics on `device`. The test split is not loaded."""
        moved = {name: getattr(self, name) for name in ("mean", "std")}
        moved = {name: None if value is None else value.to(device) for name, value in moved.items()}
        return replace(self, train=self.train.to(device), val=self.val.to(device), **moved)

    def test(self) -> Split | Items | None:
        """Read the test split; None when the data has none. Raises UserError when it cannot be read."""
        with guarded(f"the test split of {self.name} cannot be read"):
            split = self._test()
        if isinstance(split, Split):
            _check(f"{self.name} (test)", split, self.classes, self.train)
        return split


Reader = Callable[[DataSpec, Labels, bool], Data]
READERS: dict[str, Reader] = {}
NOT_CLASSES = "labels must be one class index for each input"


def reads(*kinds: str) -> Callable[[Reader], Reader]:
    """Register a function that reads these kinds of data: of a spec, what the labels are, and `all_is_test` of `load`."""

    def registered(reader: Reader) -> Reader:
        READERS.update(dict.fromkeys(kinds, reader))
        return reader

    return registered


def load(spec: DataSpec | str | dict[str, Any], labels: Labels = Labels(), all_is_test: bool = False) -> Data:  # noqa: B008
    """Read the training and validation items of a data set. Raises UserError with the name of the file at fault.

    all_is_test: tables, arrays, text and data of a user's function that are not in parts are their own test split.
    """
    spec = DataSpec.of(spec)
    with guarded(f"{spec.name} cannot be read"):
        if spec.kind:
            return READERS[spec.kind](spec, labels, all_is_test)
        train, test = _built_in(spec.name, spec.root)
        return assemble(spec, train, None, test, None, kind=labels)


def _built_in(name: str, root: str | None) -> tuple[Split, Callable[[], Split]]:
    match name:
        case "digits":
            rest, held = hold_out(Split(*readers.digits()), 0.2, seed=0)  # the same test images with any settings
            return rest, lambda: held
        case "fashion_mnist":
            train = Split(*readers.fashion_mnist(root, train=True))
            return train, lambda: Split(*readers.fashion_mnist(root, train=False))
        case _:
            return Split(*readers.cifar(name, root, train=True)), lambda: Split(*readers.cifar(name, root, train=False))


def assemble(
    spec: DataSpec,
    train: Split | Items,
    val: Split | Items | None,
    test: Callable[[], Split | Items | None],
    class_names: Sequence[str] | None,
    *,
    given: bool = False,
    kind: Labels,
    groups: Tensor | None = None,
    sums: Tensor | None = None,
) -> Data:
    """Check the data, split off validation items, and compute mean and std. Raises UserError for invalid data.

    given         passed from Python
    kind          of labels; only class indices are checked, and other validation items are drawn at random
    groups        for each item of `train`, the number of its first copy; copies are in the same part
    sums          of the pixels of each item of `train`, as `items.scan` gives them
    """
    name = "given data" if given else spec.name
    if not len(train):
        raise UserError(f"{name} is empty")
    labels = _labels(train, kind.key) if kind.classes else None
    if kind.classes and labels is None:
        raise UserError(f"{name}: {NOT_CLASSES}{_shape_of_labels(train, kind.key)}")
    classes = 0
    if labels is not None:
        found = int(labels.max()) + 1 if len(labels) else 0
        classes = found if class_names is None else len(class_names)
    _check(name, train, classes)
    if labels is not None:
        _check_labels(name, labels, classes)
        _check_classes(name, labels, classes)
    if spec.limit is not None and spec.limit < len(train):
        if spec.limit < 2 * classes:
            raise UserError(f"{name}: a limit of {spec.limit} leaves fewer than two images for each of {classes} classes")
        chosen = _held(labels, len(train), len(train) - spec.limit, 0, groups)
        train, labels = train.take(~chosen), None if labels is None else labels[~chosen]
        groups, sums = (None if part is None else part[~chosen] for part in (groups, sums))
    held_out = val is None
    if val is None:
        held = _held(labels, len(train), round(spec.val_fraction * len(train)), spec.split_seed, groups)
        train, val = train.take(~held), train.take(held)
        sums = None if sums is None else sums[~held]
    if isinstance(val, Split):
        _check(f"{name} (validation)", val, classes, train)
    elif labels is not None and not held_out:
        found_labels = _labels(val, kind.key)
        if found_labels is None:
            raise UserError(f"{name} (validation): {NOT_CLASSES}{_shape_of_labels(val, kind.key)}")
        _check_labels(f"{name} (validation)", found_labels, classes)
    inputs, _ = split_batch(train.first(1), kind.key)
    if isinstance(train, Split) and isinstance(train.inputs, Tensor):
        mean, std = normalisation(name, spec.mean, spec.std, train.inputs)
    elif sums is not None and spec.mean is None:
        mean, std = statistics(sums, inputs[0, 0].numel())
    else:
        mean, std = normalisation(name, spec.mean, spec.std, inputs if isinstance(inputs, Tensor) else torch.empty(0))
    names = None if class_names is None else tuple(class_names)
    return Data(name, train, val, classes, mean, std, None if given else spec, names, kind.key, test, held_out)


def _values(parts: Sequence[Split | Items], label_key: str | None) -> Mapping[str, Values]:
    if isinstance(parts[0], Items):  # found by the scan, of all items
        return parts[0].values
    return values_of(chain.from_iterable(part.batches("scan") for part in parts), label_key)


def _labels(split: Split | Items, label_key: str | None) -> Tensor | None:
    """The labels (N,) of class indices; None where the items have others."""
    labels = split.labels if isinstance(split, Items) else split_batch(split.first(len(split)), label_key)[1]
    return labels if isinstance(labels, Tensor) and labels.dim() == 1 and not labels.is_floating_point() else None


def _shape_of_labels(split: Split | Items, label_key: str | None) -> str:
    labels = split_batch(split.first(len(split) if isinstance(split, Split) else 1), label_key)[1]
    if isinstance(labels, Tensor):
        values = split.values.get("labels") if isinstance(split, Items) else values_of([(0, labels)]).get("labels")
        shape = ", ".join(("N", *map(str, labels.shape[1:])))
        kind = str(labels.dtype).removeprefix("torch.")
        return f", got {kind} of shape ({shape}){instead(labels, values is None or values.whole)}"
    text = isinstance(labels, list | tuple) and labels and isinstance(labels[0], str)
    return f", got {'text' if text else 'no labels' if labels is None else type(labels).__name__}"


def _check(name: str, split: Split | Items, classes: int, like: Split | Items | None = None) -> None:
    if not len(split):
        raise UserError(f"{name} is empty")
    if isinstance(split, Items):
        return
    sizes = {path: len(tensor) if tensor.dim() else 0 for path, tensor in tensors_in((split.inputs, split.labels))}
    if len(set(sizes.values())) > 1:
        if isinstance(split.inputs, Tensor) and isinstance(split.labels, Tensor):
            raise UserError(f"{name}: {len(split.inputs)} inputs but {len(split.labels)} labels")
        raise UserError(f"{name}: its tensors have different lengths: {', '.join(map(str, sizes.values()))}")
    if isinstance(like, Split):
        here, there = ([(tuple(t.shape[1:]), str(t.dtype)) for _, t in tensors_in(one.inputs)] for one in (split, like))
        if here != there:
            text = ["; ".join(f"{shape} {kind}" for shape, kind in one) for one in (here, there)]
            raise UserError(f"{name}: inputs are {text[0]}, but {text[1]} in training")
    labels = split.labels
    if classes and isinstance(labels, Tensor):
        if labels.dim() != 1 or labels.is_floating_point():
            raise UserError(f"{name}: {NOT_CLASSES}{_shape_of_labels(split, None)}")
        _check_labels(name, labels, classes)
    for _, tensor in tensors_in((split.inputs, split.labels)):
        _check_finite(name, tensor)


def _check_labels(name: str, labels: Tensor, classes: int) -> None:
    """Raise UserError for a label that is no class."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        hint = ": leave out items that have no class" if low < 0 else ""
        raise UserError(f"{name}: label {low if low < 0 else high} is outside the classes 0 to {classes - 1}{hint}")


def _check_classes(name: str, labels: Tensor, classes: int) -> None:
    """Raise UserError for a label so large that it must be an error; warn of labels that seem to start above 0."""
    if hint := _late_start(labels, classes):
        log.warning("%s: %s", name, hint)
    if classes > max(MANY, len(labels)):
        raise UserError(
            f"{name}: label {classes - 1} needs {classes} outputs, but there are {len(labels)} items with "
            f"{len(labels.unique())} different labels: number the classes from 0"
        )


def _late_start(labels: Tensor, classes: int) -> str:
    """What to do about labels (N,) that seem to start above 0; empty for others."""
    lowest = int(labels.min())
    late = lowest and len(labels.unique()) == classes - lowest
    return f"labels start at {lowest}, and class indices at 0: subtract {lowest}" if late else ""


def _check_finite(name: str, inputs: Tensor, chunk: int = 2**22) -> None:
    """Raise UserError when inputs contain NaN or infinity, with their number and the first index."""
    if not inputs.is_floating_point() or not inputs.dim():
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


def hold_out(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Split off a fraction of the items of each class: the rest, and those."""
    held = _held(split.labels, len(split), round(fraction * len(split)), seed, None)
    return split.take(~held), split.take(held)


def _held(labels: Tensor | None, count: int, held: int, seed: int, groups: Tensor | None) -> Tensor:
    """The items to hold out, bool (count,): of each class the same fraction, and all copies of each of them.

    labels: class indices (count,); None: at random. groups: for each item the number of its first copy; None: no copies.
    """
    if groups is None:
        return stratified(labels, count, held, seed)
    first, index = groups.unique(return_inverse=True)
    if len(first) < 4:
        raise UserError(f"{count} items with only {len(first)} different inputs are too few for a validation or test split")
    chosen = stratified(None if labels is None else labels[first], len(first), round(held / count * len(first)), seed)
    return chosen[index]


def stratified(labels: Tensor | None, count: int, held: int, seed: int) -> Tensor:
    """`held` items, the same fraction of each class and at least one: bool (count,).

    Rounded by largest remainder, so the number is exact unless there are more classes than `held`.
    """
    labels = torch.zeros(count, dtype=torch.long) if labels is None else labels
    values, sizes = labels.unique(return_counts=True)
    exact = held * sizes.double() / count
    takes = torch.minimum(exact.floor().long().clamp(min=1), sizes - 1)
    for index in (takes - exact).argsort(stable=True).tolist():
        takes[index] += int(takes.sum() < held and takes[index] < sizes[index] - 1)
    chosen = torch.zeros(count, dtype=torch.bool)
    for label, take in zip(values.tolist(), takes.tolist(), strict=True):
        members = (labels == label).nonzero().view(-1)
        chosen[members[torch.randperm(len(members), generator=generator(seed, "split", label))][:take]] = True
    if not chosen.any() or chosen.all():
        raise UserError(f"{count} items in {len(values)} classes are too few for a validation or test split")
    return chosen
