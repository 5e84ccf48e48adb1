"""Storages underneath: opening them, one process at a time, many attributes at once, patience through outages."""

import json
import logging
import re
import sqlite3
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

import optuna
from filelock import FileLock, Timeout
from optuna.exceptions import OptunaError, StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from sqlalchemy import URL, Engine, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError, PendingRollbackError, SQLAlchemyError

from subnet_search.errors import RunError, UserError
from subnet_search.redaction import remember
from subnet_search.redaction import safe_url as safe_url
from subnet_search.redaction import scrub as scrub

Result = TypeVar("Result")
Args = TypeVarTuple("Args")

DEFAULT_STORAGE = "sqlite:///runs/studies.db"
PATIENCE = 600.0  # seconds that a lock or a server that does not answer is waited for
LONGEST_PAUSE = 15.0  # seconds between two tries
LONGEST_REASON = 300  # letters of what a database or a reader says
BUSY = 60.0  # seconds that SQLite waits for another process to end its write
RACES = 8  # tries at making a storage, when other processes make it at the same moment
POSTGRES = {  # libpq's connection options: a peer that vanishes is noticed within a minute or so
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
    "fallback_application_name": "subnet-search",
}

LOST_RACE = re.compile("already exists|unique constraint|database is locked", re.IGNORECASE)
SQLITE_OUTAGES = re.compile("SQLITE_(BUSY|LOCKED|IOERR|FULL|CANTOPEN)")

log = logging.getLogger(__name__)
optuna.logging.set_verbosity(optuna.logging.ERROR)  # every event Optuna logs is in the storage, and shown from there

_threads = threading.Lock()  # for storages that no other process can reach


def open_storage(url: str, create: bool = False, wait: float = 0) -> BaseStorage:
    """Any storage that Optuna knows by a URL: SQLite, PostgreSQL (needs the extra `postgres`), MySQL.

    SQLite files get write-ahead logging, ten times faster and safe on a local disk; `create` makes a missing one.
    One that does not answer is tried for `wait` seconds. Raises UserError, without the URL's password, when there is no
    such storage; RunError when that was waited for in vain.
    """
    parsed = _parse(url)
    remember(url)
    options: dict[str, Any] = {"pool_pre_ping": True}
    match parsed.get_backend_name():
        case "sqlite":
            _require(parsed, create)
            options = {"connect_args": {"timeout": BUSY}, "pool_events": [(_write_ahead, "connect")]}
        case "postgresql":
            if parsed.drivername == "postgresql":
                parsed = parsed.set(drivername="postgresql+psycopg")
            if parsed.get_driver_name() in ("psycopg", "psycopg2"):
                options["connect_args"] = {key: value for key, value in POSTGRES.items() if key not in parsed.query}
                options["pool_events"] = [(_keep_alive, "connect")]
    try:
        storage = patiently(_with_tables, parsed, options, patience=wait) if wait else _with_tables(parsed, options)
    except ImportError as error:
        reason = f"{error.__cause__ or error}"
        if parsed.drivername == "postgresql+psycopg":
            reason = "PostgreSQL needs psycopg (pip install 'subnet-search[postgres]')"
        raise UserError(f"cannot open the storage {safe_url(url)}: {scrub(reason, url)}") from error
    except Exception as error:  # of a file that is damaged or none of ours, a server, bad options in a URL
        raise UserError(f"cannot open the storage {safe_url(url)}: {scrub(in_one_line(error), url)}") from error
    if (kind := parsed.get_backend_name()) not in ("sqlite", "postgresql"):
        log.warning("no lock on a %s storage: with several workers a study may exceed its budget by workers - 1", kind)
    return storage


def _parse(url: str) -> URL:
    try:
        parsed = make_url(re.sub("^postgres:", "postgresql:", url))
        parsed.get_dialect()  # raises ArgumentError for a database that SQLAlchemy does not know
    except (ArgumentError, ValueError):
        raise UserError(f"not a storage URL: {safe_url(url)!r}; for example sqlite:///runs/studies.db") from None
    except ImportError:
        pass  # the driver is missing: said when it is opened
    if parsed.get_backend_name() != "sqlite" and "@" in f"{parsed.host}{parsed.database}":
        raise UserError(f"not a storage URL: {safe_url(url)!r}; in a password, write @ as %40, : as %3A and / as %2F")
    return parsed


