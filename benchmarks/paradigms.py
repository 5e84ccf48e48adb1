"""The orders that papers establish, on Fashion-MNIST: one network, one recipe, one budget of steps, three seeds.

`configs/compare_fashion_mnist.yaml`, every method at its default hyperparameters; `random, uniform` has the same density
in every layer, `random` is static ERK, `magnitude, at the start` prunes the initial weights. Probes and lottery rounds
are paid for from the same steps; `lottery, four times the steps` has the budget of the papers, where each of its four
trainings is as long as the others' one. Test accuracy, mean (lowest to highest). The second table says which of the
published orders appear, by the difference of means; `apart` when the worst seed of the one is above the best seed of
the other.

How these settings came about: the network and the rate were chosen after others had been tried, where not every order
appeared, all at 2 % kept. With max-pooling in place of strides, rate 0.05 and one seed: after 3 epochs GraNet 83.4 and
static ERK 83.8; after 6, GraNet 85.3 and static ERK 85.6, while RigL was above both times (86.7; 87.8), and GMP, which
begins dense, died (10.0). With strides and batch norm, rate 0.1, 8 epochs and two seeds: RigL 85.7 (87.3 and 84.1) and
static ERK 86.5; GraNet 90.0. Between the first and the later of these, `every` of RigL and GraNet went from 0.01 to 0.02
of the run, as `set` and `mest` had it, since grown weights had too few steps to live. So an order that appears below holds
for this setting, and is no test that was fixed in advance.
"""

import itertools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timing import spread

from subnet_search import RunConfig
from subnet_search.extraction.config_file import read_config
from subnet_search.search.studies.method_grid import DENSE, GridRow, make_grid, recipe_changes, run_grid, table_rows

CONFIG = Path(__file__).parents[1] / "configs" / "compare_fashion_mnist.yaml"
METHODS: Mapping[str, Mapping[str, Any]] = {
    "random, uniform": {"name": "random", "allocation": "uniform"},
    "magnitude, at the start": {"name": "magnitude", "start": 0},
    **{name: {"name": name} for name in ("random", "snip", "grasp", "synflow", "magnitude", "lottery")},
    "lottery, four times the steps": {"name": "lottery"},
    **{name: {"name": name} for name in ("gmp", "set", "rigl", "granet")},
}
DENSITIES = (0.05, 0.02)
ORDERS = [
    ("granet", "random", DENSITIES, "Liu et al. 2021, arXiv:2106.10404"),
    ("rigl", "random", DENSITIES, "Evci et al. 2020, arXiv:1911.11134"),
    ("synflow", "random, uniform", (0.02,), "Tanaka et al. 2020, arXiv:2006.05467"),
    ("lottery", "magnitude, at the start", DENSITIES, "Frankle & Carbin 2019, arXiv:1803.03635"),
    ("lottery", "snip", DENSITIES, "Frankle et al. 2021, arXiv:2009.08576"),
    ("lottery, four times the steps", "snip", DENSITIES, "Frankle et al. 2021, arXiv:2009.08576"),
]


def main(quick: bool = False) -> list[dict[str, object]]:
    overrides = ["recipe.epochs=1", "data=digits"] if quick else []
    config = read_config(RunConfig, CONFIG, [*overrides, "recipe.threads=1", "recipe.device=cpu"])
    given, densities = config.given(), DENSITIES[:1] if quick else DENSITIES
    longer = {"lottery, four times the steps": {"recipe.epochs": 4 * config.recipe.epochs}}
    wanted = [
        GridRow(
            label,
            density,
            {"extractor": {**spec, "density": density}, **recipe_changes(spec["name"], given), **longer.get(label, {})},
        )
        for label, spec in METHODS.items()
        for density in densities
    ]
    dense = GridRow(DENSE.method, DENSE.density, {**DENSE.changes, **recipe_changes("random", given)})
    with tempfile.TemporaryDirectory() as folder:
        grid = make_grid("paradigms", config, [*wanted, dense], seeds=1 if quick else 3)
        rows = table_rows(run_grid(grid, f"sqlite:///{folder}/studies.db", workers=2))
    found = {(row["method"], row["density"]): row for row in rows}
    claims = ((better, worse, d, source) for better, worse, at, source in ORDERS for d in at if d in densities)
    return [*map(line, rows), *itertools.starmap(lambda *claim: order(found, *claim), claims)]


def line(row: Mapping[str, Any]) -> dict[str, object]:
    test = row["test_accuracy"]
    return {
        "method": row["method"],
        "density": row["density"],
        "test accuracy, %": spread(100 * test["mean"], [100 * test["low"], 100 * test["high"]], "higher"),
        "validation, %": f"{100 * row['val_accuracy']['mean']:.2f}",
        "passes forward + backward": f"{row['forward']['mean']:.0f} + {row['backward']['mean']:.0f}",
        "seconds": f"{row['seconds']['mean']:.0f}",
    }


def order(found: Mapping[Any, Any], better: str, worse: str, density: float, source: str) -> dict[str, object]:
    above, below = (found[name, density]["test_accuracy"] for name in (better, worse))
    gain = above["mean"] - below["mean"]
    apart = ", apart" if above["low"] > below["high"] else ""
    return {
        "published order": f"{better} above {worse}",
        "density": density,
        "difference, points": f"{100 * gain:+.2f}",
        "appears": f"yes{apart}" if gain > 0 else "no",
        "source": source,
    }
