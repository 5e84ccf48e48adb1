"""Read data sets from files: each reader returns the images and labels of one split.

Images are uint8 tensors (N, channels, height, width), labels int64 (N,). Every reader raises UserError with the file's
name when data is missing, truncated or of the wrong shape. Sizes in file headers are checked before memory is allocated.
"""

import gzip
import math
import os
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from subnet_search.core.errors import UserError, cut, guarded

if TYPE_CHECKING:
    from PIL.Image import Image

Arrays = tuple[Tensor, Tensor]

FASHION_FOLDERS = ("data/fashion-mnist", "data/FashionMNIST/raw", "/usr/share/datasets/fashion-mnist")
DEFLATE = 1032  # maximum compression ratio of gzip and zip files


def check_size(what: str, claimed: int, stored: int | None = None) -> None:
    """Raise UserError when `claimed` bytes cannot come from `stored` compressed bytes, or exceed this machine's memory."""
    if stored is not None and claimed > DEFLATE * (stored + 64):
        raise UserError(f"{what} claims {claimed:,} bytes in a file of {stored:,}")
    if hasattr(os, "sysconf") and claimed > (memory := os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")):
        raise UserError(f"{what} needs {claimed:,} bytes, more than this machine's memory of {memory:,}")


def digits() -> Arrays:
    """All 1797 images of scikit-learn's digits (8x8, values 0 to 16 scaled to 0 to 255). There is no test split."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images * 15.9375).to(torch.uint8).unsqueeze(1)  # (1797, 1, 8, 8), 0 to 255
    return images, torch.from_numpy(bunch.target).long()


def fashion_folder(root: str | None) -> Path | None:
    """The folder with Fashion-MNIST's four idx files: `root`, or the first known folder that has them; None without."""
    for folder in [root, f"{root}/FashionMNIST/raw"] if root else FASHION_FOLDERS:  # the second is torchvision's
        if any(Path(folder).glob("train-images-idx3-ubyte*")):
            return Path(folder)
    return None


def fashion_mnist(root: str | None, train: bool) -> Arrays:
    """Fashion-MNIST from idx files (gzipped or not); downloaded to `root` or data/ when they are not found."""
    folder = fashion_folder(root)
    if folder is None:
        if root and Path(root).is_dir() and any(Path(root).iterdir()):
            raise UserError(f"no Fashion-MNIST idx files (train-images-idx3-ubyte and so on, gzipped or not) in {root}")
        return _torchvision("FashionMNIST", root, train)
    prefix = "train" if train else "t10k"
    images = _idx(folder, f"{prefix}-images-idx3-ubyte", dims=3)
    return images.unsqueeze(1), _idx(folder, f"{prefix}-labels-idx1-ubyte", dims=1).long()


def cifar(name: str, root: str | None, train: bool) -> Arrays:
    """CIFAR-10 or CIFAR-100 through torchvision; downloaded to `root` or data/ when it is not there."""
    return _torchvision(name.upper(), root, train)


def npz(path: Path, split: str) -> Arrays | None:
    """One split of an npz file in the MedMNIST layout: `<split>_images` (N, H, W[, C]) uint8, `<split>_labels`.

    C is 1, 3 or 4. Returns None when the file has no such split.
    """
    with guarded(f"{path} is not a readable npz file (truncated?)"):
        if not path.is_file():
            raise UserError(f"no such data file: {path}")
        with zipfile.ZipFile(path) as archive:
            check_members(archive, path)
            held = [member.filename.removesuffix(".npy") for member in archive.infolist()]
            if f"{split}_images" not in held:
                return None
            if f"{split}_labels" not in held:
                raise UserError(f"{path} has no array '{split}_labels'; it holds {cut(', '.join(held))}")
            images = _array(archive, f"{split}_images", path)
            labels = _array(archive, f"{split}_labels", path)
        if images.ndim == 3:
            images = images[..., None]
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        return pixels, torch.from_numpy(labels.reshape(-1).astype(np.int64))


def check_members(archive: zipfile.ZipFile, path: Path) -> None:
    """Raise an error when array names are damaged; otherwise a damaged name would look like a missing split."""
    for member in archive.infolist():
        archive.open(member).close()  # compares the name in the directory with the name in the local header
    with open(path, "rb") as file:
        file.seek(-22, os.SEEK_END)
        signature, count = struct.unpack("<4s6xH10x", file.read())
    if signature == b"PK\x05\x06" and count not in (len(archive.infolist()), 0xFFFF):  # 0xFFFF: the count is elsewhere
        raise UserError(f"{path} is not a readable npz file: {len(archive.infolist())} of its {count} arrays are found")


def _array(archive: zipfile.ZipFile, name: str, path: Path) -> "np.ndarray":
    """An array of an npz file; its type and shape are checked before it is read."""
    kind, shape, _, _ = npz_header(archive, name, path)
    where = f"{path}: {name}"
    if name.endswith("_images"):
        if kind != np.uint8 or len(shape) not in (3, 4):
            raise UserError(f"{where} must be uint8 of shape (N, H, W) or (N, H, W, C), got {kind} {shape}")
        if len(shape) == 4 and shape[3] not in (1, 3, 4):
            raise UserError(
                f"{where} has shape {shape}: images (N, H, W, C) need 1, 3 or 4 channels; volumes are not supported"
            )
    elif len(shape) not in (1, 2) or math.prod(shape[1:]) != 1 or not np.issubdtype(kind, np.integer):
        raise UserError(f"{where} must be integers of shape (N,) or (N, 1), got {kind} {shape}")
    return npz_array(archive, name, path)


def npz_header(archive: zipfile.ZipFile, name: str, path: Path) -> tuple["np.dtype", tuple[int, ...], bool, int]:
    """Type, shape, whether the order is Fortran's, and the length in bytes of the header of an array in an npz file."""
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as stream:
        shape, fortran, kind = npy_header(stream)
        length = stream.tell()
    claimed, held = math.prod(shape) * kind.itemsize, member.file_size - length
    if claimed != held and not kind.hasobject:  # with a smaller shape the checksum would not be verified
        raise UserError(f"{path} is not a readable npz file: {name} has {held:,} bytes of data for shape {shape}")
    return kind, shape, fortran, length


def npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, "np.dtype"]:
    """Shape, whether the order is Fortran's, and type, from the beginning of an npy file."""
    read_header = npy.read_array_header_1_0 if npy.read_magic(stream) == (1, 0) else npy.read_array_header_2_0
    return read_header(stream)


