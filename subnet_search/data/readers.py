"""Reading data sets from files: each reader returns the arrays of one split, checked, as uint8 images and labels.

Images are (N, channels, height, width) uint8 tensors, labels (N,) int64. Every reader raises UserError with the file
in its message when something is missing, truncated or of another shape.
"""

import gzip
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from subnet_search.errors import UserError

Arrays = tuple[Tensor, Tensor]

FASHION_FOLDERS = ("data/fashion-mnist", "data/FashionMNIST/raw", "/usr/share/datasets/fashion-mnist")


def digits() -> Arrays:
    """All 1797 images of scikit-learn's digits (8x8, values 0 to 16), which have no test split of their own."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images * 15.9375).to(torch.uint8).unsqueeze(1)  # (1797, 1, 8, 8), 0 to 255
    return images, torch.from_numpy(bunch.target).long()


def fashion_folder(root: str | None) -> Path | None:
    """The folder that holds Fashion-MNIST's four idx files: `root`, or the first known place that has them."""
    for folder in [root] if root else FASHION_FOLDERS:
        if any(Path(folder).glob("train-images-idx3-ubyte*")):
            return Path(folder)
    return None


def fashion_mnist(root: str | None, train: bool) -> Arrays:
    """Fashion-MNIST from idx files (gzipped or not); downloaded to data/ when no folder has them."""
    folder = fashion_folder(root)
    if folder is None:
        if root and Path(root).is_dir() and any(Path(root).iterdir()):
            raise UserError(f"no Fashion-MNIST idx files (train-images-idx3-ubyte and so on, gzipped or not) in {root}")
        return _torchvision("FashionMNIST", root, train)
    prefix = "train" if train else "t10k"
    images = _idx(folder, f"{prefix}-images-idx3-ubyte", dims=3)
    return images.unsqueeze(1), _idx(folder, f"{prefix}-labels-idx1-ubyte", dims=1).long()


def cifar(name: str, root: str | None, train: bool) -> Arrays:
    """CIFAR-10 or CIFAR-100 through torchvision, downloaded to data/ when it is not there."""
    return _torchvision(name.upper(), root, train)


def npz(path: Path, split: str) -> Arrays | None:
    """One split of an npz file in the MedMNIST layout: `<split>_images` (N, H, W[, C]) uint8, `<split>_labels`.

    Returns None when the file has no such split.
    """
    if not path.is_file():
        raise UserError(f"no such data file: {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            if not hasattr(file, "files"):
                raise UserError(f"{path} holds a single array, not the named arrays of an npz file")
            if f"{split}_images" not in file:
                return None
            for key in (f"{split}_images", f"{split}_labels"):
                if key not in file:
                    raise UserError(f"{path} has no array {key!r}; it holds {', '.join(file.files)}")
            images, labels = file[f"{split}_images"], file[f"{split}_labels"]
    except UserError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is not a readable npz file (truncated?): {error}") from error
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise UserError(
            f"{path}: {split}_images must be uint8 of shape (N, H, W) or (N, H, W, C), got {images.dtype} {images.shape}"
        )
    if labels.ndim not in (1, 2) or labels.size != len(labels) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{path}: {split}_labels must be whole numbers of shape (N,) or (N, 1), got {labels.dtype} {labels.shape}"
        )
    if images.ndim == 3:
        images = images[..., None]
    # Kept in channels-first order from here on.
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return pixels, torch.from_numpy(labels.reshape(-1).astype(np.int64))


def image_folder(root: Path, split: str | None, size: int) -> tuple[Tensor, Tensor, list[str]]:
    """Images in `root/[split/]CLASS/*`, resized and cropped to `size` x `size`; also the class names."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    folder = root / split if split else root
    resize = v2.Compose([v2.Resize(size), v2.CenterCrop(size), v2.PILToTensor()])
    try:
        files = ImageFolder(str(folder), transform=resize)
    except FileNotFoundError as error:
        raise UserError(f"{folder} is not an image folder (one sub-folder of images a class): {error}") from error
    try:
        images = torch.stack([image for image, _ in files])
    except OSError as error:
        raise UserError(f"{folder}: an image cannot be read: {error}") from error
    return images, torch.tensor(files.targets), files.classes


def _idx(folder: Path, name: str, dims: int) -> Tensor:
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    if path is None:
        raise UserError(f"{folder} has no {name} (or {name}.gz)")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        magic, *shape = struct.unpack_from(f">{1 + dims}I", raw)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise UserError(f"{path} is not a readable idx file (truncated?): {error}") from error
    offset = 4 * (1 + dims)
    if magic != 0x800 + dims or len(raw) - offset != int(np.prod(shape)):
        raise UserError(f"{path} is not a whole idx file: {len(raw) - offset} bytes of data for shape {tuple(shape)}")
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=offset).view(shape)


def _torchvision(name: str, root: str | None, train: bool) -> Arrays:
    import torchvision.datasets

    folder = root or "data"
    try:
        dataset = getattr(torchvision.datasets, name)(folder, train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{name} is not in {folder} and could not be downloaded: {error}") from error
    images = torch.as_tensor(dataset.data)
    images = images.permute(0, 3, 1, 2).contiguous() if images.dim() == 4 else images.unsqueeze(1)
    return images, torch.as_tensor(dataset.targets).long()
