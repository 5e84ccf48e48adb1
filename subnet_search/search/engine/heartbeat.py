"""A worker's sign of life."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from subnet_search.core.errors import RunError
from subnet_search.search.engine.trial_lease import LeaseLost, TrialLease
from subnet_search.search.storage.records import NOW, STOPPED
from subnet_search.search.storage.retry import patiently


@contextmanager
def _beating(lease: TrialLease, heartbeat: float) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Signs of life while the trial runs. Yields two events: the trial is another worker's by now; it is to stop now."""
    ended, lost, stopped = threading.Event(), threading.Event(), threading.Event()

    def beat() -> None:
        count = 0
        while not ended.wait(min(heartbeat, threading.TIMEOUT_MAX)):
            try:
                count += 1
                lease.note(beat=count)
                if patiently(lambda: lease.study.user_attrs).get(STOPPED) == NOW:
                    stopped.set()
            except (LeaseLost, KeyError):  # KeyError: the study was deleted
                lost.set()
                return
            except RunError:  # the storage is away: that is found by whoever needs it next
                continue

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield lost, stopped
    finally:
        ended.set()
        thread.join()
