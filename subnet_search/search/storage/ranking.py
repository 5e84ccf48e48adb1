"""Which trials of a study are best: those that keep its constraints first, by the mean over their seeds."""

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
from subnet_search.search.storage.records import REPEATS, RETRIES, TrialRecord


@dataclass(frozen=True)
class Ranked:
    """A complete trial with what its repeats, if any, came to."""

    trial: FrozenTrial
    values: tuple[tuple[float, ...], ...]  # of every seed: the trial's own, then its repeats'

    @property
    def mean(self) -> tuple[float, ...]:
        """Of each objective, over the seeds."""
        return tuple(fmean(column) for column in zip(*self.values, strict=True))

    @property
    def spread(self) -> list[tuple[float, float]]:
        """Lowest and highest of each objective."""
        return [(min(column), max(column)) for column in zip(*self.values, strict=True)]


def rank(study: optuna.Study) -> list[Ranked]:
    """Complete trials, the best first; with several objectives, the Pareto front alone.

    Only trials that keep all constraints, and only those with most seeds: a lucky one must not pass for a good one.
    """
    found = list(_with_repeats(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))))
    found = [ranked for ranked in found if is_feasible(ranked.trial)]
    seeds = max((len(ranked.values) for ranked in found), default=0)
    return order([ranked for ranked in found if len(ranked.values) == seeds], study.directions)


def promising(trials: Iterable[FrozenTrial], directions: Sequence[StudyDirection], count: int) -> list[FrozenTrial]:
    """The trials that deserve to be repeated: the best `count`, as far as one seed tells."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE and is_feasible(trial)]
    alone = [Ranked(trial, (tuple(trial.values),)) for trial in complete if TrialRecord(trial).is_drawn]
    return [ranked.trial for ranked in order(alone, directions)[:count]]


def order(found: Sequence[Ranked], directions: Sequence[StudyDirection]) -> list[Ranked]:
    """By the one objective; with several, those that no other is better than in all, in the order of the first objective.

    One with a value that is NaN is in no order.
    """
    found = [ranked for ranked in found if not any(map(math.isnan, ranked.mean))]
    signs = [-1 if direction == StudyDirection.MAXIMIZE else 1 for direction in directions]
    costs = {id(ranked): tuple(s * v for s, v in zip(signs, ranked.mean, strict=True)) for ranked in found}
    found = sorted(found, key=lambda ranked: (costs[id(ranked)], ranked.trial.number))
    if len(signs) == 1:
        return found
    front: list[Ranked] = []  # in this order, whoever dominates a trial comes before it, and so does one of the front
    for ranked in found:
        if not any(dominates(costs[id(other)], costs[id(ranked)]) for other in front):
            front.append(ranked)
    return front


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether costs `a` are nowhere above `b`, and somewhere below."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether a trial keeps its study's constraints."""
    return all(violation <= 0 for violation in trial.constraints.values())


def _with_repeats(complete: Iterable[FrozenTrial]) -> Iterable[Ranked]:
    groups: dict[int, list[FrozenTrial]] = {}
    for trial in complete:
        groups.setdefault(_first(trial), []).append(trial)
    for number, group in groups.items():
        if group[0].number == number:  # the trial itself is complete
            yield Ranked(group[0], tuple(tuple(trial.values) for trial in group))


def _first(trial: FrozenTrial) -> int:
    """The number of the trial that this one repeats, or its own."""
    repeated = TrialRecord(trial).repeats
    return trial.number if repeated is None else repeated


def front(study: Snapshot, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """A row for every complete trial that has all the measures: their means over its seeds, and whether it is on the front.

    names   two measures or more; default: the study's objectives, or its objective and density

    A trial is on the front when no other is as good in all measures and better in one, also one that breaks a
    constraint: `feasible` says which do not. The front comes first, in the order of the first measure. Raises UserError.
    """
    names = list(names) or default_names(study)
    if len(set(names)) < max(2, len(names)):
        raise UserError(f"a front takes two measures or more, each once; these were recorded: {', '.join(measures(study))}")
    directions = [direction(study, name) for name in names]
    found = _points(study, names)
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
    """The objectives of a study, or its one and density."""
    names = objectives(study)
    return names if len(names) > 1 else [names[0], "density"]


def _points(study: Snapshot, names: Sequence[str]) -> list[Ranked]:
    """Complete trials with what they and their repeats came to."""
    own = objectives(study)
    groups: dict[int, list[tuple[FrozenTrial, tuple[float, ...]]]] = {}
    for trial in study.get_trials(states=(TrialState.COMPLETE,)):
        values = tuple(value for name in names if (value := measured(trial, own, name)) is not None)
        if len(values) == len(names):
            groups.setdefault(_first(trial), []).append((trial, values))
    firsts = (group for number, group in groups.items() if group[0][0].number == number)
    return [Ranked(group[0][0], tuple(values for _, values in group)) for group in firsts]


HIGHER_IS_BETTER = ("val_accuracy", "test_accuracy", "robustness")  # of what runs measure; tested against measures.py


NO_MEASURES = ("seed", "beat", REPEATS, RETRIES, "reuses")  # numbers that say nothing about how good a run is


def objectives(study: optuna.Study) -> list[str]:
    """The names of a study's values."""
    count = len(study.directions)
    return study.metric_names or (["value"] if count == 1 else [f"value_{place}" for place in range(count)])


def parameters(trial: FrozenTrial) -> dict[str, Any]:
    """What tells a trial from the others of its study: what Optuna sampled, or its cell in a comparison."""
    cell = TrialRecord(trial).cell
    return trial.params if cell is None else {"arm": cell.arm, "extractor.density": cell.density, "seed": cell.seed}


def best_ranked(study: optuna.Study) -> list[Ranked]:
    """The best trial by the mean over its seeds, or the Pareto front; empty before one is complete.

    Of a comparison, the first trial of the best arm, with the values of all its seeds.
    """
    arms = compared(study)
    seeds = max((len(arm.values) for arm in arms), default=0)
    found = [arm for arm in arms if len(arm.values) == seeds] or rank(study)
    return found if len(study.directions) > 1 else found[:1]


def compared(study: optuna.Study) -> list[Ranked]:
    """The arms of a comparison, the best mean first: their first trial, with the values of all seeds; else nothing."""
    groups: dict[tuple[str, float], list[FrozenTrial]] = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        if cell := TrialRecord(trial).cell:
            groups.setdefault((cell.arm, cell.density), []).append(trial)
    arms = (Ranked(group[0], tuple(tuple(trial.values) for trial in group)) for group in groups.values())
    return order(list(arms), study.directions)


def measured(trial: FrozenTrial, names: Sequence[str], name: str) -> float | None:
    """What a complete trial came to in a measure: one of the study's objectives, `names`, or any that its run recorded."""
    value = trial.values[names.index(name)] if name in names else trial.user_attrs.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def measures(study: optuna.Study) -> list[str]:
    """The measures that the complete trials of a study recorded, its objectives first."""
    names = dict.fromkeys(objectives(study))
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        names.update(dict.fromkeys(key for key in trial.user_attrs if measured(trial, (), key) is not None))
    return [name for name in names if name not in NO_MEASURES]


def direction(study: optuna.Study, name: str) -> StudyDirection:
    """Which way a measure is better. Raises UserError with the nearest names for one that no complete trial recorded."""
    names = objectives(study)
    if name in names:
        return study.directions[names.index(name)]
    if name not in (valid := measures(study)):
        raise unknown("measure", name, valid, where=f"of the study {study.study_name!r}")
    return StudyDirection.MAXIMIZE if name in HIGHER_IS_BETTER else StudyDirection.MINIMIZE
