"""Calls to a storage, tried again while it fails."""

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


PATIENCE = 600.0  # seconds that a lock or a server that does not answer is waited for


LONGEST_PAUSE = 15.0  # seconds between two tries


LONGEST_REASON = 300  # letters of what a database or a reader says


SQLITE_OUTAGES = re.compile("SQLITE_(BUSY|LOCKED|IOERR|FULL|CANTOPEN)")


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
