"""Compare methods over densities and seeds, with the same network, data, recipe and number of steps.

A comparison is a study whose trials are the cells of a grid. A cell is identified by its complete configuration, so a
finished cell is never run again, and a grid can be extended by methods, densities and seeds; each call retries failed
cells. Tables show the lowest and highest value: the standard deviation of three values is too uncertain (95 % interval:
0.5 to 6 times the estimate). Rows hold both.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from subnet_search.core.errors import UserError, shown
from subnet_search.core.task_metrics import TaskMetrics, leading_in
from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.config_file import check, with_values
from subnet_search.extraction.passed import NOTHING, Passed, config_like
from subnet_search.extraction.session import check_fractions
from subnet_search.extractors import get_extractor
from subnet_search.extractors.base import only_begins, trains_weights
from subnet_search.search.engine.scheduler import configuration_key
from subnet_search.search.spec.search_space import own_rates
from subnet_search.search.spec.study_spec import Comparison, spec_of
from subnet_search.search.storage.connect import database_of
from subnet_search.search.storage.locks import exclusive
from subnet_search.search.storage.records import WITHDRAWN, TrialRecord
from subnet_search.search.storage.trust import imports_of
from subnet_search.search.storage.write import replace_params
from subnet_search.search.studies.convergence import cell_of, converged
from subnet_search.search.studies.launcher import prepare_study, run_study
from subnet_search.training import Recipe

Choice = Literal["shared", "published"]
"""Recipe of a comparison: one for all methods that train weights, or each method's published settings."""

# Defaults for all methods that train weights. Most of them were published on CIFAR-10 with this learning rate, momentum and
# weight decay; the cosine schedule replaces their different milestones, because it fits any number of epochs.
SHARED = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "cosine"}
# Recipe keys for training weights.
WEIGHTS = (
    "optimizer",
    "lr",
    "momentum",
    "nesterov",
    "weight_decay",
    "schedule",
    "milestones",
    "gamma",
    "label_smoothing",
    "augment",
)
RATES = ("lr", "weight_decay")  # these are for masks in a configuration whose method trains no weights
MEASURES = ("achieved_density", "steps", "forward", "backward", "seconds")  # and the leading metric of the task


@dataclass(frozen=True)
class GridRow:
    """A row of the comparison: a method (or a control's name) at a density, and the keys of the run that it changes."""

    method: str
    density: float
    changes: Mapping[str, Any]


def dense_row(changes: Mapping[str, Any]) -> GridRow:
    """The dense network, of which every unit is kept, with further changes."""
    whole = {"extractor": {"name": "random", "density": 1.0}, "unit": "weight", "round_to": None, "target": None}
    return GridRow("dense", 1.0, {**whole, **changes})


DENSE = dense_row({})


@dataclass(frozen=True)
class Cell:
    """A row with a seed: one run. Configurations with equal keys differ at most in device and threads."""

    row: GridRow
    seed: int
    key: str

    @property
    def attribute(self) -> dict[str, Any]:
        """As stored in the trial."""
        values = {**self.row.changes, "seed": self.seed}
        return {"method": self.row.method, "density": self.row.density, "seed": self.seed, "values": values}


@dataclass(frozen=True)
class Grid:
    """All cells of a comparison, ordered by seed, so that a stopped comparison still covers all rows."""

    spec: Comparison
    cells: tuple[Cell, ...]
    choice: Choice = "shared"
    recipe: Recipe | None = None
    """The recipe of all methods that train weights; None if it is not the same for all."""
    masks_alone: tuple[str, ...] = ()
    """The methods that train no weights."""
    units: Mapping[str, str] = field(default_factory=dict)
    """The unit that each method prunes, except the dense network."""

    def recipe_record(self) -> dict[str, Any]:
        """The recipe for `--json`; `settings` is null if the methods that train weights have different recipes."""
        keys = (*WEIGHTS, "batch_size")
        settings = self.recipe and self.recipe.model_dump(mode="json", include=set(keys))
        return {"choice": self.choice, "settings": settings, "masks_alone": list(self.masks_alone), "text": self.recipe_text()}

    def recipe_text(self) -> str:
        """The recipe in one line, for the table."""
        differ = "so differences between rows include the recipe"
        if self.choice == "published":
            text = f"each method's published settings for keys that the configuration does not set, {differ}"
        elif self.recipe is None:
            text = f"not the same for all rows, {differ}"
        else:
            text = f"shared by all methods that train weights: {self.recipe.summary()}"
        if self.masks_alone:
            text += f"; only masks are trained, with published lr and weight_decay: {', '.join(self.masks_alone)}"
        return f"recipe: {text}"


