"""Which trials of a study are best: those that keep its constraints first, by the mean over their seeds."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from subnet_search.search.attributes import KNOWN, REPEATS


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
    alone = [Ranked(trial, (tuple(trial.values),)) for trial in complete if not trial.user_attrs.keys() & {KNOWN, REPEATS}]
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
        groups.setdefault(trial.user_attrs.get(REPEATS, trial.number), []).append(trial)
    for number, group in groups.items():
        if group[0].number == number:  # the trial itself is complete
            yield Ranked(group[0], tuple(tuple(trial.values) for trial in group))
