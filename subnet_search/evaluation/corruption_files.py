"""Accuracy on images that were corrupted by others: the official files of CIFAR-10-C, CIFAR-100-C and data sets like them.

Hendrycks & Dietterich 2019, arXiv:1903.12261. A folder has labels.npy and a file for each corruption, KIND.npy: uint8 images
(5 N, height, width, channels), N of each severity from 1 to 5, in order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from subnet_search.core.errors import UserError, reading
from subnet_search.data import prepare
from subnet_search.nets import logits_of

LABELS, SEVERITIES, BATCH = "labels.npy", (1, 2, 3, 4, 5), 1000
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")  # that means over the benchmark's 15 kinds leave out


@dataclass(frozen=True)
class CorruptedFiles:
    """A folder of corrupted images, checked."""

    kinds: dict[str, Path]
    labels: Tensor  # (5 N,)

    @classmethod
    def of(cls, folder: str | Path, shape: tuple[int, ...], classes: int) -> "CorruptedFiles":
        """Open a folder. shape: of an image, (channels, height, width). Raises UserError when the files are no such images."""
        folder = Path(folder).expanduser()
        kinds = {path.stem: path for path in sorted(folder.glob("*.npy")) if path.name != LABELS}
        if not (folder / LABELS).is_file() or not kinds:
            raise UserError(f"{folder} has no corrupted images: give a folder of {LABELS} and KIND.npy, such as CIFAR-10-C")
        labels = _array(folder / LABELS)
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels) or len(labels) % len(SEVERITIES):
            raise UserError(f"{folder / LABELS} must have the class of every image, 5 N integers, got {_shown(labels)}")
        if not 0 <= labels.min() <= labels.max() < classes:
            raise UserError(f"{folder / LABELS} has classes from {labels.min()} to {labels.max()}, the network {classes}")
        wanted = (len(labels), *shape[1:], shape[0])
        for path in kinds.values():
            images = _array(path)
            if images.dtype != np.uint8 or images.shape != wanted:
                raise UserError(f"{path} must be uint8 of shape {wanted}, got {_shown(images)}")
        return cls(kinds, torch.from_numpy(labels.astype(np.int64)))

    @torch.no_grad()
    def table(
        self,
        forward: Callable[[Tensor], Tensor],
        mean: Tensor | None,
        std: Tensor | None,
        severities: Sequence[int] = SEVERITIES,
    ) -> list[dict[str, Any]]:
        """Accuracy by kind and severity, as `robustness.corruption_table` gives it."""
        rows, count = [], len(self.labels) // len(SEVERITIES)
        for kind, path in self.kinds.items():
            images = _array(path)
            for severity in severities:
                right, first = 0, (severity - 1) * count
                for start in range(first, first + count, BATCH):
                    part = slice(start, min(start + BATCH, first + count))
                    inputs = torch.from_numpy(np.ascontiguousarray(images[part].transpose(0, 3, 1, 2)))
                    right += int((logits_of(forward(prepare(inputs, mean, std))).argmax(1) == self.labels[part]).sum())
                rows.append({"corruption": kind, "severity": severity, "accuracy": right / count})
        return rows


def benchmark_mean(rows: Sequence[dict[str, Any]]) -> float:
    """The mean accuracy over the severities and the kinds of the benchmark: all but the four extra ones."""
    return fmean([row["accuracy"] for row in rows if row["corruption"] not in EXTRA] or [row["accuracy"] for row in rows])


def _array(path: Path) -> Any:
    """The array of a file, which stays on the disk until it is used."""
    with reading(path, "a file of numpy"):
        return np.load(path, mmap_mode="r", allow_pickle=False)


def _shown(array: Any) -> str:
    return f"{array.dtype} of shape {array.shape}"
