"""Keep freed memory for the next step, instead of giving it back to the system and faulting it in again."""

import ctypes
import sys
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


@cache
def keep_freed_memory() -> None:
    """Ask glibc to reuse large freed blocks, once a process; elsewhere nothing happens.

    A CPU training step frees and takes the same large tensors again and again. By default glibc hands them back to
    the kernel each time, which costs up to a third of a step in page faults (benchmarks/step_time.py measures it).
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_TRIM_THRESHOLD, 2**31 - 1)
            mallopt(_MMAP_THRESHOLD, 2**30)
