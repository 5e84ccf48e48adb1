"""Methods that change their topology, in runs as short as a first try: 80 and 200 steps on the digits with `small_conv`.

First table: 10 % kept, one recipe for all (SGD, rate 0.03, Nesterov momentum 0.9, cosine), every method at its default
hyperparameters. An interval between changes that is a fraction of the run is at least 10 steps long here; `gmp, every step`
asks for 1 step, which stays as it is. `random` is static ERK, the control that no topology was found for.

Second table: a first comparison as a new user runs it, `subnet-search compare` with five methods at three densities and an
open recipe, so that all share its default. Test accuracy, %, mean (lowest to highest) of three seeds.
"""

import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from timing import Measured, spread

from subnet_search import RunConfig
from subnet_search.extraction.config_file import check
from subnet_search.search.studies.method_grid import Grid, GridRow, make_grid, method_grid, recipe_changes, run_grid, table_rows

EPOCHS = {80: 8, 200: 20}  # of 10 steps each, batch 128
RECIPE = {"batch_size": 128, "lr": 0.03, "nesterov": True, "schedule": "cosine", "weight_decay": 0.0}
METHODS: Mapping[str, Mapping[str, Any]] = {
    **{name: {"name": name} for name in ("random", "set", "mest", "rigl", "cht", "granet", "ac_dc", "gmp")},
    "gmp, every step": {"name": "gmp", "every": 1},
    **{name: {"name": name} for name in ("magnitude", "lottery")},
}
FIRST = ("random", "set", "granet", "gmp", "magnitude")
DENSITIES = (0.2, 0.1, 0.05)


def main(quick: bool = False) -> list[dict[str, object]]:
    seeds = 1 if quick else 3
    rows = []
    for steps, epochs in EPOCHS.items():
        run = config(epochs, RECIPE)
        wanted = [
            GridRow(label, 0.1, {"extractor": {**spec, "density": 0.1}, **recipe_changes(spec["name"], run.given())})
            for label, spec in METHODS.items()
        ]
        rows.append(tested(make_grid(f"short-{steps}", run, wanted, seeds)))
    first = [tested(method_grid(f"first-{n}", config(epochs), FIRST, DENSITIES, seeds)) for n, epochs in EPOCHS.items()]
    return [*table("10 % kept", [label for label, _ in rows[0]], rows), *by_density(first)]


def config(epochs: int, recipe: Mapping[str, Any] | None = None) -> RunConfig:
    same = {"epochs": epochs, "threads": 1, "device": "cpu"}
    return check(RunConfig, {"network": "small_conv", "data": "digits", "recipe": {**(recipe or {}), **same}})


def tested(grid: Grid) -> dict[tuple[str, float], Measured]:
    """Mean, lowest and highest test accuracy in percent, by method and density."""
    with tempfile.TemporaryDirectory() as folder:
        found = table_rows(run_grid(grid, f"sqlite:///{folder}/studies.db", workers=2))
    return {
        (row["method"], row["density"]): spread(100 * test["mean"], [100 * test["low"], 100 * test["high"]], "higher", digits=1)
        for row in found
        for test in [row["test_accuracy"]]
    }


def table(name: str, labels: Sequence[str], found: Sequence[Mapping[tuple[str, float], Measured]]) -> list[dict[str, object]]:
    return [{name: label, **{f"{n} steps": one[label, 0.1] for n, one in zip(EPOCHS, found, strict=True)}} for label in labels]


def by_density(found: Sequence[Mapping[tuple[str, float], Measured]]) -> list[dict[str, object]]:
    """A row for each method, and the dense network's; a column for each density and length."""
    return [
        {"first comparison": label}
        | {
            f"{density:g} kept, {n} steps": one.get((label, density), one.get((label, 1.0), ""))
            for n, one in zip(EPOCHS, found, strict=True)
            for density in DENSITIES
        }
        for label in (*FIRST, "dense")
    ]
