"""Retry calls to a storage that fails."""

import logging
import re
import sqlite3
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, TypeVarTuple

from optuna.exceptions import OptunaError, StorageInternalError
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, PendingRollbackError, SQLAlchemyError

from subnet_search.core.errors import RunError, UserError
from subnet_search.core.redaction import scrub as scrub

log = logging.getLogger(__name__)

Result = TypeVar("Result")
Args = TypeVarTuple("Args")
PATIENCE = 600.0  # seconds to wait for a lock or a server that does not respond
LONGEST_PAUSE = 15.0  # seconds between two attempts
LONGEST_REASON = 300  # characters of an error message
SQLITE_OUTAGES = re.compile("SQLITE_(BUSY|LOCKED|IOERR|FULL|CANTOPEN)")


def patiently(call: Callable[[*Args], Result], *args: *Args, patience: float = PATIENCE) -> Result:
    """Call a function that uses a storage, and retry while the storage is unavailable.

    The call must be idempotent: a write whose reply was lost is repeated. Raises RunError after `patience` seconds; other
    errors are raised at once.
    """
    since, pause = 0.0, 0.1
    while True:
        try:
            return call(*args)
        except (StorageInternalError, SQLAlchemyError) as error:
            if not _outage(error):
                raise
            reason = scrub(database_error(error))
            if not since:
                since = time.monotonic()
                log.warning("the storage is unavailable, retrying for up to %.0f seconds: %s", patience, reason)
            waited = time.monotonic() - since
            if waited >= patience:
                raise RunError(f"the storage has been unavailable for {waited:.0f} seconds: {reason}") from None
        time.sleep(min(pause, max(patience - waited, 0.01)))
        pause = min(2 * pause, LONGEST_PAUSE)


def _outage(error: BaseException) -> bool:
    """Whether an error is temporary."""
    error = _origin(error)
    if not isinstance(error, DBAPIError):
        return False
    if isinstance(error.orig, sqlite3.Error):  # OperationalError is also raised for a missing table
        return bool(SQLITE_OUTAGES.match(getattr(error.orig, "sqlite_errorname", "")))
    return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)


def _origin(error: BaseException) -> BaseException:
    """The database error wrapped by Optuna, or by SQLAlchemy when Optuna reused a broken connection."""
    behind = {StorageInternalError: error.__cause__, PendingRollbackError: error.__context__}.get(type(error))
    return _origin(behind) if behind else error


@contextmanager
def guarded(what: str, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn any error while reading `what` from a storage into one line.

    Raises UserError that names `what`, RunError if the storage is unavailable. UserError, RunError, OSError and `passing`
    are raised unchanged.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, (UserError, RunError, OSError, *passing)):
            raise
        if _outage(error):
            raise RunError(f"the storage is unavailable: {in_one_line(error)}") from error
        raise UserError(
            f"{what} cannot be read: it is damaged or was written by another program ({in_one_line(error)})"
        ) from error


def in_one_line(error: BaseException) -> str:
    """An error in one line of limited length, without passwords."""
    origin, text = _origin(error), scrub(database_error(error))
    readable = isinstance(origin, UserError | RunError | OptunaError | SQLAlchemyError | OSError)
    return textwrap.shorten(text if readable else f"{type(origin).__name__}: {text}", LONGEST_REASON, placeholder=" ...")


def database_error(error: BaseException) -> str:
    """A database error in one line."""
    error = _origin(error)
    lines = str(getattr(error, "orig", None) or error).splitlines() or [type(error).__name__]
    return re.sub("^connection failed: |FATAL: +", "", lines[0])
