"""Batches and augmentation on the device, as a function of (seed, step), so there is no state to save."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from subnet_search.core.errors import UserError
from subnet_search.core.rng import derive, generator
from subnet_search.data.normalisation import prepare
from subnet_search.data.sources import Split


def crop(images: Tensor, rng: torch.Generator, pad: int = 4) -> Tensor:
    """A random crop of each image (N, C, H, W), padded with zeros (black) by `pad` pixels on each side."""
    count, _, height, width = images.shape
    padded = F.pad(images, (pad,) * 4)
    top, left = torch.randint(0, 2 * pad + 1, (2, count, 1), generator=rng, device=images.device)
    rows = top + torch.arange(height, device=images.device)  # (N, H)
    columns = left + torch.arange(width, device=images.device)  # (N, W)
    index = torch.arange(count, device=images.device).view(-1, 1, 1)
    return padded.permute(0, 2, 3, 1)[index, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)


def flip(images: Tensor, rng: torch.Generator) -> Tensor:
    """Flip each image (N, C, H, W) left to right with probability 0.5."""
    mirrored = torch.rand(len(images), 1, 1, 1, generator=rng, device=images.device) < 0.5
    return torch.where(mirrored, images.flip(3), images)


def cutout(images: Tensor, rng: torch.Generator) -> Tensor:
    """Cutout: a black square of half the image's height around a random pixel (DeVries & Taylor 2017, arXiv:1708.04552)."""
    count, _, height, width = images.shape
    half = height // 4
    y = torch.randint(0, height, (count, 1, 1, 1), generator=rng, device=images.device)
    x = torch.randint(0, width, (count, 1, 1, 1), generator=rng, device=images.device)
    rows = torch.arange(height, device=images.device).view(1, 1, -1, 1)
    columns = torch.arange(width, device=images.device).view(1, 1, 1, -1)
    inside = (rows >= y - half) & (rows < y + half) & (columns >= x - half) & (columns < x + half)
    return images.masked_fill(inside, 0)


AUGMENTATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {"crop": crop, "flip": flip, "cutout": cutout}


class Batches:
    """The training batches of a split; `batch(step)` depends only on the arguments.

    Every epoch is a new permutation by (seed, epoch), or as many draws with replacement where items have weights. Images left
    over at the end of an epoch are dropped, so all batches have the same size. With `world` processes each takes its shard
    (`rank`) of every batch; raises UserError when the shards would differ in size.
    """

    def __init__(
        self,
        split: Split,
        mean: Tensor | None,
        std: Tensor | None,
        batch_size: int,
        seed: int,
        augment: Sequence[str] = (),
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.split, self.mean, self.std = split, mean, std
        self.batch_size = min(batch_size, len(split))
        if self.batch_size % world:
            raise UserError(f"a batch of {self.batch_size} images cannot be split equally over {world} processes")
        if augment and split.inputs.dim() != 4:
            shape = tuple(split.inputs.shape[1:])
            raise UserError(f"recipe.augment: {augment[0]} needs images (channels, height, width); inputs have shape {shape}")
        self.seed, self.augment, self.rank, self.world = seed, augment, rank, world
        self.steps_per_epoch = len(split) // self.batch_size
        self._epoch, self._order = -1, torch.empty(0)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Prepared inputs and labels of training step `step`, counted from 0 over the whole run."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            rng, weights = generator(self.seed, "order", epoch), self.split.weights
            if weights is None:
                order = torch.randperm(len(self.split), generator=rng)
            else:
                order = torch.multinomial(weights, len(self.split), replacement=True, generator=rng)
            self._epoch, self._order = epoch, order.to(self.split.labels.device)
        chosen = self._order[index * self.batch_size : (index + 1) * self.batch_size][self.rank :: self.world]
        inputs, labels = self.split.inputs[chosen], self.split.labels[chosen]
        rng = torch.Generator(inputs.device)
        for name in self.augment:
            inputs = AUGMENTATIONS[name](inputs, rng.manual_seed(derive(self.seed, name, step, self.rank)))
        return prepare(inputs, self.mean, self.std), labels