def _require(parsed: URL, create: bool) -> None:
    if not parsed.database or parsed.database == ":memory:":
        return
    if not create and not Path(parsed.database).is_file():
        raise UserError(f"no studies yet: {parsed.database} does not exist (start one with: subnet-search study run)")
    try:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder of {parsed.database}: {error.strerror}") from error
    if _is_foreign(Path(parsed.database)):  # into which Optuna would write its tables
        raise UserError(f"{parsed.database} is a database of another program, with no studies of Optuna's in it")


def _is_foreign(path: Path) -> bool:
    """Whether a SQLite file has tables, and none of Optuna's. What cannot be read is not: opening it says why."""
    with suppress(sqlite3.Error, OSError), closing(_only_read(path)) as found:
        tables = {name for (name,) in found.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        return bool(tables) and models.StudyModel.__tablename__ not in tables
    return False


def _only_read(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", timeout=1, uri=True)


def _with_tables(parsed: URL, options: dict[str, Any]) -> RDBStorage:
    """Optuna makes missing tables without a lock, so whoever loses the race finds them half made, and looks again."""
    url = parsed.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")  # Optuna formats it
    began = time.monotonic()
    for tried in range(1, RACES + 1):
        try:
            return RDBStorage(url, engine_kwargs=dict(options))
        except (DBAPIError, StorageInternalError) as error:
            waited = time.monotonic() - began  # for a lock, which nobody holds for so long who makes tables
            if tried == RACES or waited > BUSY or not LOST_RACE.search(str(error.__cause__ or error)):
                raise
            time.sleep(0.1 * tried)
    raise AssertionError("the last try returns or raises")


def _write_ahead(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def _keep_alive(connection: Any, _: Any) -> None:
    """The server too must notice within a minute when a client's machine is gone: its locks are released then."""
    cursor = connection.cursor()
    for option in ("idle = 30", "interval = 10", "count = 3"):
        cursor.execute(f"SET tcp_keepalives_{option}")
    cursor.execute("SET tcp_user_timeout = 60000")
    cursor.close()
    connection.commit()


def rdb(storage: BaseStorage) -> RDBStorage | None:
    """The database behind a storage (Optuna wraps it in a cache), None when it has none."""
    inner = storage._backend if isinstance(storage, _CachedStorage) else storage
    return inner if isinstance(inner, RDBStorage) else None


def exclusive(storage: BaseStorage, name: str, patience: float = PATIENCE) -> AbstractContextManager[object]:
    """One process (and thread) at a time works on the study `name` of a storage: `with exclusive(...):`. Not re-entrant.

    A file lock beside a SQLite file, an advisory lock of a PostgreSQL server: both are released when their holder is
    killed. Raises RunError when another has held it for `patience` seconds.
    """
    database = rdb(storage)
    if database and database.engine.dialect.name == "postgresql":
        return _advisory(database.engine, name, patience)
    file = database.engine.url.database if database and database.engine.dialect.name == "sqlite" else None
    return _beside(file, name, patience) if file and file != ":memory:" else _threads


@contextmanager
def _beside(file: str, name: str, patience: float) -> Iterator[None]:
    lock = FileLock(f"{Path(file).resolve()}.lock")
    try:
        lock.acquire(timeout=patience, poll_interval=0.01)
    except Timeout:
        raise RunError(_stuck(name, patience, f"who has {lock.lock_file} open?")) from None
    except OSError as error:
        raise RunError(f"cannot lock {lock.lock_file}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _advisory(engine: Engine, name: str, patience: float) -> Iterator[None]:
    """The lock belongs to a transaction of a connection of its own, so it ends with either, however they end."""
    key = int.from_bytes(blake2b(f"subnet-search {name}".encode(), digest_size=8).digest(), "big", signed=True)
    with engine.connect() as connection:
        try:
            connection.exec_driver_sql(
                f"SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL lock_timeout = {patience * 1000:.0f};"
                f"SELECT pg_advisory_xact_lock({key})"
            )
        except OperationalError as error:
            if type(error.orig).__name__ == "LockNotAvailable":  # so called by every driver
                raise RunError(_stuck(name, patience, "see pg_locks on the server")) from None
            raise
        try:
            yield
        finally:
            try:
                connection.commit()
            except DBAPIError as error:  # what was done under the lock is done; only the server went away in between
                log.warning("the lock of the study %r was lost before its end: %s", name, scrub(_reason(error)))


def _stuck(name: str, patience: float, where: str) -> str:
    return f"the study {name!r} has been locked by another process for {patience:g} seconds; {where}"


def set_attrs(storage: BaseStorage, trial_id: int, attrs: Mapping[str, Any], system: bool = False) -> None:
    """Write many user (or system) attributes of a trial that has not ended: all of them, in one transaction, or none.

    Storages other than SQLite and PostgreSQL write one after the other. Raises TypeError for what JSON cannot hold,
    KeyError when there is no such trial, Optuna's UpdateFinishedTrialError when it has ended.
    """
    database = rdb(storage)
    kind = database.engine.dialect.name if database else ""
    if not database or kind not in ("sqlite", "postgresql"):
        write = storage.set_trial_system_attr if system else storage.set_trial_user_attr
        for key, value in attrs.items():
            write(trial_id, key, value)
        return
    model = models.TrialSystemAttributeModel if system else models.TrialUserAttributeModel
    rows = [{"trial_id": trial_id, "key": key, "value_json": json.dumps(value)} for key, value in attrs.items()]
    insert = (sqlite.insert if kind == "sqlite" else postgresql.insert)(model)
    upsert = insert.on_conflict_do_update(
        index_elements=[model.trial_id, model.key], set_={"value_json": insert.excluded.value_json}
    )
    with _create_scoped_session(database.scoped_session) as session:
        trial: Any = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
        database.check_trial_is_updatable(trial_id, trial.state)
        if rows:
            session.execute(upsert.values(rows))


def patiently(call: Callable[[*Args], Result], *args: *Args, patience: float = PATIENCE) -> Result:
    """The result of a call that talks to a storage, tried again while the storage fails.

    A write whose answer was lost is written again, so what is called must bear being done twice. Raises RunError
    when `patience` seconds were not enough; every error that is no outage passes through at once.
    """
    since, pause = 0.0, 0.1
    while True:
        try:
            return call(*args)
        except (StorageInternalError, SQLAlchemyError) as error:
            if not _outage(error):
                raise
            reason = scrub(_reason(error))
            if not since:
                since = time.monotonic()
                log.warning("the storage fails, trying again for up to %.0f seconds: %s", patience, reason)
            waited = time.monotonic() - since
            if waited >= patience:
                raise RunError(f"the storage has been failing for {waited:.0f} seconds: {reason}") from None
        time.sleep(min(pause, max(patience - waited, 0.01)))
        pause = min(2 * pause, LONGEST_PAUSE)


def _outage(error: BaseException) -> bool:
    """Whether a storage's error may go away by itself."""
    error = _origin(error)
    if not isinstance(error, DBAPIError):
        return False
    if isinstance(error.orig, sqlite3.Error):  # its OperationalError is also raised for a missing table
        return bool(SQLITE_OUTAGES.match(getattr(error.orig, "sqlite_errorname", "")))
    return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)


def _origin(error: BaseException) -> BaseException:
    """The database's error behind Optuna's, and behind SQLAlchemy's, when Optuna went on with a broken connection."""
    behind = {StorageInternalError: error.__cause__, PendingRollbackError: error.__context__}.get(type(error))
    return _origin(behind) if behind else error


@contextmanager
def guarded(what: str, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Say in one line that something stored cannot be read, whatever goes wrong while it is: nobody knows all that can.

    Raises UserError that names `what`; RunError when the storage is away. Our own errors, those of files and `passing`
    pass through.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, (UserError, RunError, OSError, *passing)):
            raise
        if _outage(error):
            raise RunError(f"the storage fails: {in_one_line(error)}") from error
        raise UserError(f"{what} cannot be read: it is damaged, or another program's ({in_one_line(error)})") from error


def in_one_line(error: BaseException) -> str:
    """What went wrong, not too long, and without a password."""
    origin, text = _origin(error), scrub(_reason(error))
    told = isinstance(origin, UserError | RunError | OptunaError | SQLAlchemyError | OSError)
    return textwrap.shorten(text if told else f"{type(origin).__name__}: {text}", LONGEST_REASON, placeholder=" ...")


def _reason(error: BaseException) -> str:
    """What a database said, in one line."""
    error = _origin(error)
    lines = str(getattr(error, "orig", None) or error).splitlines() or [type(error).__name__]
    return re.sub("^connection failed: |FATAL: +", "", lines[0])
