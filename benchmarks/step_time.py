"""Time of one training step on the CPU, batch 128, random images of CIFAR's shape.

`gumbel` is this package's loop with a supernet. `dense` trains the same network with a plain loop and SGD with
momentum. `gumbel_softmax` is the same method as one would write it with torch: torch.nn.functional.gumbel_softmax
(hard) on the stacked logits [m, 0], a learned scale a layer, functional_call. All of them keep freed memory; the
second table says what that is worth to the dense step. `dense` learns slowly here (1e-4), so that its units stay alive:
at 0.01, random labels soon leave dead ones, max-pooling over them is faster, and gumbel / dense on conv2 is 1.23.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import THREADS, medians, verdict
from torch import nn
from torch.func import functional_call

from subnet_search.data import Batches, Split
from subnet_search.extractors import Clock, create
from subnet_search.nets import NetworkSpec, build, prunable
from subnet_search.training import Recipe, Supernet
from subnet_search.training.loop import make_optimizer, training_step
from subnet_search.training.memory import keep_freed_memory

SHAPE, CLASSES, BATCH, STEPS = (3, 32, 32), 10, 128, 1000
# Small, so that networks stay as they began: with dead units, which a dense network soon gets from random labels,
# max-pooling takes half the time and the contenders would not be doing the same work.
DENSE_RATE = 1e-4


def main(quick: bool = False) -> list[dict[str, object]]:
    keep_freed_memory()
    rows: list[dict[str, object]] = []
    for name in ["conv2"] if quick else ["conv2", "conv4", "conv6"]:
        steps = {"dense": dense_step(name), "gumbel": gumbel_step(name), "gumbel_softmax": gumbel_softmax_step(name)}
        took = medians(steps, 5 if quick else 40 if name == "conv2" else 15)
        slower, faster = took.ratio("gumbel", "dense", "lower"), took.ratio("gumbel_softmax", "gumbel", "higher")
        rows.append(
            {
                "network": name,
                **{f"{contender}, ms": f"{1000 * seconds:.1f}" for contender, seconds in took.items()},
                "gumbel / dense": slower,
                "target": verdict(slower, "<=", 1.25) if name == "conv2" else "",
                "gumbel_softmax / gumbel": faster,
                "target ": verdict(faster, ">=", 1.8) if name == "conv2" else "",
            }
        )
    with child("conv2", "given back") as given_back_step, child("conv2", "kept") as kept_step:
        took = medians({"given back": given_back_step, "kept": kept_step}, 5 if quick else 30)
    given_back, kept = took["given back"], took["kept"]
    rows.append(
        {
            "network": "conv2",
            "dense, freed memory given back, ms": f"{1000 * given_back:.1f}",
            "dense, freed memory kept, ms": f"{1000 * kept:.1f}",
            "given back / kept": took.ratio("given back", "kept", "higher"),
        }
    )
    return rows


def random_batches() -> Batches:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (10 * BATCH, *SHAPE), dtype=torch.uint8, generator=rng)
    labels = torch.randint(0, CLASSES, (10 * BATCH,), generator=rng)
    return Batches(Split(images, labels), torch.full((3,), 0.5), torch.full((3,), 0.25), BATCH, seed=0)


def network(name: str) -> nn.Module:
    return build(NetworkSpec(name=name, init="signed_constant"), SHAPE, CLASSES, seed=0).train()


def numbered(step: Callable[[int], None]) -> Callable[[], None]:
    numbers = iter(range(STEPS))
    return lambda: step(next(numbers))


def gumbel_step(name: str) -> Callable[[], None]:
    extractor = create("gumbel")
    recipe = Recipe(batch_size=BATCH, device="cpu", threads=THREADS).resolve(extractor.published.recipe)
    supernet, batches = Supernet(network(name), extractor, recipe, seed=0), random_batches()
    optimizer, learned = make_optimizer(supernet, recipe), list(supernet.learned().values())

    def step(number: int) -> None:
        training_step(supernet, optimizer, batches.batch(number), Clock(number, STEPS, 0), learned)

    return numbered(step)


def dense_step(name: str) -> Callable[[], None]:
    net, batches = network(name), random_batches()
    optimizer = torch.optim.SGD(net.parameters(), lr=DENSE_RATE, momentum=0.9)

    def step(number: int) -> None:
        inputs, labels = batches.batch(number)
        loss = F.cross_entropy(net(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return numbered(step)


def gumbel_softmax_step(name: str) -> Callable[[], None]:
    net, batches = network(name).requires_grad_(False), random_batches()
    weights = dict(prunable(net))
    relevance = {key: torch.zeros_like(weight, requires_grad=True) for key, weight in weights.items()}
    scales = {key: torch.ones((), requires_grad=True) for key in weights}
    groups = [{"params": list(relevance.values()), "lr": 50.0}, {"params": list(scales.values()), "lr": 1e-3}]
    optimizer = torch.optim.SGD(groups, momentum=0.9)

    def step(number: int) -> None:
        inputs, labels = batches.batch(number)
        effective = {}
        for key, m in relevance.items():
            keep = F.gumbel_softmax(torch.stack([m, torch.zeros_like(m)], -1), tau=1.0, hard=True)[..., 0]
            effective[key] = scales[key] * weights[key] * keep
        loss = F.cross_entropy(functional_call(net, effective, (inputs,)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return numbered(step)


@contextmanager
def child(name: str, freed: str) -> Iterator[Callable[[], None]]:
    """The dense step in a process of its own, since how a process treats memory cannot be taken back."""
    command = [sys.executable, str(Path(__file__)), name, freed]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        requests, answers = process.stdin, process.stdout
        assert requests is not None
        assert answers is not None

        def step() -> None:
            print(file=requests, flush=True)
            if not answers.readline():
                raise RuntimeError(f"the process of the dense step ended: {command}")

        yield step
        requests.close()


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    if sys.argv[2] == "kept":
        keep_freed_memory()
    dense = dense_step(sys.argv[1])
    for _ in sys.stdin:
        dense()
        print(flush=True)
