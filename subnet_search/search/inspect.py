"""Looking into a storage: studies and trials as plain rows, for tables and JSON."""

from collections import Counter
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from subnet_search.errors import UserError
from subnet_search.search.ranking import rank
from subnet_search.search.spec import StudySpec


def list_studies(storage: BaseStorage) -> list[dict[str, Any]]:
    """Every study: its name, how many trials in which state, its best value (one objective) and when it began."""
    rows = []
    for study in optuna.get_all_study_names(storage):
        loaded = optuna.load_study(study_name=study, storage=storage)
        trials = loaded.get_trials(deepcopy=False)
        best = best_trials(loaded)
        rows.append(
            {
                "name": study,
                "states": dict(Counter(trial.state.name for trial in trials)),
                "best": best[0].values[0] if best and len(loaded.directions) == 1 else None,
                "started": min((t.datetime_start.isoformat(" ", "seconds") for t in trials if t.datetime_start), default=None),
            }
        )
    return rows


def parameters(trial: FrozenTrial) -> dict[str, Any]:
    """What tells a trial from the others of its study: what Optuna sampled, or its cell in a comparison."""
    cell = trial.user_attrs.get("cell")
    return trial.params if cell is None else {"arm": cell["arm"], "extractor.density": cell["density"], "seed": cell["seed"]}


def trial_row(trial: FrozenTrial) -> dict[str, Any]:
    """One trial, with what our runs store beside Optuna's own."""
    attrs = trial.user_attrs
    return {
        "number": trial.number,
        "state": trial.state.name,
        "values": trial.values,
        "params": parameters(trial),
        **{key: attrs.get(key) for key in ("density", "val_accuracy", "test_accuracy", "sha256", "seconds", "seed", "reason")},
        "last": trial.intermediate_values[trial.last_step] if trial.last_step is not None else None,
    }


def trial_rows(study: optuna.Study) -> list[dict[str, Any]]:
    """All trials, in their order."""
    return [trial_row(trial) for trial in study.get_trials(deepcopy=False)]


def find_trial(study: optuna.Study, number: int) -> FrozenTrial:
    """A trial by its number. Raises UserError when there is none."""
    trials = study.get_trials(deepcopy=False)
    if not 0 <= number < len(trials):
        raise UserError(f"the study {study.study_name!r} has no trial {number}: it has {len(trials)}, counted from 0")
    return trials[number]


def trial_details(trial: FrozenTrial) -> dict[str, Any]:
    """Everything stored about one trial."""
    more = {key: trial.user_attrs.get(key) for key in ("config", "versions", "worker", "folder", "continues", "traceback")}
    times = {"started": str(trial.datetime_start), "completed": str(trial.datetime_complete)}
    return {**trial_row(trial), **more, **times, "reports": {str(k): v for k, v in trial.intermediate_values.items()}}


def best_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The best trial, the earlier of equal ones; with several objectives, the Pareto front. Empty before any is complete."""
    return [ranked.trial for ranked in (rank(study) if len(study.directions) > 1 else rank(study)[:1])]


def need_best(study: optuna.Study) -> list[FrozenTrial]:
    """`best_trials`, or UserError when no trial is complete."""
    best = best_trials(study)
    if not best:
        raise UserError(f"no trial of {study.study_name!r} is complete yet")
    return best


def overview(study: optuna.Study, spec: StudySpec) -> dict[str, Any]:
    """A study on one page: what it searches, how far it is, and what it found."""
    trials = study.get_trials(deepcopy=False)
    reasons = Counter(str(t.user_attrs.get("reason")) for t in trials if t.state.name == "FAIL")
    return {
        "name": study.study_name,
        "objective": spec.objective,
        "sampler": None if spec.compares else spec.sampler,
        "pruner": None if spec.compares else spec.pruner,
        "space": _compared(trials) if spec.compares else spec.searched.words(),
        "network": spec.run.network.name,
        "data": spec.run.data.name,
        "extractor": spec.run.extractor.name,
        "budget": spec.trials,
        "states": dict(Counter(trial.state.name for trial in trials)),
        "failures": dict(reasons),
        "seconds": sum(t.user_attrs.get("seconds") or 0.0 for t in trials),
        "best": [trial_row(trial) for trial in best_trials(study)],
    }


def _compared(trials: list[FrozenTrial]) -> dict[str, str]:
    """The arms, densities and seeds of a comparison's cells."""
    seen: dict[str, dict[str, None]] = {}
    for trial in trials:
        for key, value in parameters(trial).items():
            seen.setdefault(key, {})[f"{value:g}" if isinstance(value, float) else str(value)] = None
    return {key: " | ".join(values) for key, values in seen.items()}
