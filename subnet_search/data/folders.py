"""Image folders: in memory, or read item by item where they are large."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from subnet_search.core.errors import UserError
from subnet_search.data import readers
from subnet_search.data.batch import Labels
from subnet_search.data.given import from_user
from subnet_search.data.rows import in_memory
from subnet_search.data.sources import Data, DataSpec, assemble, hold_out, reads, stratified
from subnet_search.data.split import Split


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Images (3, size, size) uint8 and their class indices, each read from its file when it is needed."""

    def __init__(self, files: list[tuple[str, int]], classes: list[str], size: int) -> None:
        self.files, self.classes, self.size = files, classes, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        return readers.images([path], self.size)[0], label

    def take(self, chosen: Tensor) -> "ImageFiles":
        """The files where `chosen`, bool (N,), is True."""
        kept = [file for file, take in zip(self.files, chosen.tolist(), strict=True) if take]
        return ImageFiles(kept, self.classes, self.size)


@reads("image_folder")
def image_folder(spec: DataSpec, labels: Labels, all_is_test: bool) -> Data:
    """`DIR/CLASS/*`, of which a fifth is the test split, or `DIR/train/CLASS/*` with optional `val` and `test`."""
    folder, size = spec.path, spec.size
    if not folder.is_dir():
        raise UserError(f"no such image folder: {folder}")
    whole = not (folder / "train").is_dir()
    files = readers.image_files(folder if whole else folder / "train")
    if in_memory(spec.in_memory, 3 * len(files) * size**2):
        train, val, test, names = _in_memory(folder, size)
        return assemble(spec, train, val, test, names, kind=labels)
    return _item_by_item(spec, labels, whole)


def _in_memory(folder: Path, size: int) -> tuple[Split, Split | None, Callable[[], Split | None], list[str]]:
    splits = [folder / split for split in ("train", "val", "test")]
    if not splits[0].is_dir():
        train, held = hold_out(Split(*readers.image_folder(folder, size)), 0.2, seed=0)
        return train, None, lambda: held, readers.class_names(folder)
    names = _same_classes(folder)

    def read(split: Path) -> Split | None:
        return Split(*readers.image_folder(split, size)) if split.is_dir() else None

    return Split(*readers.image_folder(splits[0], size)), read(splits[1]), partial(read, splits[2]), names


def _item_by_item(spec: DataSpec, labels: Labels, whole: bool) -> Data:
    folder, size = spec.path, spec.size
    names = readers.class_names(folder) if whole else _same_classes(folder)

    def read(split: Path) -> ImageFiles | None:
        return ImageFiles(readers.image_files(split), names, size) if split.is_dir() else None

    if whole:
        found = read(folder)
        assert found is not None
        classes = torch.tensor([label for _, label in found.files])
        held = stratified(classes, len(found), round(0.2 * len(found)), 0)
        parts: dict[str, ImageFiles | None] = {"train": found.take(~held), "test": found.take(held)}
    else:
        parts = {"train": read(folder / "train"), "val": read(folder / "val"), "test": read(folder / "test")}
    return from_user(parts, labels=labels, workers=spec.workers, named=spec)


def _same_classes(folder: Path) -> list[str]:
    """The classes of `train`. Raises UserError when those of `val` or `test` differ; no test image is opened."""
    names = readers.class_names(folder / "train")
    for split in (folder / "val", folder / "test"):
        if split.is_dir() and (others := readers.class_names(split)) != names:
            raise UserError(f"{split} and {folder / 'train'} have different classes: {sorted(set(others) ^ set(names))}")
    return names
