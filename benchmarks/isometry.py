"""Dynamical isometry, after Wang, Qin, Bai & Fu 2021, arXiv:2105.05916: what pruning does to the mean singular value of the
input-output Jacobian, and what a larger fine-tuning rate and orthogonal weights (OrthP) do for the accuracy.

`mlp7, linear` and `mlp7, relu` are the authors' (MingSun-Tse/TPP model/mlp.py): seven linear layers of width 100. They are
trained on MNIST, here for 10 epochs at rate 0.01 on 18,000 images, and pruned by `l1_filters` (uniform). The first table has
the mean singular value of the pruned network before fine-tuning, beside the values in a plotting script of the authors', which
does not say how they trained; their images have 32 x 32 pixels in place of 28 x 28. Second table: 20 % of the neurons kept,
then 9 epochs with the rate divided by 10 after a third and two thirds. `resnet20` has the published weights
(akamaster/pytorch_resnet_cifar10), half of its channels, and 2 epochs on 5,400 images of CIFAR-10. SGD with momentum 0.9,
weight decay 1e-4, one thread. OrthP has the gain 1 for the linear network and 1.414 for the others. Accuracy on the test
images, mean (lowest to highest) of three seeds; one seed for resnet20. Singular values are means over 128 validation images,
in float64.

What of the paper appears: pruning makes the mean singular value small, by factors like the authors'; the larger rate is better
in all three networks; in the linear MLP, OrthP gives the dense network's accuracy at both rates. In the MLP with ReLU, OrthP
helps at the small rate alone. In resnet20 it is worse at both rates, and the cause is not known: no other gain and no longer
run was tried. The authors' later paper (arXiv:2207.12534) says that making weights orthogonal only works for linear MLPs.

SUBNET_SEARCH_MNIST is an npz file in the layout of MedMNIST (default: Fashion-MNIST in place of MNIST). SUBNET_SEARCH_CIFAR10,
such a file, and SUBNET_SEARCH_PRETRAINED, the folder of resnet20-12fca82f.th, are for resnet20, which is left out without them.
Each run is kept in results/isometry.part until all are there, so that a benchmark that was interrupted continues.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from records import circumstances
from timing import spread
from torch import nn

import subnet_search as ss
from subnet_search.artifact.subnetwork import state_in
from subnet_search.data import Data, in_order, load
from subnet_search.evaluation.isometry import INPUTS, mean_singular_value
from subnet_search.extraction.config_file import check
from subnet_search.extraction.extract import run
from subnet_search.nets import build

PART = Path(__file__).with_name("results") / "isometry.part"
PRUNED = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
AUTHORS = {  # mean over their two runs
    "mlp7, linear": (2.4987, 1.7132, 0.5325, 0.1180, 0.0151, 0.0004),
    "mlp7, relu": (1.8276, 1.6666, 1.2592, 0.6276, 0.1340, 0.0056),
}
RATES = (0.001, 0.01)
KEPT = {"mlp7, linear": 0.2, "mlp7, relu": 0.2, "resnet20": 0.5}
GAIN = {"mlp7, linear": 1.0, "mlp7, relu": 2**0.5, "resnet20": 2**0.5}
RECIPE = {"batch_size": 100, "weight_decay": 1e-4, "schedule": "step", "milestones": (1 / 3, 2 / 3)}

Record = dict[str, Any]


def main(quick: bool = False) -> list[dict[str, object]]:
    threads = torch.get_num_threads()
    try:
        found = Kept(quick)
        names = [name for name in KEPT if name != "resnet20" or (pretrained() and not quick)]
        rows = [*by_ratio(found), *(row for name in names for row in fine_tuned(found, name))]
    finally:
        torch.set_num_threads(threads)
    if not quick:
        PART.unlink()
    return rows


def by_ratio(found: "Kept") -> Iterator[dict[str, object]]:
    """The mean singular value after pruning, at the authors' ratios."""
    for name, published in AUTHORS.items():
        for ratio, theirs in zip(PRUNED, published, strict=True):
            values = [found(name, seed, 1 - ratio, "none", 0, 0.01)["after"] for seed in found.seeds(name)]
            yield {"pruned": name, "fraction": ratio, "mean singular value": ranged(values, "{:.4f}"), "authors": theirs}


def fine_tuned(found: "Kept", name: str) -> Iterator[dict[str, object]]:
    density, epochs = KEPT[name], 2 if name == "resnet20" else 9
    arms = [("dense", 1.0, "none", 0, None), ("pruned", density, "none", 0, None), ("OrthP", density, "orthogonal", 0, None)]
    arms += [(("pruned", "OrthP")[how != "none"], density, how, epochs, lr) for lr in RATES for how in ("none", "orthogonal")]
    for label, kept, how, length, lr in arms:
        rows = [found(name, seed, kept, how, length, lr or 0.01) for seed in found.seeds(name)]
        test = [100 * row["test"] for row in rows]
        yield {
            "network": name,
            "weights": label,
            "fine-tuning rate": lr or "none",
            "test accuracy, %": spread(fmean(test), test, "higher"),
            "after one epoch, validation": ranged([100 * row["first"] for row in rows], "{:.2f}") if lr else "",
            "mean singular value": ranged([row["after"] for row in rows], "{:.4g}"),
        }