def npz_array(archive: zipfile.ZipFile, name: str, path: Path) -> "np.ndarray":
    """An array of an npz file, whose size is checked before it is read."""
    kind, shape, _, _ = npz_header(archive, name, path)
    member = archive.getinfo(f"{name}.npy")
    check_size(f"{path}: {name}", math.prod(shape) * kind.itemsize, member.compress_size)
    with archive.open(member) as stream:
        return npy.read_array(stream, allow_pickle=False)


def class_names(folder: Path) -> list[str]:
    """The sub-folders of an image folder, sorted, without hidden ones."""
    with guarded(f"{folder} is not a readable image folder"):
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not _hidden(entry.name))


def image_folder(folder: Path, size: int) -> Arrays:
    """Images in `folder/CLASS/*`, resized and cropped to `size` x `size`; hidden files and folders are ignored."""
    files = image_files(folder)
    check_size(f"{folder} at data.size {size}", 3 * len(files) * size**2)
    return images([path for path, _ in files], size), torch.tensor([label for _, label in files])


def image_files(folder: Path) -> list[tuple[str, int]]:
    """The image files in `folder/CLASS/*` with their class indices, sorted; hidden files and folders are ignored."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    def is_image(path: str) -> bool:
        parts = Path(path).relative_to(folder).parts
        return path.lower().endswith(IMG_EXTENSIONS) and not any(map(_hidden, parts))

    with guarded(f"{folder} is not an image folder (one sub-folder of images a class)"):
        names = class_names(folder)
        if not names:
            raise UserError(f"{folder} is not an image folder (one sub-folder of images a class): it has no sub-folders")
        found: list[tuple[str, int]] = make_dataset(
            str(folder), {name: i for i, name in enumerate(names)}, is_valid_file=is_image
        )
        return found


def images_in(folder: Path) -> list[Path]:
    """The image files in a folder and its sub-folders, sorted, without hidden ones."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    with guarded(f"{folder} is not a readable folder"):
        paths = [path for path in folder.rglob("*") if path.suffix.lower() in IMG_EXTENSIONS]
        return sorted(path for path in paths if not any(map(_hidden, path.relative_to(folder).parts)))


