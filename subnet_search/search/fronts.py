"""The Pareto front over any measures that the trials of a study recorded, whatever it searched for."""

from collections.abc import Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from subnet_search.errors import UserError
from subnet_search.search.attributes import REPEATS
from subnet_search.search.inspect import Snapshot, direction, measured, measures, objectives, parameters
from subnet_search.search.ranking import Ranked, is_feasible, order


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
            groups.setdefault(trial.user_attrs.get(REPEATS, trial.number), []).append((trial, values))
    firsts = (group for number, group in groups.items() if group[0][0].number == number)
    return [Ranked(group[0][0], tuple(values for _, values in group)) for group in firsts]
