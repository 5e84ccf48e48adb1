"""The log of a trial."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from subnet_search.core.errors import RunError
from subnet_search.core.redaction import Redacting
from subnet_search.search.engine.claim import Claim
from subnet_search.search.storage.connect import scrub

log = logging.getLogger("subnet_search")
LOG_LINES = 20  # of a failed trial's log, kept in the study


def _tail(claim: Claim) -> list[str]:
    path = claim.folder / "log.txt"
    return scrub(path.read_text(errors="replace")).splitlines()[-LOG_LINES:] if path.is_file() else []


@contextmanager
def _logged(claim: Claim) -> Iterator[None]:
    """The trial's log.txt: what is logged and warned of while it runs."""
    try:
        claim.folder.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(claim.folder / "log.txt")
    except OSError as error:
        raise RunError(f"cannot write {claim.folder}: {error.strerror}") from error
    handler.setFormatter(Redacting("%(asctime)s %(message)s"))
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # a full disk ends a trial by its checkpoint
    before, warned = log.level, logging.getLogger("py.warnings")
    for logger in (log, warned):
        logger.addHandler(handler)
    log.setLevel(logging.INFO)
    logging.captureWarnings(True)
    worker = claim.attrs.get("interruptions", [])
    log.info("trial %d %s", claim.number, f"goes on ({worker[-1]['why']})" if worker else "begins")
    try:
        yield
    finally:
        logging.captureWarnings(False)
        log.setLevel(before)
        for logger in (log, warned):
            logger.removeHandler(handler)
        handler.close()