def method_grid(
    name: str,
    config: RunConfig,
    methods: Sequence[str],
    densities: Sequence[float],
    seeds: int,
    recipe: Choice = "shared",
    passed: Passed = NOTHING,
) -> Grid:
    """A grid of methods at densities, and the dense network. passed: the network and data that were passed as objects.

    The configuration's own method has the hyperparameters set there, the others their defaults. Epochs and batch size are
    the same for all; `recipe_changes` sets the rest of the recipe. A density is a fraction of units, or of what the
    configuration's target counts. Raises UserError for a method without a density, and for a density above 1.
    """
    check_fractions(densities)
    given = config.given()
    own = given.get("extractor", {"name": config.extractor.name})
    rows = []
    for method in dict.fromkeys(methods):
        if not get_extractor(method).has_density():
            raise UserError(f"{method} has no density, so it cannot be compared at {densities[0]:g}: remove it")
        spec, changes = own if own["name"] == method else {"name": method}, recipe_changes(method, given, recipe)
        for density in dict.fromkeys(densities):
            target = {"target": dict.fromkeys(config.target, density)} if config.target else {}
            rows.append(GridRow(method, density, {"extractor": {**spec, "density": density}, **target, **changes}))
    rows.append(dense_row(recipe_changes("random", given, recipe)))
    budget = {"recipe.epochs": config.recipe.epochs, "recipe.batch_size": config.recipe.batch_size}
    return make_grid(name, config_like(config, with_values(given, budget)), rows, seeds, recipe, passed)


def recipe_changes(method: str, given: Mapping[str, Any], choice: Choice = "shared") -> dict[str, Any]:
    """Changes to the recipe for a method; `given` holds the keys that the configuration sets.

    Keys that the configuration sets apply to all methods, except that lr and weight_decay are for weights: a method that
    trains no weights has its published ones, and the others ignore those of a configuration written for such a method.
    For methods that train weights, the other keys have the values in SHARED, or with `published` those of the method's
    paper. Epochs and batch size are never changed.
    """
    if not trains_weights(get_extractor(method)):
        return own_rates(method, given)
    written_for = given.get("extractor", {}).get("name")
    of_masks = written_for is not None and not trains_weights(get_extractor(written_for))
    set_ = [key for key in given.get("recipe", {}) if not (of_masks and key in RATES)]
    published = get_extractor(method).published.recipe
    if choice == "published":
        return _pinned({}, published, RATES if of_masks else ())
    return _pinned(set_, SHARED, [*SHARED, *(key for key in published if key in WEIGHTS)])


