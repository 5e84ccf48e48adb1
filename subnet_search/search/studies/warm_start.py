"""Warm starts: what a new study knows from others, and what it tries first.

A result of another study is known here by the values of this study's keys that its run had, and by what was measured
on that run: the objectives and constraints are this study's. It counts for the sampler from the first trial on, and
not in the budget.
"""

import logging
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from subnet_search.core.errors import UserError
from subnet_search.core.parameter_names import by_key, key_and_condition
from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.config_file import check, flatten
from subnet_search.search.engine.scheduler import configuration_key
from subnet_search.search.spec.metrics import MEASURES
from subnet_search.search.spec.space_parser import METHOD, stored
from subnet_search.search.spec.study_spec import StudySpec
from subnet_search.search.storage.connect import load_study, rdb
from subnet_search.search.storage.ranking import rank
from subnet_search.search.storage.read import read_trials
from subnet_search.search.storage.records import IMPORTED, TrialRecord
from subnet_search.search.storage.transfer import study_in
from subnet_search.search.storage.write import insert_trials

TAKEN_OVER = ("config", "seed", "folder", "versions", "steps", "passes", "sha256", "test_accuracy", *MEASURES)

log = logging.getLogger(__name__)


class _Misfit(Exception):
    """Why a trial of another study says nothing here."""


class _Result:
    """Stands in for a trial that is drawn: every parameter is what the run had."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.params: dict[str, Any] = {}
        self.distributions: dict[str, BaseDistribution] = {}

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        key, _ = key_and_condition(name)
        if key not in self.values:
            raise _Misfit(f"without a value of {key}")
        value = stored(self.values[key])
        try:
            inside = distribution._contains(distribution.to_internal_repr(value))
        except (ValueError, TypeError):
            inside = False
        if not inside:
            raise _Misfit(f"with {key} where this study does not look")
        self.params[name], self.distributions[name] = value, distribution
        return value


def warm_start(study: optuna.Study, spec: StudySpec) -> None:
    """Add the results that the spec's `imports` name, then queue what its `enqueue` asks for.

    Raises UserError, before anything is added, for a source that is not there or of which nothing fits, and for an item
    that this study does not search.
    """
    known = [trial for source in spec.imports for trial in _results(source, study, spec)]
    queued = [params for place, item in enumerate(spec.enqueue, 1) for params in _first(item, place, study, spec)]
    if known:
        database = rdb(study._storage)
        assert database is not None, "studies are made in databases"
        insert_trials(database, study._study_id, known)  # first: a trial sees none that come after it
    for params in queued:
        study.enqueue_trial(params)


def _first(item: Mapping[str, Any], place: int, study: optuna.Study, spec: StudySpec) -> list[dict[str, Any]]:
    """The parameters of the trials that an item of `enqueue` stands for."""
    where = f"enqueue, item {place}"
    try:
        if "study" in item:
            return _best(item, where, study, spec)
        if not item:
            raise UserError("it has no values")
        return [spec.searched.named(item)]
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _best(item: Mapping[str, Any], where: str, study: optuna.Study, spec: StudySpec) -> list[dict[str, Any]]:
    name, count = item["study"], item.get("best", 1)
    if item.keys() - {"study", "best"} or type(name) is not str or type(count) is not int or count < 1:
        raise UserError(f"it takes `study`, a name, and `best`, a whole number, got {dict(item)}")
    found: list[dict[str, Any]] = []
    left_out: list[str] = []
    for ranked in rank(_source(name, study))[:count]:
        params: dict[str, Any] = {}
        try:
            values = _values(ranked.trial, spec)
        except _Misfit as why:
            left_out.append(f"trial {ranked.trial.number}, {why}")
            continue
        kept: dict[str, Any] = {}
        for key in dict.fromkeys(entry.key for entry in spec.searched.searched if entry.key in values):
            try:  # what conditions look at comes first
                params = spec.searched.named({**kept, key: values[key]})
                kept[key] = values[key]
            except UserError:
                left_out.append(f"{key} {values[key]} of trial {ranked.trial.number}")
        if params and params not in found:
            found.append(params)
    if left_out:
        log.warning("%s: this study does not look at %s", where, "; ".join(left_out))
    if not found:
        raise UserError(f"no complete trial of {name!r} has values that this study searches")
    return found


def _results(source: str, study: optuna.Study, spec: StudySpec) -> list[FrozenTrial]:
    """The complete trials of another study, as trials of this one."""
    theirs = _source(source, study)
    names = theirs.metric_names or ()
    found: list[FrozenTrial] = []
    misfits: Counter[str] = Counter()
    for trial in read_trials(theirs, without=("log", "traceback")):
        record = TrialRecord(trial)
        again = record.repeats is not None or record.imported_from in spec.imports
        if trial.state != TrialState.COMPLETE or again:
            continue
        try:
            found.append(_known(trial, names, source, spec))
        except _Misfit as why:
            misfits[str(why)] += 1
    reasons = ", ".join(f"{count} {why}" for why, count in misfits.most_common())
    if not found:
        raise UserError(f"imports: no result of {source!r} fits: {reasons or 'it has no complete trial'}")
    if misfits:
        log.warning("imports: %d results of %r do not fit, %d do: %s", misfits.total(), source, len(found), reasons)
    return found


def _known(trial: FrozenTrial, names: Any, source: str, spec: StudySpec) -> FrozenTrial:
    """A result as a trial of this study. Raises _Misfit."""
    attrs = {key: trial.user_attrs[key] for key in TAKEN_OVER if key in trial.user_attrs}
    measured = {key: value for key, value in {**attrs, **dict(zip(names, trial.values, strict=False))}.items() if _real(value)}
    for name in (*spec.objective, *(bound.name for bound in spec.bounds)):
        if name not in measured:
            raise _Misfit(f"without {name}")
    result = _Result(_values(trial, spec))
    spec.searched.suggest(cast(optuna.Trial, result))
    if spec.duplicates != "rerun" and (config := TrialRecord(trial).config):
        attrs["key"] = configuration_key(check(RunConfig, config))
    return create_trial(
        state=TrialState.COMPLETE,
        values=[measured[name] for name in spec.objective],
        params=result.params,
        distributions=result.distributions,
        user_attrs={**attrs, IMPORTED: source},
        constraints={bound.name: bound.violation(measured[bound.name]) for bound in spec.bounds},
    )


def _values(trial: FrozenTrial, spec: StudySpec) -> dict[str, Any]:
    """Keys of a run with the values that a trial's had: those that were searched, and those that were set."""
    values = flatten(TrialRecord(trial).config or {})
    if (method := values.get(f"{METHOD}.name")) is not None:
        if method not in spec.searched.methods():
            raise _Misfit(f"of another method ({method})")
        values[METHOD] = method
    return {**values, **by_key(trial.params)}


def _source(name: str, study: optuna.Study) -> optuna.Study:
    """A study in the same storage, or in a file."""
    if name.endswith((".db", ".json")):
        return study_in(name)
    if name == study.study_name:
        raise UserError(f"a study cannot begin with results of its own: {name!r}")
    return load_study(name, study._storage)


def _real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
