"""Methods compared from Python, as `subnet-search compare` and `sanity` do."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from subnet_search.core.errors import RunError, UserError, shown
from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.passed import read_run
from subnet_search.search.studies.check_grid import check_grid
from subnet_search.search.studies.convergence import too_short
from subnet_search.search.studies.method_grid import Choice, Grid, method_grid, run_grid, sanity_grid, table_rows

APART = 1.1  # the ratio of kept weights at one density from which methods are not compared at equal size


def compare(
    config: RunConfig | Mapping[str, Any] | str | Path,
    extractors: Sequence[str],
    densities: Sequence[float],
    *,
    network: Any = None,
    data: Any = None,
    task: Any = None,
    trained: bool | None = None,
    seeds: int = 3,
    name: str = "compare",
    storage: str | None = None,
    workers: int = 1,
    recipe: Choice = "shared",
    progress: bool | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run every method at every density with every seed, and the dense network, as the trials of one study.

    config      the run that all of them vary: a YAML file, its values, or a configuration
    extractors  names of methods, or `package.module:Class`
    densities   fractions of the weights (or of what the configuration's target counts) that are kept
    network, data, task
                in place of those of the configuration: names, or objects as for `run_study`, which need one worker
    trained     whether the weights of the network are trained, as for `extract`
    seeds       runs of each method and density, with the configuration's seed and those after it
    name        of the study; called again, it runs only what is new, and what has failed
    storage     an Optuna storage URL; default: sqlite:///runs/studies.db
    workers     processes on this machine
    recipe      what the configuration's recipe leaves open: "shared" by all methods, or each method's "published" settings
    progress    show progress on standard error: True or False; default: in a terminal or a notebook

    Returns `rows`, one for each method and density with mean, lowest, highest and standard deviation of each measure;
    `cells`, one for each run; `recipe`; `too_short`, a line that names the rows that have not converged (None: all have,
    see convergence.py); and `unequal`, a line for methods that keep different numbers of weights at one density, or prune
    different units. Raises UserError for a method that cannot be compared or cannot run on this network, RunError when every
    run failed, and Interrupted when `should_stop` returns true.
    """
    if any(isinstance(one, str) or not isinstance(one, Sequence) or not one for one in (extractors, densities)):
        raise UserError(f"give lists of methods and densities, got {shown(extractors)} and {shown(densities)}")
    if others := [one for one in extractors if not isinstance(one, str)]:
        raise UserError(
            f"give methods by name, got {shown(others[0])}: hyperparameters are set in the configuration's extractor"
        )
    if recipe not in get_args(Choice):
        raise UserError(
            f"recipe is 'shared' or 'published', got {shown(recipe)}: epochs and lr are in the configuration's recipe"
        )
    read, passed = read_run(config, network, data, task, trained)
    grid = method_grid(name, read, extractors, densities, seeds, recipe, passed)
    check_grid(grid, workers)
    return comparison_record(grid, run_grid(grid, storage or grid.spec.storage, workers, should_stop, progress))


def sanity(
    config: RunConfig | Mapping[str, Any] | str | Path,
    *,
    network: Any = None,
    data: Any = None,
    task: Any = None,
    trained: bool | None = None,
    seeds: int = 3,
    name: str = "sanity",
    storage: str | None = None,
    workers: int = 1,
    progress: bool | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Test whether it matters which weights a method keeps that prunes before training, as `subnet-search sanity` does.

    The sanity checks of Frankle et al. 2021 (arXiv:2009.08576): the rows are the method (original), its mask shuffled within
    each layer (shuffled), its mask with new initial weights (redrawn), the weights with the lowest scores (inverted, if the
    method supports it), a random mask, and the dense network.

    The arguments, the result and the errors are those of `compare`.
    """
    read, passed = read_run(config, network, data, task, trained)
    grid = sanity_grid(name, read, seeds, passed)
    check_grid(grid, workers)
    return comparison_record(grid, run_grid(grid, storage or grid.spec.storage, workers, should_stop, progress))


def comparison_record(grid: Grid, cells: list[dict[str, Any]]) -> dict[str, Any]:
    """A comparison as plain values. Raises RunError when no run of it is complete."""
    if not any(cell["state"] == "COMPLETE" for cell in cells):
        raise RunError(f"all {len(cells)} runs failed, the first because: {cells[0]['reason']}")
    rows = table_rows(cells)
    short = too_short(rows, grid.spec.run.recipe.epochs, grid.spec.task_metrics.leading)
    return {
        "name": grid.spec.name,
        "recipe": grid.recipe_record(),
        "rows": rows,
        "cells": cells,
        "too_short": short,
        "unequal": unequal(rows, grid.units, advise=not grid.spec.run.target),
    }


def unequal(rows: Sequence[Mapping[str, Any]], units: Mapping[str, str], advise: bool) -> str | None:
    """One line for methods that prune different units, or whose kept weights differ by more than a tenth at one density.

    rows: those of `table_rows`. units: what each method prunes. advise: name the key that makes
    them equal. None: the methods are alike.
    """
    at: dict[float, dict[str, float]] = {}
    for row in rows:
        if row["method"] in units and row["achieved_density"]:
            at.setdefault(row["density"], {})[row["method"]] = row["achieved_density"]["mean"]
    apart = {density: kept for density, kept in at.items() if max(kept.values()) > APART * min(kept.values())}
    if not apart:
        by = ", ".join(f"{method} {unit}" for method, unit in units.items())
        return f"methods prune different units: {by}" if len(set(units.values())) > 1 else None
    listed = "; ".join(
        f"at {density:g}, {', '.join(f'{method} {share:.3g} (by {units[method]})' for method, share in kept.items())}"
        for density, kept in apart.items()
    )
    advice = f"; to compare at equal numbers of parameters, set target={{parameters: {min(apart):g}}}"
    return f"one density keeps different fractions of the weights: {listed}{advice * advise}"
