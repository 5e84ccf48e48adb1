"""Warm starts: import results of other studies, and queue values to try first.

An imported result has the values of this study's keys in the configuration of its run, and this study's objectives and
constraints as measured on that run. The sampler uses it from the first trial on; it does not count in the budget.
"""

import logging
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from subnet_search.core.errors import UserError
from subnet_search.core.parameter_names import by_key
from subnet_search.extraction.config_file import flatten
from subnet_search.extraction.passed import config_like
from subnet_search.search.engine.scheduler import configuration_key
from subnet_search.search.spec.metrics import measures_of
from subnet_search.search.spec.space_parser import METHOD, Entry, stored, value_of
from subnet_search.search.spec.study_spec import StudySpec
from subnet_search.search.storage.connect import database_of, load_study
from subnet_search.search.storage.ranking import number, rank
from subnet_search.search.storage.read import read_trials
from subnet_search.search.storage.records import IMPORTED, TrialRecord
from subnet_search.search.storage.transfer import study_in
from subnet_search.search.storage.write import insert_trials

TAKEN_OVER = ("config", "seed", "folder", "versions", "steps", "passes", "sha256")  # and the metrics of the task

log = logging.getLogger(__name__)


class _DoesNotFit(Exception):
    """A trial of another study cannot be used; the message is the reason."""


def warm_start(study: optuna.Study, spec: StudySpec) -> None:
    """Add the results of the spec's `imports`, then queue the trials of its `enqueue`.

    Raises UserError, before adding anything, for a source that does not exist or has no usable result, and for an invalid
    item of `enqueue`.
    """
    imported = [trial for source in spec.imports for trial in _import_results(source, study, spec)]
    queued = [params for index, item in enumerate(spec.enqueue, 1) for params in _queued_by(item, index, study, spec)]
    if imported:
        insert_trials(database_of(study), study._study_id, imported)  # first: a trial sees only trials with lower numbers
    for params in queued:
        study.enqueue_trial(params)


def _queued_by(item: Mapping[str, Any], index: int, study: optuna.Study, spec: StudySpec) -> list[dict[str, Any]]:
    """Parameters of the trials for one item of `enqueue`."""
    where = f"enqueue, item {index}"
    try:
        if "study" in item:
            return _best_of(item, where, study, spec)
        if not item:
            raise UserError("it has no values")
        return [spec.searched.named(item)]
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _best_of(item: Mapping[str, Any], where: str, study: optuna.Study, spec: StudySpec) -> list[dict[str, Any]]:
    name, count = item["study"], item.get("best", 1)
    if item.keys() - {"study", "best"} or type(name) is not str or type(count) is not int or count < 1:
        raise UserError(f"takes `study` (a name) and `best` (a whole number, 1 or more), got {dict(item)}")
    found: list[dict[str, Any]] = []
    left_out: list[str] = []
    for ranked in rank(_open_source(name, study))[:count]:
        params: dict[str, Any] = {}
        try:
            values = _values_by_key(ranked.trial, spec)
        except _DoesNotFit as why:
            left_out.append(f"trial {ranked.trial.number}, {why}")
            continue
        kept: dict[str, Any] = {}
        for key in dict.fromkeys(entry.key for entry in spec.searched.searched if entry.key in values):
            try:  # unconditional keys come first
                params = spec.searched.named({**kept, key: values[key]})
                kept[key] = values[key]
            except UserError:
                left_out.append(f"{key} {values[key]} of trial {ranked.trial.number}")
        if params and params not in found:
            found.append(params)
    if left_out:
        log.warning("%s: left out, not in this study's space: %s", where, "; ".join(left_out))
    if not found:
        raise UserError(f"no complete trial of {name!r} has values in this study's search space")
    return found


def _import_results(source: str, study: optuna.Study, spec: StudySpec) -> list[FrozenTrial]:
    """The complete trials of another study, converted to trials of this one."""
    theirs = _open_source(source, study)
    names = theirs.metric_names or ()
    found: list[FrozenTrial] = []
    rejected: Counter[str] = Counter()
    for trial in read_trials(theirs, without=("log", "traceback")):
        record = TrialRecord(trial)
        again = record.repeats is not None or record.imported_from in spec.imports
        if trial.state != TrialState.COMPLETE or again:
            continue
        try:
            found.append(_as_imported(trial, names, source, spec))
        except _DoesNotFit as why:
            rejected[str(why)] += 1
    reasons = ", ".join(f"{count} {why}" for why, count in rejected.most_common())
    if not found:
        raise UserError(f"imports: no usable result in {source!r}: {reasons or 'it has no complete trial'}")
    if rejected:
        log.warning("imports: %d results of %r cannot be used, %d can: %s", rejected.total(), source, len(found), reasons)
    return found


def _as_imported(trial: FrozenTrial, names: Any, source: str, spec: StudySpec) -> FrozenTrial:
    """A finished trial of another study, converted to a trial of this one. Raises _DoesNotFit."""
    keys = (*TAKEN_OVER, spec.task_metrics.test, *measures_of(spec.run.task))
    attrs = {key: trial.user_attrs[key] for key in keys if key in trial.user_attrs}
    recorded = {key: number(value) for key, value in {**attrs, **dict(zip(names, trial.values, strict=False))}.items()}
    measured = {key: value for key, value in recorded.items() if value is not None and math.isfinite(value)}
    for name in (*spec.objective, *(bound.name for bound in spec.bounds)):
        if name not in measured:
            raise _DoesNotFit(f"without {name}")
    values, params, distributions = _values_by_key(trial, spec), dict[str, Any](), dict[str, BaseDistribution]()

    def take(entry: Entry) -> Any:
        if entry.key not in values:
            raise _DoesNotFit(f"without a value for {entry.key}")
        if not entry.accepts(value := stored(values[entry.key])):
            raise _DoesNotFit(f"with {entry.key} outside this study's domain")
        params[entry.name], distributions[entry.name] = value, entry.distribution
        return value_of(entry, value)

    spec.searched.choose(take)
    if spec.duplicates != "rerun" and (config := TrialRecord(trial).config):
        attrs["key"] = configuration_key(config_like(spec.run, config))
    return create_trial(
        state=TrialState.COMPLETE,
        values=[measured[name] for name in spec.objective],
        params=params,
        distributions=distributions,
        user_attrs={**attrs, IMPORTED: source},
        constraints={bound.name: bound.violation(measured[bound.name]) for bound in spec.bounds},
    )


def _values_by_key(trial: FrozenTrial, spec: StudySpec) -> dict[str, Any]:
    """Values of all keys in a trial's run, searched and fixed."""
    values = flatten(TrialRecord(trial).config or {})
    if (method := values.get(f"{METHOD}.name")) is not None:
        if method not in spec.searched.methods():
            raise _DoesNotFit(f"of another method ({method})")
        values[METHOD] = method
    return {**values, **by_key(trial.params)}


def _open_source(name: str, study: optuna.Study) -> optuna.Study:
    """A study in the same storage, or in a file."""
    if name.endswith((".db", ".json")):
        return study_in(name)
    if name == study.study_name:
        raise UserError(f"a study cannot import its own results: {name!r}")
    return load_study(name, study._storage)
