"""Compare two studies: budgets, results, and the best result after equal work."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import TrialState

from subnet_search.core.errors import UserError
from subnet_search.search.queries.queries import counted, ranked_row
from subnet_search.search.storage.ranking import best_ranked, dominates, is_feasible, objectives, sign
from subnet_search.search.storage.read import Snapshot
from subnet_search.search.storage.records import (
    FINISHED,
    TrialRecord,
    plain_spec,
    searched_trials,
    steps_spent,
    task_metrics,
)

FRACTIONS = (0.1, 0.25, 0.5, 0.75, 1.0)  # of the work that both studies have done
BUDGET = ("trials", "steps", "timeout", "workers", "storage", "name", "heartbeat", "imports", "enqueue", "artifacts")


def diff_studies(a: Snapshot, b: Snapshot) -> dict[str, Any]:
    """Budgets, best trials and differences of two studies with the same objectives. Raises UserError for different ones.

    For a single objective, also the best value after equal numbers of trials and training steps.
    """
    mine, theirs = objectives(a), objectives(b)
    if (mine, a.directions) != (theirs, b.directions):
        raise UserError(
            f"only studies with the same objectives can be compared: {a.study_name!r} has {', '.join(mine)}, "
            f"{b.study_name!r} has {', '.join(theirs)}"
        )
    one, other = _summary(a), _summary(b)
    record = {"objective": mine, "studies": [one, other], "differences": differences(plain_spec(a), plain_spec(b))}
    if len(mine) > 1:
        return {**record, "dominated": [_dominated(a, b), _dominated(b, a)]}
    factor = sign(a.directions[0])
    courses = [_course(study, factor) for study in (a, b)]
    for summary, course, rival in ((one, courses[0], courses[1]), (other, courses[1], courses[0])):
        summary["reaches_the_others_best"] = _reached(course, rival)
    return {
        **record,
        "at_equal_trials": _side_by_side(courses, "trials", factor),
        "at_equal_steps": _side_by_side(courses, "steps", factor),
    }


def differences(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Keys with different values in two specifications, without budgets, names and storage."""
    flat = [dict(_flat({key: value for key, value in spec.items() if key not in BUDGET})) for spec in (mine, theirs)]
    keys = dict.fromkeys(itertools.chain(*flat))
    pairs = ((key, flat[0].get(key), flat[1].get(key)) for key in keys)
    return [{"key": key, "a": one, "b": other} for key, one, other in pairs if one != other]


def _flat(values: Mapping[str, Any], above: str = "") -> Any:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _summary(study: Snapshot) -> dict[str, Any]:
    trials, spec = searched_trials(study.get_trials()), plain_spec(study)
    return {
        "name": study.study_name,
        "states": counted(trial.state for trial in trials),
        "finished": sum(trial.state in FINISHED for trial in trials),
        "budget": spec.get("trials"),
        "steps": steps_spent(trials),
        "seconds": sum(TrialRecord(trial).seconds for trial in trials),
        "best": [ranked_row(ranked, task_metrics(study)) for ranked in best_ranked(study)],
    }


def _course(study: Snapshot, factor: int) -> list[tuple[int, int, float]]:
    """After each finished trial: finished trials, training steps, and the best cost so far (first seeds only)."""
    course, trials, steps, best = [], 0, 0, float("inf")
    for trial in searched_trials(study.get_trials()):
        steps += TrialRecord(trial).steps
        if trial.state in FINISHED:
            trials += 1
            if trial.state == TrialState.COMPLETE and is_feasible(trial):
                best = min(best, factor * trial.values[0])
            course.append((trials, steps, best))
    return course


def _side_by_side(courses: Sequence[list[tuple[int, int, float]]], key: str, factor: int) -> list[dict[str, Any]]:
    """Best value of both studies at fractions of the work that both have done."""
    column = ("trials", "steps").index(key)
    done = min(course[-1][column] if course else 0 for course in courses)

    def best_after(work: int, course: list[tuple[int, int, float]]) -> float | None:
        cost = min((point[2] for point in course if point[column] <= work), default=math.inf)
        return None if cost == math.inf else factor * cost

    works = dict.fromkeys(max(1, round(share * done)) for share in FRACTIONS if done)
    return [{key: work, "a": best_after(work, courses[0]), "b": best_after(work, courses[1])} for work in works]


def _reached(course: list[tuple[int, int, float]], rival: list[tuple[int, int, float]]) -> dict[str, int] | None:
    """Work after which one study reached the other's best value; None if never."""
    if not rival or rival[-1][2] == float("inf"):
        return None
    return next(({"trials": trials, "steps": steps} for trials, steps, best in course if best <= rival[-1][2]), None)


def _dominated(a: optuna.Study, b: optuna.Study) -> int:
    """Number of points on b's front that a point of a's front dominates."""
    mine, theirs = ([ranked.costs(a.directions) for ranked in best_ranked(study)] for study in (a, b))
    return sum(any(dominates(point, other) for point in mine) for other in theirs)