class Kept:
    """Records of runs; those in the part file are not repeated."""

    def __init__(self, quick: bool) -> None:
        self.quick, self.versions = quick, circumstances()["versions"]
        lines = [json.loads(line) for line in PART.read_text().splitlines()] if PART.exists() and not quick else []
        self.records: dict[str, Record] = {key: record for versions, key, record in lines if versions == self.versions}
        self.dense: dict[tuple[str, int], nn.Module] = {}

    def seeds(self, name: str) -> range:
        return range(1 if self.quick or name == "resnet20" else 3)

    def __call__(self, name: str, seed: int, density: float, how: str, epochs: int, lr: float) -> Record:
        key = f"{name}, seed {seed}, {density:g} kept, {how}, {epochs} epochs at {lr:g}"
        if key not in self.records:
            settings = {"name": "l1_filters", "density": density, "start": 0, "isometry": how, "isometry_gain": GAIN[name]}
            self.records[key] = self.measured(name, seed, settings, epochs and (1 if self.quick else epochs), lr)
            print(key, self.records[key], file=sys.stderr, flush=True)
            if not self.quick:
                with PART.open("a") as file:
                    file.write(json.dumps([self.versions, key, self.records[key]]) + "\n")
        return self.records[key]

    def measured(self, name: str, seed: int, extractor: Record, epochs: int, lr: float) -> Record:
        """Accuracies and the mean singular value of a network after pruning and fine-tuning."""
        if (name, seed) not in self.dense:
            self.dense[name, seed] = resnet20() if name == "resnet20" else self.trained(name, seed)
        data, validated, config = self.data(name), list[float](), settings(extractor, seed, epochs, lr)
        net = self.dense[name, seed]
        subnet = run(config.resolve(), module=net, data=data, on_epoch=lambda epoch: validated.append(epoch.leading))
        inputs = next(in_order(data.val, data.mean, data.std))[0][:INPUTS]
        return {
            "test": subnet.metrics["test_accuracy"],
            "first": validated[0] if validated else subnet.metrics["val_accuracy"],
            "after": mean_singular_value(subnet.network().eval(), [inputs], double=True),
        }

    def trained(self, name: str, seed: int) -> nn.Module:
        """The dense network. It is trained again after an interruption, to the same weights."""
        torch.manual_seed(seed)
        config = settings({"name": "random", "density": 1.0}, seed, 1 if self.quick else 10, 0.01)
        return run(config.resolve(), module=mlp7(name), data=self.data(name)).network()

    def data(self, name: str) -> Data:
        if name == "resnet20":
            own = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
            return load({"name": f"npz:{os.environ['SUBNET_SEARCH_CIFAR10']}", "limit": 200 if self.quick else 6000, **own})
        file = os.environ.get("SUBNET_SEARCH_MNIST")
        return load({"name": f"npz:{file}" if file else "fashion_mnist", "limit": 500 if self.quick else 20_000})


def settings(extractor: Record, seed: int, epochs: int, lr: float) -> ss.RunConfig:
    recipe = {**RECIPE, "epochs": epochs, "lr": lr, "device": "cpu", "threads": 1}
    return check(ss.RunConfig, {"extractor": extractor, "unit": "channel", "round_to": 1, "seed": seed, "recipe": recipe})


def mlp7(name: str) -> nn.Module:
    """Seven linear layers of width 100, with or without ReLU between them (the authors' model/mlp.py)."""
    act: Callable[[], nn.Module] = nn.ReLU if "relu" in name else nn.Identity
    hidden = [layer for size in (784, *[100] * 5) for layer in (nn.Linear(size, 100), act())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(100, 10))


def pretrained() -> Path | None:
    """The file of ResNet-20's weights, if it and CIFAR-10 are there."""
    folder = os.environ.get("SUBNET_SEARCH_PRETRAINED")
    return Path(folder) / "resnet20-12fca82f.th" if folder and os.environ.get("SUBNET_SEARCH_CIFAR10") else None


def resnet20() -> nn.Module:
    path = str(pretrained())
    spec = check(ss.RunConfig, {"network": {"name": "resnet20", "state": path}}).resolve().network
    return build(spec, (3, 32, 32), 10, 0, state_in(path))


def ranged(values: list[float], form: str) -> str:
    mean = form.format(fmean(values))
    return mean if len(values) == 1 else f"{mean} ({form.format(min(values))} to {form.format(max(values))})"
