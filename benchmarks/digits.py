"""`gumbel` on the digits with LeNet-5, and the baselines with as many epochs, over seeds.

`random` is a random topology of the same untrained weights (no epochs), or trained in it; the others learn which
weights of the untrained network to keep. All have their published settings but for the batch, which is the same for
all. Medians, lowest and highest in brackets. Seconds are a whole run: data, training, a validation an epoch, the test
once.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from timing import THREADS, Measured, spread, verdict

import subnet_search as ss
from subnet_search.extraction.config_file import read_config

CONFIG = Path(__file__).parents[1] / "configs" / "gumbel_digits.yaml"


def main(quick: bool = False) -> list[dict[str, object]]:
    gumbel = read_config(ss.RunConfig, CONFIG)
    epochs = 2 if quick else gumbel.recipe.epochs
    same = {"data": gumbel.data, "recipe": {"epochs": epochs, "batch_size": gumbel.recipe.batch_size}}
    untrained = {**same, "network": gumbel.network}
    contenders: dict[str, Mapping[str, Any]] = {
        "gumbel": {**gumbel.given(), "recipe": {**gumbel.given()["recipe"], "epochs": epochs}},
        "random, untrained": {**untrained, "extractor": "random", "recipe": {"epochs": 0}},
        "random, trained": {**same, "network": gumbel.network.name, "extractor": "random"},
        "edge_popup": {**untrained, "extractor": "edge_popup"},
        "supermask": {**untrained, "network": {"name": "lenet5", "init": "glorot_constant"}, "extractor": "supermask"},
    }
    return [row(name, settings, range(1 if quick else 5)) for name, settings in contenders.items()]


def row(name: str, settings: Mapping[str, Any], seeds: range) -> dict[str, object]:
    recipe = {**settings["recipe"], "device": "cpu", "threads": THREADS}
    found, took = [], []
    for seed in seeds:
        config = ss.RunConfig.model_validate({**settings, "recipe": recipe, "seed": seed})
        started = time.perf_counter()
        found.append(ss.run(config).summary())
        took.append(time.perf_counter() - started)
    val = median(record["val_accuracy"] for record in found)
    return {
        "method": name,
        "epochs": recipe["epochs"],
        "density": f"{median(record['density'] for record in found):.3f}",
        "validation": accuracy([record["val_accuracy"] for record in found]),
        "test": accuracy([record["test_accuracy"] for record in found]),
        "seconds": f"{median(took):.1f}",
        "targets": f"{verdict(val, '>=', 0.97)}; {verdict(median(took), '<', 10, ' s')}" if name == "gumbel" else "",
    }


def accuracy(values: list[float]) -> Measured:
    return spread(median(values), values, "higher", digits=3)
