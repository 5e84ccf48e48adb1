"""Rank the trials of a study that satisfy its constraints, by the mean over their seeds."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from subnet_search.core.errors import UserError, unknown
from subnet_search.search.storage.read import Snapshot
from subnet_search.search.storage.records import REPEATS, RETRIES, TrialRecord, task_metrics


@dataclass(frozen=True)
class Ranked:
    """A complete trial with the results of its repeats."""

    trial: FrozenTrial
    values: tuple[tuple[float, ...], ...]  # objective values per seed: of the trial, then of its repeats
    trials: tuple[FrozenTrial, ...] = ()  # the trial and its repeats, or the runs of a row of a comparison

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each objective over the seeds."""
        return tuple(fmean(column) for column in zip(*self.values, strict=True))

    @property
    def spread(self) -> list[tuple[float, float]]:
        """Lowest and highest of each objective."""
        return [(min(column), max(column)) for column in zip(*self.values, strict=True)]

    def costs(self, directions: Sequence[StudyDirection]) -> tuple[float, ...]:
        """The means with signs, so that lower is better."""
        return tuple(sign(direction) * value for direction, value in zip(directions, self.mean, strict=True))


def sign(direction: StudyDirection) -> int:
    """The factor of an objective after which lower is better."""
    return -1 if direction == StudyDirection.MAXIMIZE else 1


def rank(study: optuna.Study) -> list[Ranked]:
    """Complete trials, best first; with several objectives, only the Pareto front.

    Only trials that satisfy all constraints and have the largest number of seeds, since a single seed can be lucky.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    found = [ranked for ranked in _with_repeats((trial, trial.values) for trial in complete) if is_feasible(ranked.trial)]
    seeds = max((len(ranked.values) for ranked in found), default=0)
    return order([ranked for ranked in found if len(ranked.values) == seeds], study.directions)


def promising(trials: Iterable[FrozenTrial], directions: Sequence[StudyDirection], count: int) -> list[FrozenTrial]:
    """The best `count` trials by their first seed, to be repeated."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE and is_feasible(trial)]
    alone = [Ranked(trial, (tuple(trial.values),)) for trial in complete if TrialRecord(trial).is_drawn]
    return [ranked.trial for ranked in order(alone, directions)[:count]]


def order(found: Sequence[Ranked], directions: Sequence[StudyDirection]) -> list[Ranked]:
    """Trials sorted by the objective, or the Pareto front sorted by the first one; those with a NaN value are left out."""
    rated = [(ranked.costs(directions), ranked) for ranked in found]
    rated = [(costs, ranked) for costs, ranked in rated if not any(map(math.isnan, costs))]
    rated.sort(key=lambda pair: (pair[0], pair[1].trial.number))
    front: list[tuple[tuple[float, ...], Ranked]] = []
    for costs, ranked in rated:  # a dominated trial comes after a trial of the front that dominates it
        if len(directions) == 1 or not any(dominates(better, costs) for better, _ in front):
            front.append((costs, ranked))
    return [ranked for _, ranked in front]


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether costs `a` are nowhere above `b`, and below it somewhere."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether a trial satisfies its study's constraints."""
    return all(violation <= 0 for violation in trial.constraints.values())


def _with_repeats(found: Iterable[tuple[FrozenTrial, Sequence[float]]]) -> list[Ranked]:
    """Complete trials with their values, and those of their repeats."""
    repeated = [(TrialRecord(trial).repeats, trial, values) for trial, values in found]
    groups = _grouped((trial.number if first is None else first, trial, values) for first, trial, values in repeated)
    return [ranked for number, ranked in groups.items() if ranked.trial.number == number]  # the trial itself is complete


def _grouped(found: Iterable[tuple[Any, FrozenTrial, Sequence[float]]]) -> dict[Any, Ranked]:
    """By key: the first trial with the values of all trials that have the same key."""
    groups: dict[Any, list[tuple[FrozenTrial, tuple[float, ...]]]] = {}
    for key, trial, values in found:
        groups.setdefault(key, []).append((trial, tuple(values)))
    return {
        key: Ranked(group[0][0], tuple(values for _, values in group), tuple(trial for trial, _ in group))
        for key, group in groups.items()
    }


