"""Batches and augmentation on the device, as a function of (seed, step), so there is no state to save."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import IterableDataset

from subnet_search.core.errors import UserError
from subnet_search.core.rng import derive, generator
from subnet_search.data.batch import prepared, split_batch
from subnet_search.data.items import Items, Key
from subnet_search.data.split import Split


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

    Every epoch is a new permutation by (seed, epoch), or as many draws with replacement where items have weights; an iterable
    dataset keeps its order. Items left over at the end of an epoch are dropped, so all batches have the same size. With
    `world` processes each takes its shard (`rank`) of every batch; raises UserError when the shards would differ in size.
    """

    def __init__(
        self,
        split: Split | Items,
        mean: Tensor | None,
        std: Tensor | None,
        batch_size: int,
        seed: int,
        augment: Sequence[str] = (),
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.mean, self.std = mean, std
        self.split = split if isinstance(split, Split) else split.seeded(seed)
        self.batch_size = min(batch_size, len(split))
        if self.batch_size % world:
            raise UserError(f"a batch of {self.batch_size} items cannot be split equally over {world} processes")
        if augment and not _images(inputs := _example(split)):
            shape = f"; inputs have shape {tuple(inputs.shape[1:])}" if isinstance(inputs, Tensor) else ""
            raise UserError(f"recipe.augment: {augment[0]} needs images (channels, height, width){shape}")
        self.seed, self.augment, self.rank, self.world = seed, augment, rank, world
        self.steps_per_epoch = len(split) // self.batch_size
        self._order = _Order(self.split, seed, self.batch_size)
        self._epoch, self._positions = -1, torch.empty(0)
        self._next, self._reader = -1, iter(())

    def batch(self, step: int) -> Any:
        """The prepared batch of training step `step`, counted from 0 over the whole run: for most data (inputs, labels)."""
        batch = self._in_memory(step) if isinstance(self.split, Split) else self._from_reader(step)
        if self.augment:
            inputs, *others = batch
            rng = torch.Generator(inputs.device)
            for name in self.augment:
                inputs = AUGMENTATIONS[name](inputs, rng.manual_seed(derive(self.seed, name, step, self.rank)))
            batch = (inputs, *others)
        return prepared(batch, self.mean, self.std)

    def close(self) -> None:
        """End the worker processes that read ahead, also where an error still refers to these batches.

        One that the garbage collector has to end takes five seconds, in which everything waits.
        """
        self._next, self._reader = -1, iter(())

    def _in_memory(self, step: int) -> Any:
        assert isinstance(self.split, Split)
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._positions = epoch, self._order.of(epoch).to(self.split.device)
        chosen = self._positions[index * self.batch_size : (index + 1) * self.batch_size][self.rank :: self.world]
        return self.split.batch(chosen)

    def _from_reader(self, step: int) -> Any:
        """The batch of a step from a reader that is ahead of the training, if the last call was for the step before."""
        assert isinstance(self.split, Items)
        if step != self._next:
            self._reader = self.split.read(self._order.keys(step, self.rank, self.world))
        self._next = step + 1
        return next(self._reader)


@dataclass(frozen=True)
class _Order:
    """Which items each batch has. It does not refer to its `Batches`, whose reader so ends when they are dropped."""

    split: Split | Items
    seed: int
    batch_size: int

    def of(self, epoch: int) -> Tensor:
        """The positions of the epoch's items, in order."""
        rng, weights = generator(self.seed, "order", epoch), self.split.weights
        if not isinstance(self.split, Split) and isinstance(self.split.dataset, IterableDataset):
            return torch.arange(len(self.split))
        if weights is None:
            return torch.randperm(len(self.split), generator=rng)
        return torch.multinomial(weights, len(self.split), replacement=True, generator=rng)

    def keys(self, step: int, rank: int, world: int) -> Iterator[list[Key]]:
        """The (epoch, position) of the items of each batch of a rank, from a step on."""
        assert isinstance(self.split, Items)
        steps_per_epoch = len(self.split) // self.batch_size
        first, skipped = divmod(step, steps_per_epoch)
        for epoch in count(first):
            self.split.check_length()
            order = self.of(epoch)[: steps_per_epoch * self.batch_size]
            chunks = order.view(steps_per_epoch, self.batch_size)[skipped if epoch == first else 0 :]
            for chunk in chunks[:, rank::world]:
                yield [(epoch, position) for position in chunk.tolist()]


def in_order(split: Split | Items, mean: Tensor | None, std: Tensor | None) -> Iterator[Any]:
    """All items of a split as prepared batches, in order, for validation and tests."""
    for batch in split.batches("val"):
        yield prepared(batch, mean, std)


def _example(split: Split | Items) -> Any:
    return split_batch(split.first(1))[0]


def _images(inputs: Any) -> bool:
    return isinstance(inputs, Tensor) and inputs.dim() == 4
