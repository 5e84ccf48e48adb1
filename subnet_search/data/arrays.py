"""Arrays in files by their names: npz, a folder of npy files, safetensors. Large ones are memory-mapped.

inputs, labels                      one input (also x or images), and labels (also label, targets, target or y)
train_inputs, train_labels, ...     the same in parts; val and test may be missing
image, age, labels                  several inputs: the batch is a mapping, and the network gets them by these names
"""

import json
import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from subnet_search.core.errors import UserError, cut, guarded
from subnet_search.data import readers
from subnet_search.data.batch import LABELS, Labels
from subnet_search.data.given import PARTS, from_user
from subnet_search.data.rows import as_tensor, in_memory
from subnet_search.data.sources import Data, DataSpec, assemble, reads
from subnet_search.data.split import Split

INPUTS = ("inputs", "x", "images")
"""Names of an array that is the only input."""
CHANNELS = (1, 3, 4)
SAFETENSORS = {
    **{f"{letter}{bits}": f"<{kind}{bits // 8}" for letter, kind in (("I", "i"), ("U", "u")) for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
    "BOOL": "|b1",
}


@dataclass(frozen=True)
class Stored:
    """An array in a file, of which only the header was read."""

    kind: np.dtype
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    mapped: Callable[[], np.ndarray] | None  # None: compressed

    @property
    def nbytes(self) -> int:
        """Bytes of the array in memory."""
        return math.prod(self.shape) * self.kind.itemsize


@reads("npz", "npy", "safetensors")
def arrays(spec: DataSpec, labels: Labels, all_is_test: bool) -> Data:
    """Arrays in parts, or of which validation items are held out. Class images in memory are read as MedMNIST's."""
    path = spec.path
    with guarded(f"{path} is not a readable {spec.kind} file (truncated?)"):
        found = FORMATS[str(spec.kind)](path)
    if not found:
        raise UserError(f"{path} has no arrays")
    sizes = [array.nbytes for name, array in found.items() if not name.startswith("test_")]
    mapped = not in_memory(spec.in_memory, sum(sizes))
    if mapped and any(array.mapped is None for array in found.values()):
        if spec.in_memory is False:
            raise UserError(f"{path} is compressed, so it cannot be read item by item: save it with numpy.savez")
        mapped = False
    if spec.kind == "npz" and not mapped and labels.classes and "train_images" in found:
        return _medmnist(spec, labels)
    parts = _parts(path, found)
    for name, part in parts.items():
        _check(path, name, part, parts["train"], labels)

    def made(name: str) -> Any:
        with guarded(f"{path} is not a readable {spec.kind} file (truncated?)"):
            return _batches(path, parts[name], labels, mapped) if name in parts else None

    if len(parts) == 1:
        return from_user(made("train"), labels=labels, workers=spec.workers, all_is_test=all_is_test, named=spec)
    given = {"train": made("train"), "val": made("val"), "test": (lambda: made("test")) if "test" in parts else None}
    return from_user(given, labels=labels, workers=spec.workers, named=spec)


def _medmnist(spec: DataSpec, labels: Labels) -> Data:
    path = spec.path
    train = readers.npz(path, "train")
    assert train is not None
    val = readers.npz(path, "val")

    def test() -> Split | None:
        return Split(*found) if (found := readers.npz(path, "test")) else None

    return assemble(spec, Split(*train), Split(*val) if val else None, test, None, kind=labels)


def _parts(path: Path, found: Mapping[str, Stored]) -> dict[str, dict[str, Stored]]:
    """The arrays of each part by their names without the prefix; without prefixes all are the training part."""
    parts = {part: {name[len(part) + 1 :]: a for name, a in found.items() if name.startswith(f"{part}_")} for part in PARTS}
    if not any(parts.values()):
        return {"train": dict(found)}
    held = cut(", ".join(found))
    if not parts["train"]:
        kind = next(name for part in parts.values() for name in part)
        raise UserError(f"{path} has no array 'train_{kind}'; it holds {held}")
    if rest := [name for name in found if not name.startswith(tuple(f"{part}_" for part in PARTS))]:
        raise UserError(f"{path}: the name of the array {rest[0]!r} must begin with train_, val_ or test_, as the others do")
    return {part: arrays for part, arrays in parts.items() if arrays}


def _label_key(part: Mapping[str, Stored], labels: Labels) -> str | None:
    return next((key for key in ([labels.key] if labels.key else LABELS) if key in part), None)


def _check(path: Path, name: str, part: Mapping[str, Stored], train: Mapping[str, Stored], labels: Labels) -> None:
    """Raise UserError for arrays that cannot be items with labels, from their headers alone."""
    if part.keys() != train.keys():
        missing = sorted(part.keys() ^ train.keys())[0]
        raise UserError(f"{path} has the array {missing!r} in only one of train_{missing} and {name}_{missing}")
    for key, array in part.items():
        if array.kind.kind not in "biuf":
            raise UserError(f"{path}: the array {key!r} must be real numbers, got {array.kind}")
    sizes = {key: array.shape[0] if array.shape else 0 for key, array in part.items()}
    if len(set(sizes.values())) > 1:
        text = ", ".join(f"{key} {size}" for key, size in sizes.items())
        raise UserError(f"{path}: the arrays have different lengths: {text}")
    label = _label_key(part, labels)
    if labels.classes and label is None:
        raise UserError(f"{path} has no labels, an array named {' or '.join(LABELS)}; it holds {cut(', '.join(part))}")
    if set(part) == {label}:
        raise UserError(f"{path} has no inputs, only {label}")


def _batches(path: Path, part: Mapping[str, Stored], labels: Labels, mapped: bool) -> Any:
    """A pair (inputs, labels) or inputs alone, where one array has the name of inputs; otherwise a mapping."""
    read: dict[str, Any] = {}
    for name, array in part.items():
        if mapped and array.mapped:
            read[name] = array.mapped()
        else:
            readers.check_size(f"{path}: {name}", array.nbytes)
            read[name] = array.read()
    key, inputs = _label_key(part, labels), next((name for name in INPUTS if name in part), None)
    if key is not None and inputs is not None and len(part) == 2:
        pair = _channels_first(read[inputs]), read[key]
        return pair if mapped else tuple(map(as_tensor, pair))
    if inputs is not None and len(part) == 1:
        return read[inputs] if mapped else as_tensor(read[inputs])
    return read if mapped else {name: as_tensor(array) for name, array in read.items()}


def _channels_first(images: np.ndarray) -> np.ndarray:
    """uint8 images (N, H, W) or (N, H, W, C) as (N, C, H, W); other arrays as they are."""
    if images.dtype == np.uint8 and images.ndim == 3:
        return images[:, None]
    if images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] in CHANNELS:
        return np.moveaxis(images, 3, 1)
    return images


