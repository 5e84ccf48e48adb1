"""Read studies and trials as plain rows, for tables and JSON.

Specifications are read as plain values, so that torch is not imported: that would take longer than reading a large study.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from math import isfinite
from statistics import fmean, stdev
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from subnet_search.core.errors import UserError, guarded
from subnet_search.core.task_metrics import CLASSIFICATION, TaskMetrics
from subnet_search.search.storage.connect import DEFAULT_STORAGE, open_storage, safe_url
from subnet_search.search.storage.connect import load_study as find_study
from subnet_search.search.storage.ranking import NO_MEASURES, Ranked, best_ranked, measured, number, objectives, parameters
from subnet_search.search.storage.read import COLD, MOST, Snapshot, read_trials, study_states
from subnet_search.search.storage.records import IMPORTED, REPEATS, TrialRecord, plain_spec, task_metrics

COLDER = (*COLD, "worker", "versions", "folder", "passes", "interruptions", "sha256", "seed", "seconds", "steps", "reason")
ALWAYS = ("density", "sha256", "seconds", "seed", "reason")
PLAIN = (*ALWAYS, *NO_MEASURES, "steps")


def load_study(name: str, storage: str | None = None) -> optuna.Study:
    """A stored study, as `run_study` returns it, but with Optuna's default sampler. Imports nothing that the study names.

    name      of the study
    storage   a storage URL; default: sqlite:///runs/studies.db

    Raises UserError if there is no such storage or study, with similar names.
    """
    url = storage or DEFAULT_STORAGE
    with guarded(f"cannot load the study {name!r} from {safe_url(url)}"):
        return find_study(name, open_storage(url))


def list_studies(storage: BaseStorage) -> list[dict[str, Any]]:
    """One row per study: name, trials by state, objectives, best value (single objective only), start time."""
    rows = []
    for name, states in study_states(storage).items():
        study = Snapshot(optuna.load_study(study_name=name, storage=storage), without=COLDER)
        best = best_ranked(study)
        began = [trial.datetime_start for trial in study.get_trials() if trial.datetime_start]
        rows.append(
            {
                "name": name,
                "states": counted(states.elements()),
                "objective": objectives(study),
                "best": best[0].mean[0] if best and len(study.directions) == 1 else None,
                "started": moment(min(began, default=None)),
            }
        )
    return rows


def trial_row(trial: FrozenTrial, metrics: TaskMetrics = CLASSIFICATION) -> dict[str, Any]:
    """One trial as a row: Optuna's fields and the attributes that runs store, among them the leading metric of the task."""
    record, attrs, leading = TrialRecord(trial), trial.user_attrs, (metrics.val, metrics.test)
    plain = {*PLAIN, *leading}
    return {
        "number": trial.number,
        "state": trial.state.name,
        "values": trial.values,
        "params": parameters(trial),
        **{key: attrs.get(key) for key in ("density", *leading, *ALWAYS[1:])},
        "steps": record.get("steps", int),
        "measured": {name: attrs[name] for name in attrs if name not in plain and measured(trial, (), name) is not None},
        "repeats": record.repeats,
        "imported": record.imported_from,
        "interruptions": len(record.interruptions),
        "constraints": trial.constraints,
        "last": record.last_value,
    }


def trial_rows(study: optuna.Study) -> list[dict[str, Any]]:
    """All trials as rows. Repeated calls on one study read only what has changed."""
    metrics = task_metrics(study)
    return [trial_row(trial, metrics) for trial in study.get_trials(deepcopy=False)]


def find_trial(study: optuna.Study, number: int) -> FrozenTrial:
    """A trial by its number. Raises UserError if there is none."""
    found = read_trials(study, first=number, last=number) if 0 <= number <= MOST else []
    if not found:
        count = study_states(study._storage)[study.study_name].total()
        raise UserError(f"the study {study.study_name!r} has no trial {number}: it has {count}, numbered from 0")
    return found[0]