def _pinned(given: Iterable[str], wanted: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Changes that set recipe keys to the wanted or default value, except keys that are given."""
    taken = set(given)
    default = Recipe.model_fields
    return {f"recipe.{key}": wanted.get(key, default[key].default) for key in dict.fromkeys(keys) if key not in taken}


def sanity_grid(name: str, config: RunConfig, seeds: int, passed: Passed = NOTHING) -> Grid:
    """The sanity checks of Frankle et al. 2021 (arXiv:2009.08576) for a method that prunes before training.

    All rows have the method's density and recipe: the configuration's keys, then the method's published settings.
    Raises UserError for other methods.
    """
    method, given = config.extractor, config.given()
    density = method.target_density
    if not only_begins(type(method)):
        raise UserError(f"the sanity checks are for methods that prune before training, which {method.name} does not")
    if density is None:
        raise UserError(f"the sanity checks need a density: set extractor.density of {method.name}")
    own = {**given.get("extractor", {"name": method.name}), "density": density}
    shuffled = {"name": "shuffled", "source": own, "density": density}
    extractors = {
        "original": own,
        "shuffled": shuffled,
        "redrawn": {**shuffled, "permute": False, "redraw": True},
        "inverted": {**own, "invert": True},
        "random": {"name": "random", "density": density, "allocation": "erk"},
    }
    if "invert" not in type(method).model_fields:
        del extractors["inverted"]
    published = method.published.recipe
    keys = [*published, *(key for spec in extractors.values() for key in get_extractor(spec["name"]).published.recipe)]
    recipe = _pinned(given.get("recipe", {}), published, keys)
    rows = [GridRow(name, density, {"extractor": spec, **recipe}) for name, spec in extractors.items()]
    return make_grid(name, config, [*rows, dense_row(recipe)], seeds, passed=passed)


def prepare_grid(grid: Grid, url: str) -> optuna.Study:
    """Create the comparison's study or check that it has the same run, and queue the cells that have not been run.

    Queued cells of other grids are withdrawn, unless trials of the study are running.
    """
    study = prepare_study(grid.spec, url)
    wanted = {cell.key: cell for cell in grid.cells}
    with exclusive(study._storage, study.study_name):  # two calls at once must not both queue a cell
        trials, found = study.get_trials(deepcopy=False), _trials_by_key(study, grid.spec)
        if not any(trial.state == TrialState.RUNNING for trial in trials):
            asked = {trial.number for key in wanted for trial in found.get(key, [])}
            for trial in trials:
                if trial.state == TrialState.WAITING and (trial.number in asked) == TrialRecord(trial).withdrawn:
                    study._storage.set_trial_user_attr(trial._trial_id, WITHDRAWN, trial.number not in asked)
        for key, cell in wanted.items():
            if all(trial.state == TrialState.FAIL for trial in found.get(key, [])):
                study.enqueue_trial({}, user_attrs={"cell": cell.attribute})
        _write_params(study)
        alive = [trial for trial in study.get_trials(deepcopy=False) if TrialRecord(trial).counts]
        study.set_user_attr("spec", grid.spec.model_copy(update={"trials": max(1, len(alive))}).to_json())
    return study


def run_grid(
    grid: Grid,
    url: str,
    workers: int = 1,
    should_stop: Callable[[], bool] = lambda: False,
    progress: bool | None = None,
) -> list[dict[str, Any]]:
    """Run the cells that have not been run, and return the records of all. Raises as `run_study` does."""
    study = prepare_grid(grid, url)
    budget = spec_of(study, grid.spec).trials  # all cells of the study, including earlier grids
    imports = sorted(imports_of(grid.spec.run.given(), *(cell.row.changes for cell in grid.cells)))
    study = run_study(
        grid.spec,
        storage=url,
        workers=workers,
        trials=budget,
        allow_imports=imports,
        progress=progress,
        should_stop=should_stop,
    )
    return cell_records(study, grid)


def cell_records(study: optuna.Study, grid: Grid) -> list[dict[str, Any]]:
    """One record per cell; `state` is None if it was never queued."""
    found = _trials_by_key(study, grid.spec)
    epochs = grid.spec.run.recipe.epochs
    return [_cell_record(cell, found.get(cell.key, []), grid.spec.task_metrics, epochs) for cell in grid.cells]


def table_rows(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each method and density, with mean, lowest, highest and sample standard deviation of each measure."""
    records = list(records)
    leading = leading_in(records[0]) if records else ""
    measures = (f"val_{leading}", f"test_{leading}", *MEASURES)
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["method"], record["density"]), []).append(record)
    return [
        {
            "method": method,
            "density": density,
            "cells": len(group),
            "complete": sum(record["state"] == "COMPLETE" for record in group),
            **{measure: _spread([record[measure] for record in group]) for measure in measures},
            "converged": converged(group, leading),
        }
        for (method, density), group in groups.items()
    ]


