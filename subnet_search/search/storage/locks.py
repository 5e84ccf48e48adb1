"""Locks on studies."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from hashlib import blake2b
from pathlib import Path

from filelock import FileLock, Timeout
from optuna.storages import BaseStorage
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, OperationalError

from subnet_search.core.errors import RunError
from subnet_search.core.redaction import scrub as scrub
from subnet_search.search.storage.connect import log, rdb
from subnet_search.search.storage.retry import PATIENCE, database_error

_threads = threading.Lock()  # for in-memory storages


def exclusive(storage: BaseStorage, name: str, patience: float = PATIENCE) -> AbstractContextManager[object]:
    """Lock the study `name` against other processes and threads: `with exclusive(...):`. Not re-entrant.

    A file lock next to a SQLite file, or an advisory lock of PostgreSQL; both are released when the holder is killed. Raises
    RunError when the lock is not free within `patience` seconds.
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
        raise RunError(_stuck(name, patience, f"check which process has {lock.lock_file} open")) from None
    except OSError as error:
        raise RunError(f"cannot lock {lock.lock_file}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _advisory(engine: Engine, name: str, patience: float) -> Iterator[None]:
    """Take the lock in a transaction on a separate connection; it is released when either ends, even by a kill."""
    key = int.from_bytes(blake2b(f"subnet-search {name}".encode(), digest_size=8).digest(), "big", signed=True)
    with engine.connect() as connection:
        try:
            connection.exec_driver_sql(
                f"SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL lock_timeout = {patience * 1000:.0f};"
                f"SELECT pg_advisory_xact_lock({key})"
            )
        except OperationalError as error:
            if type(error.orig).__name__ == "LockNotAvailable":  # this name in every driver
                raise RunError(_stuck(name, patience, "see pg_locks on the server")) from None
            raise
        try:
            yield
        finally:
            try:
                connection.commit()
            except DBAPIError as error:  # the work under the lock is complete; only the connection was lost
                log.warning("the lock of the study %r was lost: %s", name, scrub(database_error(error)))


def _stuck(name: str, patience: float, where: str) -> str:
    return f"the study {name!r} has been locked by another process for {patience:g} seconds; {where}"
