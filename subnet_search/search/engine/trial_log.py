"""The log file of a trial."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from subnet_search.core.errors import RunError
from subnet_search.core.redaction import Redacting
from subnet_search.search.engine.trial_lease import TrialLease

log = logging.getLogger("subnet_search")


@contextmanager
def log_to_file(lease: TrialLease) -> Iterator[None]:
    """Write logs and warnings to the trial's log.txt while it runs."""
    try:
        lease.folder.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(lease.folder / "log.txt")
    except OSError as error:
        raise RunError(f"cannot write {lease.folder}: {error.strerror}") from error
    handler.setFormatter(Redacting("%(asctime)s %(message)s"))
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # a full disk is reported when the checkpoint is written
    before, warned = log.level, logging.getLogger("py.warnings")
    for logger in (log, warned):
        logger.addHandler(handler)
    log.setLevel(logging.INFO)
    logging.captureWarnings(True)
    interruptions = lease.attrs.get("interruptions", [])
    log.info("trial %d %s", lease.number, f"resumes ({interruptions[-1]['why']})" if interruptions else "starts")
    try:
        yield
    finally:
        logging.captureWarnings(False)
        log.setLevel(before)
        for logger in (log, warned):
            logger.removeHandler(handler)
        handler.close()
