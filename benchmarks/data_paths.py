"""What reading data item by item costs, and whether it keeps up with a plain DataLoader.

First table: a step of conv2 (batch 128, magnitude) on the same images in memory, and as a Dataset that reads a batch at once
(`__getitems__`) in the training process. Second table: an epoch of a Dataset with a random crop and flip of each image by
torchvision, read by two worker processes; `DataLoader` is a plain loop over torch's own, with persistent workers and the same
prefetching. Both only read.
"""

from collections.abc import Callable
from typing import Any

import torch
from timing import THREADS, medians, verdict
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from subnet_search.data import Batches, from_user
from subnet_search.data.items import PREFETCH
from subnet_search.extractors import Clock, create
from subnet_search.nets import NetworkSpec, build
from subnet_search.training import Recipe, Supernet
from subnet_search.training.loop import make_optimizer, training_step

BATCH, STEPS, WORKERS = 128, 1000, 2


class AtOnce(Dataset[Any]):
    """Items of tensors, a batch at a time."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.images[indices], self.labels[indices], strict=True))


class Augmented(Dataset[Any]):
    """The same items one by one, with a random crop and flip."""

    transform = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()])

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(self.images[index]), self.labels[index]


def main(quick: bool = False) -> list[dict[str, object]]:
    count = 10 * BATCH if quick else 40 * BATCH
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=rng)
    labels = torch.arange(count) % 10
    steps = {"items": step_on(AtOnce(images, labels)), "in memory": step_on((images, labels))}
    took = medians(steps, 5 if quick else 40)
    slower = took.ratio("items", "in memory", "lower", 3)
    rows: list[dict[str, object]] = [
        {
            "network": "conv2",
            **{f"{name}, ms": f"{1000 * seconds:.1f}" for name, seconds in took.items()},
            "items / in memory": slower,
            "target": verdict(slower, "<=", 1.05),
        }
    ]
    dataset = Augmented(images, labels)
    epochs = {"subnet_search": ours(dataset), "DataLoader": plain(dataset)}
    read = medians(epochs, 3 if quick else 10, warmup=1)
    faster = read.ratio("DataLoader", "subnet_search", "higher")
    rows.append(
        {
            "workers": WORKERS,
            **{f"{name}, items/s": f"{count / seconds:,.0f}" for name, seconds in read.items()},
            "DataLoader / subnet_search": faster,
            "target ": verdict(faster, ">=", 1.0),
        }
    )
    return rows


def step_on(given: Any) -> Callable[[], None]:
    data = from_user(given)
    net = build(NetworkSpec(name="conv2", init="kaiming_normal"), (3, 32, 32), 10, seed=0).train()
    recipe = Recipe(batch_size=BATCH, device="cpu", threads=THREADS, lr=1e-4).resolve({})
    supernet = Supernet(net, create("magnitude"), recipe, seed=0)
    batches = Batches(data.train, data.mean, data.std, BATCH, seed=0)
    optimizer, learned = make_optimizer(supernet, recipe), list(supernet.learned().values())
    numbers = iter(range(STEPS))

    def step() -> None:
        number = next(numbers)
        training_step(supernet, optimizer, batches.batch(number), Clock(number, STEPS, 0), learned)

    return step


def ours(dataset: Dataset[Any]) -> Callable[[], None]:
    one = torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.zeros(1, dtype=torch.long)
    data = from_user({"train": DataLoader(dataset, num_workers=WORKERS), "val": one})
    batches = Batches(data.train, data.mean, data.std, BATCH, seed=0)
    numbers = iter(range(10**9))
    return lambda: [batches.batch(next(numbers)) for _ in range(batches.steps_per_epoch)] and None


def plain(dataset: Dataset[Any]) -> Callable[[], None]:
    options = {"num_workers": WORKERS, "persistent_workers": True, "prefetch_factor": PREFETCH}
    loader = DataLoader(dataset, BATCH, shuffle=True, drop_last=True, **options)
    mean, std = torch.full((3, 1, 1), 0.5), torch.full((3, 1, 1), 0.25)

    def epoch() -> None:
        for inputs, _ in loader:
            (inputs.float() / 255 - mean) / std

    return epoch
