"""Write trials fast: one statement per table, where Optuna queries every cell before writing it."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import Connection, bindparam, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from subnet_search.search.storage.connect import rdb
from subnet_search.search.storage.optuna_private import create_scoped_session, models

_in_words = cache(distribution_to_json)


def queued_again(trial: FrozenTrial, attrs: dict[str, Any]) -> FrozenTrial:
    """A queued trial with the parameters of another."""
    return create_trial(state=TrialState.WAITING, params=trial.params, distributions=trial.distributions, user_attrs=attrs)


def insert_trials(
    database: RDBStorage, study_id: int, trials: Sequence[FrozenTrial], number: int | None = None
) -> dict[int, int]:
    """Add trials to a study in one transaction, 50 times faster than Optuna; returns their ids by number.

    number   if given, add the trials only if this is the next trial number
    """
    with database.engine.begin() as connection:
        connection.execute(_LOCK, {"study": study_id})
        if number is not None and number != connection.execute(_COUNT, {"study": study_id}).scalar_one():
            return {}
        return write_trials(connection, study_id, trials)


def write_trials(connection: Connection, study_id: int, trials: Sequence[FrozenTrial]) -> dict[int, int]:
    """Add trials to a study in the given transaction; returns their ids by number."""
    first = connection.execute(_COUNT, {"study": study_id}).scalar_one()
    rows = [
        {
            "number": number,
            "study_id": study_id,
            "state": trial.state,
            "datetime_start": _utc(trial.datetime_start),
            "datetime_complete": _utc(trial.datetime_complete),
        }
        for number, trial in enumerate(trials, first)
    ]
    write_rows(connection, models.TrialModel, rows)
    ids = {row.number: row.trial_id for row in connection.execute(_IDS, {"study": study_id, "first": first})}
    added = [(ids[number], trial) for number, trial in enumerate(trials, first)]
    write_rows(connection, models.TrialValueModel, [row for id, trial in added for row in _values(id, trial.values)])
    write_rows(connection, models.TrialIntermediateValueModel, [row for id, trial in added for row in _reports(id, trial)])
    write_rows(
        connection,
        models.TrialParamModel,
        [row for id, trial in added for row in _params(id, trial.params, trial.distributions)],
    )
    user = [row for id, trial in added for row in attributes(trial.user_attrs, trial_id=id)]
    system = [row for id, trial in added for row in attributes(trial.system_attrs, trial_id=id)]
    write_rows(connection, models.TrialUserAttributeModel, user)
    write_rows(connection, models.TrialSystemAttributeModel, system)
    return ids


def replace_params(
    database: RDBStorage, params: Mapping[int, Mapping[str, Any]], distributions: Mapping[str, BaseDistribution]
) -> None:
    """Replace the parameters of trials, by their ids, in one transaction; finished trials too, which Optuna does not allow."""
    table = models.TrialParamModel.__table__
    with database.engine.begin() as connection:
        connection.execute(delete(table).where(table.c.trial_id.in_(params)))
        write_rows(
            connection, models.TrialParamModel, [row for id, own in params.items() for row in _params(id, own, distributions)]
        )


def delete_system_attrs(database: RDBStorage, keys: Mapping[int, Sequence[str]]) -> None:
    """Delete system attributes of trials, by their ids, in one transaction; of finished trials too."""
    table = models.TrialSystemAttributeModel.__table__
    with database.engine.begin() as connection:
        for trial_id, names in keys.items():
            connection.execute(delete(table).where(table.c.trial_id == trial_id, table.c.key.in_(names)))


def end_trial(
    database: RDBStorage,
    trial_id: int,
    token: str,
    state: TrialState,
    values: Sequence[float] | None,
    attrs: Mapping[str, Any],
    noted: Mapping[str, Any],
) -> bool:
    """Store the end of a trial in one transaction. Returns False, and stores nothing, if it does not run under the token."""
    now = datetime.now(UTC).replace(tzinfo=None)
    with database.engine.begin() as connection:
        # The update comes first, so that it locks the row.
        ended = {"state": state, "datetime_complete": now, "trial": trial_id, "token": f'%"token": "{token}"%'}
        if not connection.execute(_END, ended).rowcount:
            return False
        _replace(connection, models.TrialUserAttributeModel, trial_id, attrs)
        _replace(connection, models.TrialSystemAttributeModel, trial_id, noted)
        write_rows(connection, models.TrialValueModel, _values(trial_id, values))
    return True


def add_attrs(database: RDBStorage, trial_id: int, attrs: Mapping[str, Any]) -> None:
    """Write user attributes of a trial that has ended, which Optuna refuses."""
    with database.engine.begin() as connection:
        _replace(connection, models.TrialUserAttributeModel, trial_id, attrs)


def _replace(connection: Connection, model: Any, trial_id: int, attrs: Mapping[str, Any]) -> None:
    """Write attributes of a trial in place of those of the same keys."""
    if attrs:
        table = model.__table__
        connection.execute(delete(table).where(table.c.trial_id == trial_id, table.c.key.in_(attrs)))
        write_rows(connection, model, attributes(attrs, trial_id=trial_id))


def write_rows(connection: Connection, model: Any, rows: list[dict[str, Any]]) -> None:
    """Insert rows into the table of one of Optuna's models."""
    if rows:
        connection.execute(insert(model.__table__), rows)