def make_grid(
    name: str, run: RunConfig, rows: list[GridRow], seeds: int, choice: Choice = "shared", passed: Passed = NOTHING
) -> Grid:
    """Make a grid and check all its configurations. Raises UserError for an invalid one, and for less than one seed."""
    if type(seeds) is not int or seeds < 1:
        raise UserError(f"seeds is the number of runs of each method, 1 or more: got {shown(seeds)}")
    spec = check(Comparison, {"name": name, "run": run}).with_passed(passed)
    cells: list[Cell] = []
    recipes: dict[str, Recipe] = {}
    masks_alone: dict[str, None] = {}
    units: dict[str, str] = {}
    for seed in range(run.seed, run.seed + seeds):
        for row in rows:
            try:
                config = spec.config({**row.changes, "seed": seed}).resolve()
            except UserError as error:
                raise UserError(f"{row.method} at density {row.density:g}: {error}") from error
            cells.append(Cell(row, seed, configuration_key(config, with_seed=True)))
            units[row.method] = config.unit
            if trains_weights(type(config.extractor)):
                recipes[config.recipe.model_dump_json(include={*WEIGHTS, "batch_size"})] = config.recipe
            else:
                masks_alone[row.method] = None
    recipe = next(iter(recipes.values())) if len(recipes) == 1 else None
    units.pop("dense", None)
    return Grid(spec, tuple(cells), choice, recipe, tuple(masks_alone), units)


def _write_params(study: optuna.Study) -> None:
    """Write each trial's method, density and seed as Optuna parameters, which the dashboard and Optuna's plots show.

    Optuna requires the same choices in all trials, so if the grid has grown, finished trials are written again. Trials of
    earlier versions have no parameters.
    """
    trials = [(trial, cell) for trial in study.get_trials(deepcopy=False) if (cell := TrialRecord(trial).cell)]
    wanted = {trial._trial_id: {"method": cell.method, "density": cell.density, "seed": cell.seed} for trial, cell in trials}
    methods, densities, seeds = (list(dict.fromkeys(column)) for column in zip(*map(dict.values, wanted.values()), strict=True))
    distributions: dict[str, BaseDistribution] = {
        "method": CategoricalDistribution(methods),
        "density": FloatDistribution(min(densities), max(densities), log=min(densities) > 0),
        "seed": IntDistribution(min(seeds), max(seeds)),
    }
    if any(trial.distributions != distributions for trial, _ in trials):
        replace_params(database_of(study), wanted, distributions)


def _key_of(trial: FrozenTrial, spec: Comparison) -> str:
    """The key of a trial's configuration; empty if this version cannot read it."""
    record = TrialRecord(trial)
    try:
        if record.config:  # complete, so that a changed default makes another key
            return configuration_key(config_like(spec.run, record.config), with_seed=True)
        return configuration_key(spec.config(record.cell.values).resolve(), with_seed=True) if record.cell else ""
    except UserError:
        return ""


def _trials_by_key(study: optuna.Study, spec: Comparison) -> dict[str, list[FrozenTrial]]:
    found: dict[str, list[FrozenTrial]] = {}
    for trial in study.get_trials(deepcopy=False):
        if key := _key_of(trial, spec):
            found.setdefault(key, []).append(trial)
    return found


def _cell_record(cell: Cell, trials: list[FrozenTrial], metrics: TaskMetrics, epochs: int) -> dict[str, Any]:
    """The record of a cell: from its complete, running or queued trial, or else from the last failed one."""
    trial = next((t for t in trials if t.state != TrialState.FAIL), trials[-1] if trials else None)
    attrs = trial.user_attrs if trial else {}
    passes = attrs.get("passes", {})
    complete = trial is not None and trial.state == TrialState.COMPLETE
    stored = cell_of(trial, metrics, epochs) if trial else {"state": None, "trained": False, "late_gain": None}
    return {
        "method": cell.row.method,
        "density": cell.row.density,
        "seed": cell.seed,
        "state": stored["state"],
        "trial": trial.number if trial else None,
        **{key: attrs.get(key) for key in (metrics.val, metrics.test, "steps", "seconds", "sha256")},
        "achieved_density": attrs.get("density"),
        "forward": passes.get("forward"),
        "backward": passes.get("backward"),
        "trained": stored["trained"],
        "late_gain": stored["late_gain"],
        "reason": None if complete else attrs.get("reason"),
    }


def _spread(values: Iterable[float | None]) -> dict[str, float | None] | None:
    present = [value for value in values if value is not None]
    if not present:
        return None
    deviation = stdev(present) if len(present) > 1 else None
    return {"mean": fmean(present), "low": min(present), "high": max(present), "deviation": deviation}