def _npz(path: Path) -> dict[str, Stored]:
    if not path.is_file():
        raise UserError(f"no such data file: {path}")
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        readers.check_members(archive, path)
        return {
            name: _in_archive(archive, file, name, path)
            for name in (member.filename.removesuffix(".npy") for member in archive.infolist())
        }


def _in_archive(archive: zipfile.ZipFile, file: Any, name: str, path: Path) -> Stored:
    kind, shape, fortran, header = readers.npz_header(archive, name, path)
    member = archive.getinfo(f"{name}.npy")

    def read() -> np.ndarray:
        with zipfile.ZipFile(path) as again:
            return readers.npz_array(again, name, path)

    if member.compress_type != zipfile.ZIP_STORED or not math.prod(shape):
        return Stored(kind, shape, read, None)
    file.seek(member.header_offset + 26)  # the lengths of the name and of the extra field, which the directory may not have
    start = member.header_offset + 30 + sum(struct.unpack("<2H", file.read(4))) + header
    return Stored(kind, shape, read, _mapped(path, kind, start, shape, fortran))


def _npy(folder: Path) -> dict[str, Stored]:
    if not folder.is_dir():
        raise UserError(f"no such folder of npy files: {folder}")
    found = {}
    for path in sorted(folder.glob("*.npy")):
        with guarded(f"{path} is not a readable npy file (truncated?)"), open(path, "rb") as file:
            shape, fortran, kind = readers.npy_header(file)
            claimed, held = math.prod(shape) * kind.itemsize, path.stat().st_size - file.tell()
            if claimed != held and not kind.hasobject:
                raise UserError(f"{path} is not a readable npy file: {held:,} bytes of data for shape {shape}")
            mapped = _mapped(path, kind, file.tell(), shape, fortran) if claimed else None
        found[path.stem] = Stored(kind, shape, _reader(path), mapped)
    return found


def _reader(path: Path) -> Callable[[], np.ndarray]:
    return lambda: np.load(path, allow_pickle=False)


def _safetensors(path: Path) -> dict[str, Stored]:
    if not path.is_file():
        raise UserError(f"no such data file: {path}")
    with open(path, "rb") as file:
        [length] = struct.unpack("<Q", file.read(8))
        if length > path.stat().st_size:
            raise UserError(f"{path} is not a readable safetensors file: its header claims {length:,} bytes")
        header = json.loads(file.read(length))
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in SAFETENSORS:
            raise UserError(f"{path}: the tensor {name!r} has type {entry['dtype']}, which numpy does not have: save it as F32")
        kind, shape, (start, end) = np.dtype(SAFETENSORS[entry["dtype"]]), tuple(entry["shape"]), entry["data_offsets"]
        if end - start != math.prod(shape) * kind.itemsize or 8 + length + end > path.stat().st_size:
            raise UserError(f"{path} is not a readable safetensors file: the tensor {name!r} is not whole")
        read = _mapped(path, kind, 8 + length + start, shape, False) if end > start else _empty(kind, shape)
        found[name] = Stored(kind, shape, read, read)
    return found


def _mapped(path: Path, kind: np.dtype, start: int, shape: tuple[int, ...], fortran: bool) -> Callable[[], np.ndarray]:
    return lambda: np.memmap(path, kind, "r", start, shape, "F" if fortran else "C")


def _empty(kind: np.dtype, shape: tuple[int, ...]) -> Callable[[], np.ndarray]:
    return lambda: np.empty(shape, kind)


FORMATS: dict[str, Callable[[Path], dict[str, Stored]]] = {"npz": _npz, "npy": _npy, "safetensors": _safetensors}