def front(study: Snapshot, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """One row for each complete trial with all the metrics: their means over its seeds, and whether it is Pareto-optimal.

    names   two or more metrics; default: the study's objectives, or its objective and density

    The front comes first, sorted by the first metric. Trials that violate a constraint are included (`feasible` is False).
    Raises UserError for an unknown metric, or if no trial recorded all of them.
    """
    names = list(names) or default_names(study)
    if len(set(names)) < max(2, len(names)):
        raise UserError(f"a Pareto front needs two or more different metrics; recorded: {', '.join(measures(study))}")
    directions = [direction(study, name) for name in names]
    own, complete = objectives(study), study.get_trials(states=(TrialState.COMPLETE,))
    recorded = [(trial, [v for name in names if (v := measured(trial, own, name)) is not None]) for trial in complete]
    found = _with_repeats((trial, values) for trial, values in recorded if len(values) == len(names))
    if not found:
        raise UserError(f"no complete trial of {study.study_name!r} has recorded {' and '.join(names)}")
    best = order(found, directions)
    ahead = {ranked.trial.number for ranked in best}
    behind = [ranked for ranked in found if ranked.trial.number not in ahead]
    return [
        {
            "number": ranked.trial.number,
            **dict(zip(names, ranked.mean, strict=True)),
            "seeds": len(ranked.values),
            "front": ranked.trial.number in ahead,
            "feasible": is_feasible(ranked.trial),
            "params": parameters(ranked.trial),
        }
        for ranked in (*best, *behind)
    ]


def default_names(study: Snapshot) -> list[str]:
    """The objectives of a study, or its single objective and density, where trials recorded that."""
    names = objectives(study)
    return names if len(names) > 1 else [name for name in measures(study) if name in (names[0], "density")]


HIGHER_IS_BETTER = (
    "robustness",
    "isometry",
    "ensemble_accuracy",
)  # of the metrics that any task can have; a test compares with spec/metrics.py
NO_MEASURES = ("seed", "beat", REPEATS, RETRIES, "reuses")  # numeric attributes that are not metrics


def objectives(study: optuna.Study) -> list[str]:
    """The names of a study's values."""
    count = len(study.directions)
    return study.metric_names or (["value"] if count == 1 else [f"value_{index}" for index in range(count)])


def parameters(trial: FrozenTrial) -> dict[str, Any]:
    """The parameters that Optuna sampled, or the cell of a comparison."""
    cell = TrialRecord(trial).cell
    return trial.params if cell is None else {"method": cell.method, "density": cell.density, "seed": cell.seed}


def best_ranked(study: optuna.Study) -> list[Ranked]:
    """The best trial by the mean over its seeds, or the Pareto front; empty if no trial is complete.

    For a comparison, the first trial of the best row with the values of all its seeds; the dense network is left out.
    """
    rows = compared(study)
    rows = [row for row in rows if (cell := TrialRecord(row.trial).cell) and cell.density < 1] or rows
    seeds = max((len(row.values) for row in rows), default=0)
    found = [row for row in rows if len(row.values) == seeds] or rank(study)
    return found if len(study.directions) > 1 else found[:1]


def compared(study: optuna.Study) -> list[Ranked]:
    """The rows of a comparison, best mean first, as their first trial with the values of all seeds; empty for other studies."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    cells = [(cell, trial) for trial in complete if (cell := TrialRecord(trial).cell)]
    rows = _grouped(((cell.method, cell.density), trial, trial.values) for cell, trial in cells)
    return order(list(rows.values()), study.directions)


def measured(trial: FrozenTrial, names: Sequence[str], name: str) -> float | None:
    """A metric of a complete trial: one of the study's objectives `names`, or any recorded by its run; None if missing."""
    return number(trial.values[names.index(name)] if name in names else trial.user_attrs.get(name))


def number(value: Any) -> float | None:
    """A stored value if it is a number, else None."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def measures(study: optuna.Study) -> list[str]:
    """Names of the metrics that complete trials recorded, objectives first."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    recorded = (key for trial in complete for key, value in trial.user_attrs.items() if number(value) is not None)
    return [name for name in dict.fromkeys([*objectives(study), *recorded]) if name not in NO_MEASURES]


def direction(study: optuna.Study, name: str) -> StudyDirection:
    """Direction of a metric. Raises UserError with similar names if no complete trial recorded it."""
    names = objectives(study)
    if name in names:
        return study.directions[names.index(name)]
    if name not in (valid := measures(study)):
        raise unknown("measure", name, valid, where=f"of the study {study.study_name!r}")
    higher = {*HIGHER_IS_BETTER, *task_metrics(study).maximized}
    return StudyDirection.MAXIMIZE if name in higher else StudyDirection.MINIMIZE
