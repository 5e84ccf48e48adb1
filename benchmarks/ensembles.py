"""Ensembles of ten networks that are drawn from one run, against its subnetwork (`evaluate --ensemble 10`).

`small_conv` on 5,000 training images of Fashion-MNIST, 12 epochs (24 with weight statistics), two seeds; test images, means of
the seeds. Topologies are drawn from the relevance of `gumbel` and `supermask`; weights, of `random` (static ERK, rate 0.1,
constant) from mean and variance over the last half of the run, a sample for each epoch. With batch norm, the subnetwork is
measured with its statistics computed anew, as those of the members are; as it is, gumbel's is far less accurate.
An ensemble costs ten times as many operations and bytes. One thread.

What is seen: drawn topologies are better calibrated than the one that is kept where the density was not asked for; their
accuracy is near that of the subnetwork, above it with batch norm. Ranked to a density of 0.2, members are far from what was
trained, where samples had half of the units, and the ensemble is worse. Weights that are drawn add nothing to their mean: their
variance in so short a run is small.
"""

from collections.abc import Iterator
from statistics import fmean
from typing import Any

import torch
from timing import spread

import subnet_search as ss

MEMBERS = 10
PLAIN: dict[str, Any] = {"name": "small_conv"}
NORM = {"name": "small_conv", "options": {"norm": "batch"}}
STORED = {"store_relevance": True}
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "topologies, gumbel": (PLAIN, {"name": "gumbel"}, STORED),
    "topologies, gumbel, batch norm": (NORM, {"name": "gumbel"}, STORED),
    "topologies, gumbel at density 0.2": (PLAIN, {"name": "gumbel", "density": 0.2}, STORED),
    "topologies, supermask": ({**PLAIN, "init": "glorot_constant"}, {"name": "supermask"}, STORED),
    "weights, random at density 0.1": (
        PLAIN,
        {"name": "random", "density": 0.1},
        {"epochs": 24, "lr": 0.1, "weight_statistics": 0.5},
    ),
}


def main(quick: bool = False) -> list[dict[str, object]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [row for name in RUNS for row in rows(name, quick)]
    finally:
        torch.set_num_threads(threads)


def rows(name: str, quick: bool) -> Iterator[dict[str, object]]:
    records = [record(name, seed, quick) for seed in range(1 if quick else 2)]
    arms = {"the subnetwork": "single", "a member": "each", "mean of the weights": "mean_weights", "the ensemble": "metrics"}
    if records[0]["recomputed"]:
        arms = {"the subnetwork as it is": "single", **arms, "the subnetwork": "recomputed"}
    for label, key in arms.items():
        if records[0][key]:
            found = {metric: [mean(one[key][metric]) for one in records] for metric in ("accuracy", "nll", "ece")}
            accuracy = [100 * value for value in found["accuracy"]]
            yield {
                "drawn": name,
                "measured": label,
                "test accuracy, %": spread(fmean(accuracy), accuracy, "higher"),
                "negative log-likelihood": f"{fmean(found['nll']):.3f}",
                "calibration error, %": f"{100 * fmean(found['ece']):.1f}",
                "members disagree on, %": f"{100 * fmean(one['disagreement'] for one in records):.1f}",
            }


def mean(value: Any) -> float:
    return float(value["mean"] if isinstance(value, dict) else value)


def record(name: str, seed: int, quick: bool) -> dict[str, Any]:
    network, extractor, recipe = RUNS[name]
    settings = ss.Recipe(**{"epochs": 12, "threads": 1, "device": "cpu", **recipe, **({"epochs": 4} if quick else {})})
    data = {"name": "digits"} if quick else {"name": "fashion_mnist", "limit": 5556}
    config = ss.RunConfig(network=network, data=data, extractor=extractor, recipe=settings, seed=seed)
    found: dict[str, Any] = ss.evaluate(ss.run(config, progress=False), "test", ensemble=MEMBERS)["ensemble"]
    return found
