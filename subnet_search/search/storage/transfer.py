"""A study as a SQLite file: out of one storage, into another, or for Optuna and its dashboard to open as it is.

`optuna.copy_study` does not do: it writes one trial after another (5,000 take minutes, here a second), a copy that is
interrupted stays half done, a trial that was running would run for ever, and notes of the dashboard go to other trials.
So trials go through our own bulk reader and writer. A checksum over all rows detects a damaged file.
"""

import json
import logging
import math
import re
import sqlite3
import zlib
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import TrialState
from sqlalchemy import select

from subnet_search.core.documents import read_json
from subnet_search.core.errors import UserError, reading
from subnet_search.core.tensor_files import write_atomically
from subnet_search.search.storage.connect import database_at, only_read, rdb
from subnet_search.search.storage.locks import exclusive
from subnet_search.search.storage.optuna_private import models
from subnet_search.search.storage.read import Snapshot
from subnet_search.search.storage.records import TrialRecord
from subnet_search.search.storage.retry import guarded, patiently
from subnet_search.search.storage.study_folder import new_folder
from subnet_search.search.storage.write import attributes, write_rows, write_trials

MARK = b"SSst"  # SQLite's application id of an exported file
JOURNAL, MARKED = 18, slice(68, 72)  # where a SQLite file's header has its journal mode (1: no write-ahead log) and that id
NOTE = re.compile(r"(?<=^dashboard:)\d+(?=:)")  # a dashboard's note on a trial is the study's, under the trial's id
ELSEWHERE = "its study was imported, and its worker is elsewhere"

log = logging.getLogger(__name__)


def write_export(study: optuna.Study, path: str | Path) -> None:
    """Write a study to a SQLite file, whole or not at all; an earlier export is replaced.

    Raises UserError for a name that does not end in .db or a file that is no export, RunError when it cannot be written.
    """
    if (path := Path(path)).suffix != ".db":
        raise UserError(f"a study is exported to a SQLite file, whose name ends in .db: got {path}")
    if path.exists():
        with reading(path), open(path, "rb") as old:
            head = old.read(100)
        if head[MARKED] != MARK or head[JOURNAL] != 1:
            raise UserError(
                f"{path} exists, and is no file that `study export` wrote, or a storage by now: choose another name"
            )
    memory = database_at("sqlite://")
    _copy(Snapshot(study, without=()), memory, study.study_name, study.user_attrs)
    with memory.engine.connect() as connection:
        file = cast(sqlite3.Connection, connection.connection.driver_connection)
        file.execute(f"PRAGMA application_id = {int.from_bytes(MARK)}")
        file.execute(f"PRAGMA user_version = {_checksum(file)}")
        content = file.serialize()
    memory.engine.dispose()
    write_atomically(path, content)


def import_study(path: str | Path, storage: BaseStorage, name: str | None = None) -> optuna.Study:
    """A new study out of a file: whole, or not at all. Under its own name, or another.

    Trials that were under way wait for a worker here, and new run folders are its own. Raises UserError when the storage
    has a study of the name, and as `study_in` does.
    """
    if (database := rdb(storage)) is None:
        raise UserError("a study can only be imported into a database")
    study = study_in(path)
    with guarded(str(path)):
        patiently(_store, study, database, name or study.study_name)
        return optuna.load_study(study_name=name or study.study_name, storage=storage)


def study_in(path: str | Path) -> Snapshot:
    """The study in a file, exactly as it is there. The file is only read, and may be any of Optuna's that holds one study.

    Raises UserError when it is missing, damaged, made by a newer Optuna, or something else.
    """
    with reading(path, "a study that `study export` wrote"):
        with open(path, "rb") as file:
            if file.read(1) == b"{":
                raise UserError(
                    f"{path} is JSON, and a study is exported to a SQLite file by now: import it with the version that wrote "
                    "it, then export it with this one (study export NAME FILE.db)"
                )
        with closing(only_read(Path(path))) as rows:
            [(checksum,)] = rows.execute("PRAGMA user_version")
            if checksum not in (0, _checksum(rows)):
                raise UserError(
                    f"{path} is damaged, or was changed after its export: if it was changed on purpose, export the study again "
                    f"(study export NAME FILE.db --storage sqlite:///{path})"
                )
        options = {"creator": lambda: only_read(Path(path))}
        storage = database_at("sqlite://", engine_kwargs=options, skip_table_creation=True)
        names = optuna.get_all_study_names(storage)
        if len(names) != 1:
            found = f"several studies ({', '.join(sorted(names))})" if names else "no study"
            raise UserError(f"{path} holds {found}, and not one: use `study export NAME --storage sqlite:///{path}` for one")
        study = Snapshot(optuna.load_study(study_name=names[0], storage=storage), without=())
        _check_content(study, f"the specification in {path}")
        return study


