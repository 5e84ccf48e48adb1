"""Ctrl-C and SIGTERM stop a run at its next step with a checkpoint; a second Ctrl-C stops at once."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from subnet_search.core.errors import Interrupted


@contextmanager
def stop_on_signal(advice: str = "") -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether to stop; restores the signal handlers afterwards.

    advice: how to continue, for the end of the message when the run stops.
    """
    stopping = False

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal stopping
        if stopping and number == signal.SIGINT:
            raise KeyboardInterrupt
        stopping = True

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: stopping
    except Interrupted as stop:
        if not advice:
            raise
        raise Interrupted(f"{stop}; {advice}") from stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
