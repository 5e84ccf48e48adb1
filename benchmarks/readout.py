"""Untrained networks with a last layer that is solved in closed form, against training.

`small_conv` of twice the width (256 features) with its initial weights (kaiming_normal), dense or as a subnetwork: at random
with the same density in every layer, by `synflow`, or with the topology that `gumbel` learns. `ridge` solves the last layer by
ridge regression on the training data (`recipe.readout`; the penalty is chosen on a tenth of them), `SGD` trains that layer
alone on the same features, standardised (40 epochs, the best of three rates on validation data), and `all weights` trains the
whole subnetwork (cosine, rate 0.05, momentum 0.9). `nothing` is gumbel's own result, without any weight trained. The last
layer is dense everywhere and not counted (`dense_layers`). Test accuracy, mean (lowest to highest) of the seeds: three on
digits, two on the others. Seconds of one thread are from the network to its test accuracy; those of SGD are of the three rates
together.

At the end, the same for `lenet_300_100`, a perceptron with hidden layers of 300 and 100: beside `ridge`, `forward ridge` solves
its three layers one after another (`recipe.readout: forward_ridge`).

digits: 1,294 training images, 40 epochs. Fashion-MNIST and CIFAR-10: 5,000 training images, 8 epochs. SUBNET_SEARCH_CIFAR10 is
an npz file in the layout of MedMNIST; without it CIFAR-10 is left out. About ten minutes on one core.

What is seen: solving the last layer is between 1.2 points below (Fashion-MNIST) and 2.1 points above training it, in one pass
over the data. Without any training, subnetworks of a tenth of the weights are within 1 point of the dense network; they are up
to 1 point below the trained subnetworks on digits, 4 to 7 on Fashion-MNIST and 8 to 14 on CIFAR-10. The topologies that gumbel
learns with another last layer are better features than random ones and those of synflow, by 1 to 2, 3 and 6 points; ridge
regression on them is 2 to 16 points above gumbel's own result in so few epochs.
"""

import os
import time
from collections.abc import Iterator
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from timing import spread
from torch import Tensor, nn

import subnet_search as ss
from subnet_search.data import Data, Items, Split, in_order, load

DENSITIES = (0.3, 0.1)
RATES, PASSES = (0.001, 0.01, 0.1), 40
NETWORK = {"name": "small_conv", "options": {"width": 2.0}}
LAST = "7"  # its last layer
NONE = {"threads": 1, "device": "cpu"}
METHODS = {
    "random": {"name": "random", "allocation": "uniform"},
    "synflow": {"name": "synflow"},
    "gumbel": {"name": "gumbel"},
}


