"""A Dataset that augments its items at random, and a validation part that does not.

    cd examples
    subnet-search extract -s network=small_conv -s data=augmented:make -s data.workers=2 -s extractor=rigl

Items are read anew in every epoch. Their random numbers are a function of (seed, epoch, index), so a run that is stopped
continues with the same images.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Digits(Dataset):
    """scikit-learn's handwritten digits, as uint8 images (1, 8, 8)."""

    classes = tuple("0123456789")

    def __init__(self, rows: slice, transform: Callable[[Tensor], Tensor] | None = None) -> None:
        from sklearn.datasets import load_digits

        found = load_digits()
        self.images = torch.tensor(found.images[rows] * 15.9).to(torch.uint8).unsqueeze(1)
        self.labels, self.transform = found.target[rows], transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index]
        return image if self.transform is None else self.transform(image), int(self.labels[index])


def shifted(image: Tensor) -> Tensor:
    """The image moved by up to one pixel each way."""
    rows, columns = torch.randint(-1, 2, (2,)).tolist()
    return image.roll((rows, columns), (1, 2))


def make() -> dict[str, Digits]:
    return {
        "train": Digits(slice(0, 1300), shifted),
        "val": Digits(slice(1300, 1500)),
        "test": Digits(slice(1500, None)),
    }
