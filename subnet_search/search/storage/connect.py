"""Open storages and load studies."""

import logging
import re
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from subnet_search.core.errors import UserError, unknown
from subnet_search.core.redaction import remember
from subnet_search.core.redaction import safe_url as safe_url
from subnet_search.core.redaction import scrub as scrub
from subnet_search.search.storage.optuna_private import CachedStorage, models
from subnet_search.search.storage.retry import in_one_line, patiently

DEFAULT_STORAGE = "sqlite:///runs/studies.db"
ELSEWHERE = "the default storage: if the study's YAML file names another, give that one (--storage URL)"
BUSY = 60.0  # seconds that SQLite waits for a write of another process
RACES = 8  # attempts to create the tables while other processes create them
POSTGRES = {  # libpq connection options: a lost peer is detected within about a minute
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
    "fallback_application_name": "subnet-search",
}

NEWEST_SCHEMA: list[str] = []  # the one that the installed Optuna reads, once it is known
LOST_RACE = re.compile("already exists|unique constraint|database is locked", re.IGNORECASE)

log = logging.getLogger(__name__)
optuna.logging.set_verbosity(optuna.logging.ERROR)  # progress is read from the storage instead


def open_storage(url: str, create: bool = False, wait: float = 0) -> BaseStorage:
    """Open a storage by its URL: SQLite, PostgreSQL (needs the extra `postgres`), or MySQL.

    create   create a missing SQLite file
    wait     seconds to wait for a server that does not respond

    SQLite files use write-ahead logging, which is ten times faster and safe on a local disk. Raises UserError, without the
    URL's password, if there is no such storage; RunError if it does not respond within `wait` seconds.
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
    except Exception as error:  # damaged or foreign file, server error, bad URL options
        raise UserError(f"cannot open the storage {safe_url(url)}: {scrub(in_one_line(error), url)}") from error
    if (kind := parsed.get_backend_name()) not in ("sqlite", "postgresql"):
        log.warning("no lock on a %s storage: with several workers a study may exceed its budget by workers - 1", kind)
    return storage


def _parse(url: str) -> URL:
    if not isinstance(url, str):  # from Python
        raise UserError(
            f"a storage is given by its URL, such as sqlite:///runs/studies.db, got an object: {type(url).__name__}"
        )
    try:
        parsed = make_url(re.sub("^postgres:", "postgresql:", url))
        parsed.get_dialect()  # raises ArgumentError for a database that SQLAlchemy does not know
    except (ArgumentError, ValueError):
        raise UserError(f"not a storage URL: {safe_url(url)!r}; for example sqlite:///runs/studies.db") from None
    except ImportError:
        pass  # the driver is missing: reported when the storage is opened
    if parsed.get_backend_name() != "sqlite" and "@" in f"{parsed.host}{parsed.database}":
        raise UserError(f"not a storage URL: {safe_url(url)!r}; in a password, write @ as %40, : as %3A and / as %2F")
    return parsed


def _require(parsed: URL, create: bool) -> None:
    if not parsed.database or parsed.database == ":memory:":
        return
    if not create and not Path(parsed.database).is_file():
        where = f"; it is {ELSEWHERE}" if f"sqlite:///{parsed.database}" == DEFAULT_STORAGE else ""
        raise UserError(f"no studies yet: {parsed.database} does not exist (start one with: subnet-search study run){where}")
    try:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create the folder of {parsed.database}: {error.strerror}") from error
    if _is_foreign(Path(parsed.database)):  # Optuna would add its tables to it
        raise UserError(f"{parsed.database} is a SQLite file of another program, without Optuna studies")


def _is_foreign(path: Path) -> bool:
    """Whether a SQLite file has tables but none of Optuna's. False if it cannot be read: opening it reports the error."""
    with suppress(sqlite3.Error, OSError), closing(only_read(path)) as found:
        tables = {name for (name,) in found.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        return bool(tables) and models.StudyModel.__tablename__ not in tables
    return False


def only_read(path: Path) -> sqlite3.Connection:
    """Open a SQLite file read-only."""
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", timeout=1, uri=True)


def _with_tables(parsed: URL, options: dict[str, Any]) -> RDBStorage:
    """Open a storage and create missing tables. Optuna does this without a lock, so a lost race is retried."""
    url = parsed.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")  # Optuna formats it
    began = time.monotonic()
    for tried in range(1, RACES + 1):
        try:
            return database_at(url, engine_kwargs=dict(options))
        except (DBAPIError, StorageInternalError) as error:
            waited = time.monotonic() - began  # longer than any process needs to create tables
            if tried == RACES or waited > BUSY or not LOST_RACE.search(str(error.__cause__ or error)):
                raise
            time.sleep(0.1 * tried)
    raise AssertionError("the last try returns or raises")


def database_at(url: str, **options: Any) -> RDBStorage:
    """A database whose tables have the schema of the installed Optuna; `options` are those of `RDBStorage`.

    Optuna's own check of the schema loads all its migration scripts, which takes 40 ms. Here only the first of a process
    does, and one that fails, with its error.
    """
    storage = RDBStorage(url, skip_compatibility_check=True, **options)
    with suppress(Exception):  # damaged tables: the check below reports them
        if not NEWEST_SCHEMA:
            NEWEST_SCHEMA.append(storage.get_head_version())
        if storage.get_current_version() == NEWEST_SCHEMA[0]:
            storage.skip_compatibility_check = False  # a copy in another process checks again
            return storage
    return RDBStorage(url, **options)


def _write_ahead(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def _keep_alive(connection: Any, _: Any) -> None:
    """Let the server detect a lost client within a minute, so that its locks are released."""
    cursor = connection.cursor()
    for option in ("idle = 30", "interval = 10", "count = 3"):
        cursor.execute(f"SET tcp_keepalives_{option}")
    cursor.execute("SET tcp_user_timeout = 60000")
    cursor.close()
    connection.commit()


def database_of(study: optuna.Study) -> RDBStorage:
    """The database of a study that this package made, without Optuna's cache."""
    database = rdb(study._storage)
    assert database is not None, "studies are made in databases"
    return database


def rdb(storage: BaseStorage) -> RDBStorage | None:
    """The database of a storage, without Optuna's cache; None if it is not a database."""
    inner = storage._backend if isinstance(storage, CachedStorage) else storage
    return inner if isinstance(inner, RDBStorage) else None


def load_study(name: str, storage: BaseStorage, **options: Any) -> optuna.Study:
    """Load a study. Raises UserError with the storage and the most similar names if it does not exist."""
    try:
        return optuna.load_study(study_name=name, storage=storage, **options)
    except KeyError as error:
        names, place = optuna.get_all_study_names(storage), _place(storage)
        if not names:
            raise UserError(f"no study {name!r}: there are no studies yet in {place} (subnet-search study run)") from error
        raise unknown("study", name, names, where=f"in {place}") from error


def _place(storage: BaseStorage) -> str:
    """The URL of a storage, without its password, for a message."""
    database = rdb(storage)
    if database is None:
        return "this storage"
    return f"{safe_url(database.url)}{f', {ELSEWHERE}' if database.url == DEFAULT_STORAGE else ''}"