def images(files: Sequence["str | Path | Image"], size: int, channels: int = 3) -> Tensor:
    """Images, or files of them, as uint8 (N, channels, size, size), resized and cropped at the centre; 1 channel: grey."""
    from torchvision.transforms import v2

    resize = v2.Compose([v2.Resize(size), v2.CenterCrop(size), v2.PILToTensor()])
    found = torch.empty(len(files), channels, size, size, dtype=torch.uint8)
    for index, (image, file) in enumerate(zip(found, files, strict=True)):
        name = str(file) if isinstance(file, str | Path) else f"image {index}"
        with guarded(f"{name} is not a readable image"):
            colours = _rgb(name) if isinstance(file, str | Path) else _converted(file, name)
            image.copy_(resize(colours.convert("L") if channels == 1 else colours))
    return found


def _rgb(path: str) -> "Image":
    """An image as 8-bit RGB. Of 16-bit pixels the upper 8 bits are kept, as Pillow does for colour images."""
    from PIL import Image

    if not os.path.isfile(path):
        raise UserError(f"{path} is not a readable image: not a file")
    with Image.open(path) as image:
        if image.format == "PNG":
            image.verify()  # all checksums; `open` verifies those of headers only
    with Image.open(path) as image:
        return _converted(image, path)


def _converted(image: "Image", name: str) -> "Image":
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # Pillow scales PPM to 16 bits
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise UserError(f"{name} has 32-bit pixels (mode {image.mode}) of unknown range: save it with 8 or 16 bits")
    return image.convert("RGB")


def _hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or metadata of macOS archives."""
    return name.startswith(".") or name == "__MACOSX"


def _idx(folder: Path, name: str, dims: int) -> Tensor:
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    if path is None:
        raise UserError(f"{folder} has no {name} (or {name}.gz)")
    zipped = path.suffix == ".gz"
    with guarded(f"{path} is not a readable idx file (truncated?)"), (gzip.open if zipped else open)(path, "rb") as file:
        magic, *shape = struct.unpack(f">{1 + dims}I", file.read(4 * (1 + dims)))
        claimed = math.prod(shape)
        if magic != 0x800 + dims:
            raise UserError(f"{path} is not a valid idx file: it begins with {magic:#x}, not {0x800 + dims:#x}")
        check_size(f"{path} is not a valid idx file: shape {tuple(shape)}", claimed, path.stat().st_size)
        raw = file.read(claimed + 1) if zipped else file.read()
    if len(raw) != claimed:
        held = "more" if len(raw) > claimed else f"{len(raw):,}"
        raise UserError(f"{path} is not a valid idx file: {held} bytes of data for shape {tuple(shape)}")
    return torch.from_numpy(np.frombuffer(raw, dtype=np.uint8).copy()).view(shape)


def _torchvision(name: str, root: str | None, train: bool) -> Arrays:
    import torchvision.datasets

    folder = root or "data"
    with guarded(f"{name} is not in {folder} and could not be downloaded"):
        dataset = getattr(torchvision.datasets, name)(folder, train=train, download=True)
    images = torch.as_tensor(dataset.data)
    images = images.permute(0, 3, 1, 2).contiguous() if images.dim() == 4 else images.unsqueeze(1)
    return images, torch.as_tensor(dataset.targets).long()