def main(quick: bool = False) -> list[dict[str, object]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = [row for name, spec, epochs, seeds in data_sets(quick) for row in rows(name, spec, epochs, seeds)]
        perceptron = [row for name, spec, epochs, seeds in data_sets(quick) for row in in_layers(name, spec, epochs, seeds)]
        return found + perceptron
    finally:
        torch.set_num_threads(threads)


def data_sets(quick: bool) -> Iterator[tuple[str, dict[str, Any], int, int]]:
    """Name, data, epochs of training, seeds."""
    yield "digits", {"name": "digits"}, 1 if quick else 40, 1 if quick else 3
    if quick:
        return
    yield "Fashion-MNIST", {"name": "fashion_mnist", "limit": 5556}, 8, 2
    if file := os.environ.get("SUBNET_SEARCH_CIFAR10"):
        yield "CIFAR-10", {"name": f"npz:{file}", "limit": 5556}, 8, 2


def rows(name: str, spec: dict[str, Any], epochs: int, seeds: int) -> Iterator[dict[str, object]]:
    data = load(spec)
    for density, method in [(1.0, "random"), *((density, method) for density in DENSITIES for method in METHODS)]:
        label = "dense" if density == 1 else method
        found = [one(data, method, density, epochs, seed) for seed in range(seeds)]
        for arm in found[0]:
            yield row(name, density, label, arm, [each[arm] for each in found])


def in_layers(name: str, spec: dict[str, Any], epochs: int, seeds: int) -> Iterator[dict[str, object]]:
    """Rows of the perceptron."""
    data = load(spec)
    for density in (1.0, *DENSITIES):
        for arm, recipe in {
            "last layer, ridge": {"epochs": 0, "readout": "ridge"},
            "all layers, forward ridge": {"epochs": 0, "readout": "forward_ridge"},
            "all weights": {"epochs": epochs, "lr": 0.05, "schedule": "cosine"},
        }.items():
            found = []
            for seed in range(seeds):
                started = time.perf_counter()
                config = ss.RunConfig(
                    network="lenet_300_100",
                    extractor={**METHODS["random"], "density": density},
                    recipe=ss.Recipe(**NONE, **recipe),
                    seed=seed,
                )
                subnet = ss.run(config, data=data, progress=False)
                found.append((subnet.metrics["test_accuracy"], time.perf_counter() - started))
            yield row(f"{name}, lenet_300_100", density, "dense" if density == 1 else "random", arm, found)


def row(name: str, density: float, topology: str, arm: str, found: list[tuple[float, float]]) -> dict[str, object]:
    """found: test accuracy and seconds by seed."""
    test = [100 * accuracy for accuracy, _ in found]
    return {
        "data": name,
        "density": f"{density:g}",
        "topology": topology,
        "trained": arm,
        "test accuracy, %": spread(fmean(test), test, "higher"),
        "seconds": f"{fmean(seconds for _, seconds in found):.1f}",
    }


def one(data: Data, method: str, density: float, epochs: int, seed: int) -> dict[str, tuple[float, float]]:
    """Test accuracy and seconds by what is trained."""

    def found(length: int, **recipe: Any) -> tuple[ss.Subnetwork, float]:
        started = time.perf_counter()
        settings = ss.Recipe(epochs=length, **NONE, **recipe)
        how = {**METHODS[method], "density": density}
        config = ss.RunConfig(network=NETWORK, extractor=how, dense_layers=[LAST], recipe=settings, seed=seed)
        subnet = ss.run(config, data=data, progress=False)
        return subnet, time.perf_counter() - started

    learns = method == "gumbel"
    plain, search = found(epochs if learns else 0)
    started = time.perf_counter()
    solved = ss.evaluate(plain, "test", data=data, readout="ridge")["accuracy"]
    seconds = time.perf_counter() - started
    trained, last = sgd(plain.network().eval(), data)
    results = {"last layer, ridge": (solved, search + seconds), "last layer, SGD": (trained, search + last)}
    if learns:
        return {**results, "nothing": (plain.metrics["test_accuracy"], search)}
    whole, training = found(epochs, lr=0.05, schedule="cosine")
    return {**results, "all weights": (whole.metrics["test_accuracy"], training)}


def sgd(net: nn.Sequential, data: Data) -> tuple[float, float]:
    """Test accuracy and seconds of a last layer that is trained on the features of the others."""
    started = time.perf_counter()
    net[-1] = nn.Identity()
    train, val, test = (features(net, split, data) for split in (data.train, data.val, data.test()))
    center, scale = train[0].mean(0), train[0].std(0).clamp(min=1e-6)
    train, val, test = (((x - center) / scale, y) for x, y in (train, val, test))
    best: tuple[float, float] = (-1.0, 0.0)
    for rate in RATES:
        torch.manual_seed(0)
        layer = nn.Linear(train[0].shape[1], data.classes)
        optimizer = torch.optim.SGD(layer.parameters(), lr=rate, momentum=0.9)
        for _ in range(PASSES):
            for batch in torch.randperm(len(train[0])).split(128):
                optimizer.zero_grad()
                F.cross_entropy(layer(train[0][batch]), train[1][batch]).backward()
                optimizer.step()
        with torch.no_grad():
            scores = [(layer(x).argmax(1) == y).double().mean().item() for x, y in (val, test)]
        best = max(best, (scores[0], scores[1]))
    return best[1], time.perf_counter() - started


@torch.no_grad()
def features(net: nn.Module, split: Split | Items | None, data: Data) -> tuple[Tensor, Tensor]:
    assert split is not None
    batches = [(net(inputs), labels) for inputs, labels in in_order(split, data.mean, data.std)]
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
