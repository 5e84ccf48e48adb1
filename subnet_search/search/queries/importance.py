"""Which parameters matter: Optuna's evaluators, and in words what their numbers say and of how many trials."""

import importlib
import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from subnet_search.core.errors import UserError, unknown
from subnet_search.search.storage.ranking import direction, measured, objectives, sign
from subnet_search.search.storage.read import Snapshot
from subnet_search.search.storage.records import TrialRecord

EVALUATORS = {"pedanova": "PED-ANOVA", "fanova": "fANOVA"}
TOP = 0.1  # of the trials, which PED-ANOVA compares with all of them
ADVISED = 5  # trials at least among the top, says Optuna
LEAST = 10  # complete trials, below which no number is given
TREES, DEPTH = 32, 6  # of fANOVA's forest: Optuna's 64 trees, 64 deep, take 45 s for 2,500 trials, and moved no share by 0.02


def importance(study: Snapshot, evaluator: str = "pedanova", objective: str | None = None) -> dict[str, Any]:
    """The share of each parameter, the largest first, with the evaluator's name, the number of trials, and what it means.

    evaluator   pedanova: what separates the best tenth of the trials from all, conditional parameters included;
                fanova: what explains the variance over all trials, of those parameters alone that all of them have
    objective   any measure that the trials recorded; default: the study's (PED-ANOVA of several: being on the front)

    `importances` is empty, and `note` says why, where there are too few trials. Raises UserError for unknown names.
    """
    if evaluator not in EVALUATORS:
        raise unknown("evaluator", evaluator, EVALUATORS)
    names = objectives(study)
    if objective is None and len(names) > 1 and evaluator == "fanova":
        raise UserError(f"fANOVA explains one measure: choose it with --objective ({', '.join(names)})")
    name = objective or (names[0] if len(names) == 1 else None)
    trials = _usable(study, names, name)
    top = math.ceil(TOP * len(trials))
    record: dict[str, Any] = {
        "evaluator": EVALUATORS[evaluator],
        "objective": name,
        "trials": len(trials),
        "meaning": _meaning(evaluator, name, len(trials), top),
        "importances": {},
        "left_out": [],
        "note": _too_few(study, names, name, trials),
    }
    if record["note"]:
        return record
    seen, target = Snapshot(study, trials), (lambda trial: _value(trial, names, name)) if name else None
    if evaluator == "pedanova":
        if top < ADVISED:
            record["note"] = f"unsure: the best tenth are {top} trials, and {ADVISED} or more are advised"
        found = _ped_anova(seen, target, sign(direction(study, name)) if name else 1)
    else:
        from optuna.importance import FanovaImportanceEvaluator

        found = FanovaImportanceEvaluator(n_trees=TREES, max_depth=DEPTH, seed=0).evaluate(seen, target=target)
        record["left_out"] = sorted({param for trial in trials for param in trial.params} - found.keys())
    if total := sum(found.values()):
        record["importances"] = {param: float(share / total) for param, share in found.items()}
    else:
        record["note"] = "no parameter separates the trials"
    return record


def _usable(study: Snapshot, names: list[str], name: str | None) -> list[FrozenTrial]:
    """The complete trials with a value. A repeat says nothing about parameters that its first trial has not said."""
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    trials = [trial for trial in complete if TrialRecord(trial).repeats is None and trial.params]
    if name is None:
        return trials
    _ = direction(study, name) if complete else None
    return [trial for trial in trials if math.isfinite(_value(trial, names, name))]


def _value(trial: FrozenTrial, names: list[str], name: str) -> float:
    value = measured(trial, names, name)
    return math.nan if value is None else value


def _too_few(study: Snapshot, names: list[str], name: str | None, trials: list[FrozenTrial]) -> str | None:
    if any(TrialRecord(trial).cell for trial in study.get_trials()):
        return (
            "none, because a comparison does not sample its methods and densities: their results side by side: "
            f"subnet-search study show {study.study_name}"
        )
    if len(trials) < LEAST:
        return f"too few: it takes {LEAST} complete trials, and there are {len(trials)}"
    if name and len({_value(trial, names, name) for trial in trials}) == 1:
        return f"{name} is the same in all {len(trials)} complete trials"
    return None


def _meaning(evaluator: str, name: str | None, count: int, top: int) -> str:
    goal = f"by {name}" if name else "nearest to the Pareto front"
    if evaluator == "pedanova":
        return f"by how much its values in the best {top} of {count:,} complete trials ({goal}) differ from those in all"
    return (
        f"how much of the variance of {name} over {count:,} complete trials it explains alone "
        f"({TREES} regression trees, {DEPTH} deep)"
    )


def _ped_anova(study: Snapshot, target: Callable[[FrozenTrial], float] | None, factor: int) -> dict[str, float]:
    low = (lambda trial: factor * target(trial)) if target else None  # it looks for what makes the target low
    with warnings.catch_warnings():  # of that, and of branches with a single trial
        warnings.simplefilter("ignore")
        found: dict[str, float] = _ped_anova_class()(target_quantile=TOP).evaluate(study, target=low)
    return found


def _ped_anova_class() -> Any:
    """Optuna's PED-ANOVA. Its package imports scikit-learn, for fANOVA, which takes longer than all else here together.

    So the package's own `__init__` is passed over, and is there as ever for whoever imports it later.
    """
    name = "optuna.importance"
    if name in sys.modules:
        return importlib.import_module(name).PedAnovaImportanceEvaluator
    bare = ModuleType(name)
    bare.__path__ = [str(Path(optuna.__file__).parent / "importance")]
    sys.modules[name] = bare
    try:
        return importlib.import_module(f"{name}._ped_anova").PedAnovaImportanceEvaluator
    finally:
        del sys.modules[name]
