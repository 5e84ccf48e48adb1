"""A worker's heartbeat."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from subnet_search.core.errors import RunError
from subnet_search.search.engine.trial_lease import LeaseLost, TrialLease
from subnet_search.search.storage.records import NOW, STOPPED
from subnet_search.search.storage.retry import patiently


@contextmanager
def send_heartbeats(lease: TrialLease, heartbeat: float) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Send heartbeats while a trial runs. Yields two events: the lease was lost; the study was stopped."""
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
            except RunError:  # the storage is unavailable: the next storage call reports it
                continue

    with running(beat, ended):
        yield lost, stopped


@contextmanager
def running(work: Callable[[], None], ended: threading.Event) -> Iterator[None]:
    """Run `work` in a thread, and set `ended` and wait for it when the block ends."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