def attributes(attrs: Mapping[str, Any], **owner: int) -> list[dict[str, Any]]:
    """Attributes of a study or a trial as rows."""
    return [{**owner, "key": key, "value_json": json.dumps(value)} for key, value in attrs.items()]


def _values(id: int, values: Sequence[float] | None) -> list[dict[str, Any]]:
    stored = map(models.TrialValueModel.value_to_stored_repr, values or ())
    return [
        {"trial_id": id, "objective": objective, "value": number, "value_type": kind}
        for objective, (number, kind) in enumerate(stored)
    ]


def _reports(id: int, trial: FrozenTrial) -> list[dict[str, Any]]:
    stored = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr
    rows = []
    for step, value in trial.intermediate_values.items():
        number, kind = stored(value)
        rows.append({"trial_id": id, "step": step, "intermediate_value": number, "intermediate_value_type": kind})
    return rows


def _params(id: int, params: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]) -> list[dict[str, Any]]:
    rows = []
    for name, value in params.items():
        domain = distributions[name]
        row = {"trial_id": id, "param_name": name, "param_value": domain.to_internal_repr(value)}
        rows.append({**row, "distribution_json": _in_words(domain)})
    return rows


def _utc(moment: datetime | None) -> datetime | None:
    """Optuna shows naive local time and stores naive UTC."""
    return moment and moment.astimezone(UTC).replace(tzinfo=None)


# Statements are built once: building one takes as long as running it.
_study, _trial, _holder = (
    model.__table__.c for model in (models.StudyModel, models.TrialModel, models.TrialUserAttributeModel)
)
_LOCK = select(_study.study_id).where(_study.study_id == bindparam("study")).with_for_update()  # as Optuna does
_COUNT = select(func.count(_trial.trial_id)).where(_trial.study_id == bindparam("study"))
_IDS = select(_trial.number, _trial.trial_id).where(_trial.study_id == bindparam("study"), _trial.number >= bindparam("first"))
_END = update(models.TrialModel.__table__).where(
    _trial.trial_id == bindparam("trial"),
    _trial.state == TrialState.RUNNING,
    select(_holder.value_json)
    .where(_holder.trial_id == bindparam("trial"), _holder.key == "worker")
    .scalar_subquery()
    .like(bindparam("token")),
)


def set_attrs(storage: BaseStorage, trial_id: int, attrs: Mapping[str, Any], system: bool = False) -> None:
    """Write user (or system) attributes of an unfinished trial in one transaction.

    Storages other than SQLite and PostgreSQL write them one by one. Raises TypeError for values that are not JSON,
    KeyError for an unknown trial, Optuna's UpdateFinishedTrialError for a finished one.
    """
    database = rdb(storage)
    kind = database.engine.dialect.name if database else ""
    if not database or kind not in ("sqlite", "postgresql"):
        write = storage.set_trial_system_attr if system else storage.set_trial_user_attr
        for key, value in attrs.items():
            write(trial_id, key, value)
        return
    model = models.TrialSystemAttributeModel if system else models.TrialUserAttributeModel
    rows = attributes(attrs, trial_id=trial_id)
    insert = (sqlite.insert if kind == "sqlite" else postgresql.insert)(model)
    upsert = insert.on_conflict_do_update(
        index_elements=[model.trial_id, model.key], set_={"value_json": insert.excluded.value_json}
    )
    with create_scoped_session(database.scoped_session) as session:
        trial: Any = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
        database.check_trial_is_updatable(trial_id, trial.state)
        if rows:
            session.execute(upsert.values(rows))
