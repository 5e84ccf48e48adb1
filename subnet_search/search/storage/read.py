"""Read studies fast: a few plain SELECTs, where Optuna builds an object for every cell of every table."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Container, Iterable
from datetime import UTC, datetime
from functools import cache
from itertools import takewhile
from typing import Any, TypeAlias

import optuna
from optuna.distributions import json_to_distribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, Select, bindparam, func, select

from subnet_search.search.storage.connect import database_of, rdb
from subnet_search.search.storage.optuna_private import models

STORED_AS_NULL = {"INF_POS": float("inf"), "INF_NEG": float("-inf"), "NAN": float("nan")}
"""Numbers that Optuna stores as NULL, by the stored type."""
MOST = 2**31 - 1  # largest trial number


def read_trials(study: optuna.Study, without: Collection[str] = (), first: int = 0, last: int = MOST) -> list[FrozenTrial]:
    """A consistent snapshot of a study's trials, ordered by number: a faster `study.get_trials(deepcopy=False)`.

    without       user attributes to leave out
    first, last   range of trial numbers

    NaN values, which Optuna refuses to read, are returned as NaN.
    """
    database = rdb(study._storage)
    if database is None:
        return [trial for trial in study.get_trials(deepcopy=False) if first <= trial.number <= last]
    with database.engine.connect() as connection:  # one snapshot for all SELECTs
        if database.engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN")
        else:
            connection.execution_options(isolation_level="REPEATABLE READ")
        return _trials(connection, {"study": study._study_id, "first": first, "last": last}, without)


class Reader:
    """Reads the trials of a study repeatedly, finished trials only once."""

    def __init__(self, study: optuna.Study) -> None:
        self.study, self.ended = study, list[FrozenTrial]()  # the finished trials before the first unfinished one

    def trials(self) -> list[FrozenTrial]:
        """The same as `read_trials(study)`."""
        later = read_trials(self.study, first=len(self.ended))
        found = [*self.ended, *later]
        self.ended.extend(takewhile(lambda trial: trial.state.is_finished(), later))
        return found


def study_attributes(study: optuna.Study, *keys: str) -> dict[str, Any]:
    """The given user attributes of a study; missing ones are left out. Empty if the study was deleted."""
    table = models.StudyUserAttributeModel
    query = select(table.key, table.value_json).where(table.study_id == study._study_id, table.key.in_(keys))
    with database_of(study).engine.connect() as connection:
        return {key: json.loads(text) for key, text in connection.execute(query)}


def study_states(storage: BaseStorage) -> dict[str, Counter[TrialState]]:
    """Number of trials in each state, by study, in order of creation."""
    database = rdb(storage)
    if database is None:
        studies = storage.get_all_studies()
        return {s.study_name: Counter(t.state for t in storage.get_all_trials(s._study_id, deepcopy=False)) for s in studies}
    study, trial = models.StudyModel, models.TrialModel
    query = (
        select(study.study_name, trial.state, func.count(trial.trial_id))
        .outerjoin(trial, trial.study_id == study.study_id)
        .group_by(study.study_id, study.study_name, trial.state)
        .order_by(study.study_id, trial.state)
    )
    states: dict[str, Counter[TrialState]] = defaultdict(Counter)
    with database.engine.connect() as connection:
        for name, state, count in connection.execute(query):
            states[name].update({state: count} if count else {})
    return dict(states)


def _trials(connection: Connection, which: dict[str, int], without: Collection[str]) -> list[FrozenTrial]:
    """The trials with the study and the range of numbers in `which`."""
    value, param, seen = models.TrialValueModel, models.TrialParamModel, models.TrialIntermediateValueModel

    def cells(model: Any, *columns: str, without: Collection[str] = ()) -> list[tuple[Any, ...]]:
        query = _cells(model, *columns)
        result: Any = connection.execute(query.where(model.key.not_in(without)) if without else query, which)
        return list(result.cursor.fetchall())  # the driver's tuples: SQLAlchemy's rows would double the time

    rows = connection.execute(_TRIALS, which).all()
    values: dict[int, dict[int, float]] = defaultdict(dict)
    for id, objective, number, kind in cells(value, "objective", "value", "value_type"):
        values[id][objective] = STORED_AS_NULL.get(kind, math.nan if number is None else number)
    reported: dict[int, dict[int, float]] = defaultdict(dict)
    for id, step, number, kind in cells(seen, "step", "intermediate_value", "intermediate_value_type"):
        reported[id][step] = STORED_AS_NULL.get(kind, number)
    params: dict[int, dict[str, Any]] = defaultdict(dict)
    distributions: dict[int, dict[str, Any]] = defaultdict(dict)
    for id, name, number, text in cells(param, "param_name", "param_value", "distribution_json"):
        distributions[id][name] = _distribution(text)
        params[id][name] = distributions[id][name].to_external_repr(number)
    user, system = models.TrialUserAttributeModel, models.TrialSystemAttributeModel
    user_attrs = _attributes(cells(user, "key", "value_json", without=without))
    system_attrs = _attributes(cells(system, "key", "value_json"))
    return [
        FrozenTrial(
            trial_id=id,
            number=number,
            state=state,
            value=None,
            values=[values[id][objective] for objective in range(len(values[id]))] or None,
            datetime_start=_local(start),
            datetime_complete=_local(end),
            params=params[id],
            distributions=distributions[id],
            user_attrs=user_attrs[id],
            system_attrs=system_attrs[id],
            intermediate_values=reported[id],
        )
        for id, number, state, start, end in rows
    ]


_distribution = cache(json_to_distribution)

# Statements are built once: building one takes as long as running it.
_trial = models.TrialModel
_WHICH = _trial.study_id == bindparam("study"), _trial.number >= bindparam("first"), _trial.number <= bindparam("last")
_TRIALS = (
    select(_trial.trial_id, _trial.number, _trial.state, _trial._datetime_start_utc, _trial._datetime_complete_utc)
    .where(*_WHICH)
    .order_by(_trial.number)
)


@cache
def _cells(model: Any, *columns: str) -> Select[Any]:
    """Select trial ids and columns of a table, in order of writing."""
    key = model.__table__.primary_key.columns.values()[0]
    query = select(model.trial_id, *(getattr(model, column) for column in columns))
    return query.join(_trial, _trial.trial_id == model.trial_id).where(*_WHICH).order_by(key)


def _attributes(cells: list[tuple[Any, ...]]) -> dict[int, dict[str, Any]]:
    """Attributes by trial. All are parsed as one JSON text, which is five times faster than one by one."""
    attributes: dict[int, dict[str, Any]] = defaultdict(dict)
    for (id, key, _), value in zip(cells, json.loads(f"[{','.join(text for _, _, text in cells)}]"), strict=True):
        attributes[id][key] = value
    return attributes


def _local(moment: datetime | None) -> datetime | None:
    """Optuna stores naive UTC and shows naive local time."""
    return moment and moment.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)


Study: TypeAlias = optuna.Study
COLD = ("config", "traceback", "log")  # long attributes, shown only for a single trial


class Snapshot(optuna.Study):
    """A study with a fixed snapshot of its trials, for Optuna's functions that read studies."""

    def __init__(
        self, study: optuna.Study, trials: Iterable[FrozenTrial] | None = None, without: Collection[str] = COLD
    ) -> None:
        super().__init__(study.study_name, study._storage)
        self._seen = list(read_trials(study, without) if trials is None else trials)

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        """The trials in the given states (default: all), not copied."""
        return [trial for trial in self._seen if states is None or trial.state in states]