def _checksum(rows: sqlite3.Connection) -> int:
    """CRC-32 over all rows of Optuna's tables, as SQLite's `user_version` can hold it; never 0, which means no checksum."""
    checksum = 0
    for table in models.BaseModel.metadata.sorted_tables:
        for row in rows.execute(f"SELECT * FROM {table.name} ORDER BY rowid"):
            checksum = zlib.crc32(repr(row).encode(), checksum)
    return (checksum | 1) - 2**31


def _check_content(study: Snapshot, what: str) -> None:
    """Raise an error for a study that a database can hold, and we or Optuna cannot. what: its specification, in words."""
    if not isinstance(read_json(study.user_attrs.get("spec", "{}"), what), dict):
        raise ValueError(what)
    for place, trial in enumerate(study.get_trials()):
        count = len(trial.values or ())
        if trial.number != place or count not in (0, len(study.directions)) or (trial.state == TrialState.COMPLETE) > count:
            raise ValueError(f"the trial at place {place} is none of this study")
        for name, domain in trial.distributions.items():
            domain.to_internal_repr(trial.params[name])


def _store(study: Snapshot, database: RDBStorage, name: str) -> None:
    user = dict(study.user_attrs)
    if "spec" in user:
        user["spec"] = json.dumps(_rebased(json.loads(user["spec"]), name))
    if "folder" in user:  # two studies must never write to one
        user["folder"] = new_folder(name)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):  # its worker is elsewhere: it waits for one here
        trial.user_attrs |= TrialRecord(trial).interrupted(ELSEWHERE)
        trial.state = TrialState.WAITING
    with exclusive(database, name):
        if name in optuna.get_all_study_names(database):
            raise UserError(f"the storage has a study {name!r} already: give this one another name (--name)")
        _copy(study, database, name, user)


def _copy(study: Snapshot, database: RDBStorage, name: str, user: Mapping[str, Any]) -> None:
    """Add a copy of a study to a database, with other user attributes, in one transaction."""
    trials = study.get_trials()
    for trial in trials:
        if trial.state == TrialState.COMPLETE and any(map(math.isnan, trial.values)):  # Optuna could not read it
            trial.state, trial.values = TrialState.FAIL, None
            trial.user_attrs["reason"] = "its result is NaN: not a number that can be compared"
    with database.engine.begin() as connection:
        write_rows(connection, models.StudyModel, [{"study_name": name}])
        study_id = connection.scalars(select(models.StudyModel.study_id).filter_by(study_name=name)).one()
        added = write_trials(connection, study_id, trials)
        ids = {str(trial._trial_id): str(added[trial.number]) for trial in trials}
        system = {
            NOTE.sub(lambda id: ids.get(id[0], id[0]), key): value
            for key, value in study._storage.get_study_system_attrs(study._study_id).items()
        }
        directions = [{"objective": place, "direction": direction} for place, direction in enumerate(study.directions)]
        for model, rows in (
            (models.StudyDirectionModel, directions),
            (models.StudyUserAttributeModel, attributes(user)),
            (models.StudySystemAttributeModel, attributes(system)),
        ):
            write_rows(connection, model, [{"study_id": study_id, **row} for row in rows])


def _rebased(spec: dict[str, Any], name: str) -> dict[str, Any]:
    """A specification under a name. A file does not decide on buckets, or folders elsewhere, that artifacts are written to."""
    kept = spec.get("artifacts")
    inside = isinstance(kept, str) and not Path(kept).expanduser().is_absolute() and ".." not in Path(kept).parts
    if kept is not None and not inside:
        where = kept if isinstance(kept, str) else "a bucket"
        log.warning("the study kept artifacts in %s, and here in no place, until `study run SPEC` gives it one", where)
        kept = None
    return {**spec, "name": name, "artifacts": kept}
