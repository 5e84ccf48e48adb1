"""Ctrl-C and SIGTERM stop a run at its next step with a checkpoint; a second Ctrl-C stops at once."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether to stop; restores the signal handlers afterwards."""
    stopping = False

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal stopping
        if stopping and number == signal.SIGINT:
            raise KeyboardInterrupt
        stopping = True

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