def trial_details(study: optuna.Study, number: int) -> dict[str, Any]:
    """All stored data of a trial, with its repeats and the last lines of its log. Raises UserError if there is none."""
    trial = find_trial(study, number)
    record, attrs = TrialRecord(trial), trial.user_attrs
    row = {**trial_row(trial, task_metrics(study)), "interruptions": [asdict(one) for one in record.interruptions]}
    rest = {key: value for key, value in attrs.items() if key not in row and key not in (IMPORTED, "log")}
    spec = plain_spec(study)
    bounds = spec.get("constraints", {})
    if spec.get("repeats", 1) > 1 and REPEATS not in attrs and "seeds" not in attrs:
        others = [t for t in read_trials(study, COLDER) if TrialRecord(t).repeats == number]
        rest["repeated"] = [{"number": t.number, "state": t.state.name, "values": t.values} for t in others]
    return {
        **row,
        **dict.fromkeys(("config", "folder", "versions", "worker", "traceback")),
        **rest,
        "objectives": dict(zip(objectives(study), trial.values or (), strict=False)),
        "broken": {name: bounds.get(name, "") for name, beyond in trial.constraints.items() if beyond > 0},
        "started": moment(trial.datetime_start),
        "completed": moment(trial.datetime_complete),
        "reports": {str(step): value for step, value in trial.intermediate_values.items()},
        "log": record.log_tail(),
    }


def need_ranked(study: optuna.Study) -> list[Ranked]:
    """`best_ranked`. Raises UserError with the reason if there is no best trial."""
    found = best_ranked(study)
    if not found:
        complete = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
        if not complete:
            raise UserError(f"no trial of {study.study_name!r} is complete yet")
        bounds = ", ".join(f"{name} {bound.strip()}" for name, bound in plain_spec(study).get("constraints", {}).items())
        raise UserError(f"none of the {complete} complete trials of {study.study_name!r} satisfies its constraints ({bounds})")
    return found


def need_best(study: optuna.Study) -> list[FrozenTrial]:
    """The best trials with all attributes. Raises UserError with the reason if there is no best trial."""
    return [find_trial(study, ranked.trial.number) for ranked in need_ranked(Snapshot(study))]


def ranked_row(ranked: Ranked, metrics: TaskMetrics = CLASSIFICATION) -> dict[str, Any]:
    """A trial as a row, with the mean, deviation, lowest and highest value of each objective over its seeds.

    `over_seeds` has the same, and the number of seeds, for every other metric that was stored for all of them; the metrics
    of the row itself are those of the trial, with its own seed.
    """
    seeds = TrialRecord(ranked.trial).seeds  # of a trial that ran all of its seeds itself
    ranked = Ranked(ranked.trial, tuple(tuple(seed["values"]) for seed in seeds)) if seeds else ranked
    records = seeds or [trial.user_attrs for trial in ranked.trials]
    row = trial_row(ranked.trial, metrics)
    names = (metrics.val, metrics.test, "density", *row["measured"], "steps", "seconds")
    found = {name: [value for one in records if (value := number(one.get(name))) is not None] for name in names}
    return {
        **row,
        "seeds": len(ranked.values),
        "mean": list(ranked.mean),
        "deviation": [_deviation(column) for column in zip(*ranked.values, strict=True)],
        "spread": [list(ends) for ends in ranked.spread],
        "over_seeds": {name: _statistics(values) for name, values in found.items() if values and len(values) == len(records)},
    }


def _statistics(values: Sequence[float]) -> dict[str, Any]:
    ends = {"low": min(values), "high": max(values)}
    return {"mean": fmean(values), "deviation": _deviation(values), **ends, "seeds": len(values)}


def _deviation(values: Sequence[float]) -> float | None:
    """The sample standard deviation; None for one value, and where a value is infinite or no number."""
    return stdev(values) if len(values) > 1 and all(map(isfinite, values)) else None


def counted(states: Iterable[TrialState]) -> dict[str, int]:
    """Number of trials by state, in the order of Optuna's states."""
    found = Counter(states)
    return {state.name: found[state] for state in TrialState if found[state]}


def moment(time: datetime | None) -> str | None:
    """A time in text, to the second."""
    return time.isoformat(" ", "seconds") if time else None
