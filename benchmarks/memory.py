"""Memory on the CPU, in bytes a prunable weight: what a run holds between steps, and what a change takes for a moment.

An MLP with hidden layers of 1,000 units, batch 64, SGD with momentum; `dense` is a plain loop, which holds a weight, its
gradient and its momentum: 12 bytes. `held` counts the storage of every tensor that is alive after ten steps, changes of
topology among them, biases included, data not. `more` is what is held beyond `dense`. Targets: at most 1 byte more for
extractors that learn weights (a mask), and 4 more for one that rewinds (a copy of the weights). A running mean of
gradients costs 4 more and `explored` an eighth; they have no target.

`change` is the highest resident size during one change, from the extractor's decision to the optimizer's new state,
beyond that before it: each in a process of its own that gives freed memory back at once (Linux only).
"""

import gc
import itertools
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timing import THREADS, Measured, verdict
from torch import Tensor, nn

from subnet_search.data import Batches, Data, Split
from subnet_search.extractors import Clock, create
from subnet_search.nets import prunable
from subnet_search.training import Recipe, Supernet
from subnet_search.training.loop import Run

INPUTS, CLASSES, BATCH, IMAGES = 784, 10, 64, 640
STEPS, MORE_BY_REWINDING = 10, 4  # of 20, which are two epochs
CONTENDERS: dict[str, dict[str, Any]] = {
    "random": {"extractor": "random"},
    "rigl": {"extractor": {"name": "rigl", "every": 2}},
    "granet": {"extractor": {"name": "granet", "every": 2}},
    "gmp": {"extractor": {"name": "gmp", "every": 2}},
    "lottery, rewinding": {"extractor": {"name": "lottery", "rewind_to": 1}},
    "rigl by momentum": {"extractor": {"name": "rigl", "every": 2, "grow": "momentum"}},
    "rigl, explored": {"extractor": {"name": "rigl", "every": 2}, "explored": True},
}
TARGETS = {"random": 1.0, "rigl": 1.0, "granet": 1.0, "gmp": 1.0, "lottery, rewinding": 1.0 + MORE_BY_REWINDING}
SMALL = 1e-2  # bytes a weight that Python and torch may hold beside: counters, generators, the losses of an epoch


def main(quick: bool = False) -> list[dict[str, object]]:
    hidden = (1000, 200) if quick else (1000, 1000, 1000)
    plain = held_by_plain_loop(hidden)
    rows: list[dict[str, object]] = [row("dense", plain, plain, "")]
    for name, settings in CONTENDERS.items():
        rows.append(row(name, held(hidden, settings), plain, peak(name, hidden)))
    return rows


def row(name: str, size: float, plain: float, change: str) -> dict[str, object]:
    more, limit = size - plain, TARGETS.get(name)
    return {
        "method": name,
        "held": f"{size:.2f}",
        "more": Measured(more, more - SMALL, more + SMALL, "lower"),
        "target": "" if limit is None else verdict(round(more - SMALL, 3), "<=", limit),
        "change": change,
    }


def network(hidden: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(0)
    widths = (INPUTS, *hidden, CLASSES)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def data() -> Data:
    rng = torch.Generator().manual_seed(0)
    split = Split(torch.rand(IMAGES, INPUTS, generator=rng), torch.randint(0, CLASSES, (IMAGES,), generator=rng))
    return Data("noise", split, split, CLASSES, _test=lambda: split)


def batches_of(points: Data) -> Batches:
    return Batches(points.train, None, None, BATCH, 0)


def held_by_plain_loop(hidden: tuple[int, ...]) -> float:
    batches = batches_of(data())
    before = storages()
    net = network(hidden)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    for step in range(STEPS):
        inputs, labels = batches.batch(step)
        loss = F.cross_entropy(net(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    del inputs, labels, loss
    return sum_of_new(before) / numel(net)


def held(hidden: tuple[int, ...], settings: Mapping[str, Any]) -> float:
    points = data()
    before = storages()
    run = under_way(hidden, settings, points)
    return sum_of_new(before) / numel(run.supernet.net)


def under_way(hidden: tuple[int, ...], settings: Mapping[str, Any], points: Data) -> Run:
    """A run that has done half of its steps, changes of topology among them."""
    extractor, explored = create(settings["extractor"]), settings.get("explored", False)
    recipe = Recipe(epochs=2, batch_size=BATCH, lr=0.01, device="cpu", threads=THREADS, explored=explored).resolve({})
    run = Run(Supernet(network(hidden), extractor, recipe, 0), points, batches_of(points), 0, None)
    run.begin()
    for step in range(STEPS):
        run.step(Clock(step, run.total, 0))
    return run


def numel(net: nn.Module) -> int:
    return sum(weight.numel() for weight in prunable(net).values())


def storages() -> dict[int, int]:
    """The bytes of every storage that a tensor alive in this process has, by its address."""
    gc.collect()
    found = [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor)]
    found += [tensor.grad for tensor in found if tensor.is_leaf and tensor.grad is not None]
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in found}


def sum_of_new(before: Mapping[int, int]) -> int:
    return sum(size for address, size in storages().items() if address not in before)


def peak(name: str, hidden: tuple[int, ...]) -> str:
    """What a process of its own says, in bytes a weight; empty for a method that makes no change at that step."""
    if sys.platform != "linux":
        return ""
    command = [sys.executable, str(Path(__file__)), name, *map(str, hidden)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()


def measured_peak(hidden: tuple[int, ...], settings: Mapping[str, Any]) -> str:
    """Bytes a weight by which the resident size rises at most, while the next change is decided on and made."""
    run = under_way(hidden, settings, data())
    for step in range(STEPS, run.total):
        gc.collect()
        before = reset_peak()
        with torch.no_grad():
            change = run.extractor.step(run.supernet, Clock(step, run.total, 0))
        if change is not None:
            run.make(change)
            return f"{(status('VmHWM') - before) / numel(run.supernet.net):.1f}"
    return ""


def reset_peak() -> int:
    """Make the highest resident size the one that it is now, and return that, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def status(key: str) -> int:
    """A size in bytes from this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    print(measured_peak(tuple(map(int, sys.argv[2:])), CONTENDERS[sys.argv[1]]))
