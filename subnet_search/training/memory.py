"""Keep freed memory in the process for the next training step."""

import ctypes
import sys
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


@cache
def keep_freed_memory() -> None:
    """Make glibc reuse large freed blocks; once for each process, and only on Linux with glibc.

    Every CPU training step allocates and frees the same large tensors. By default glibc returns them to the kernel, and the
    page faults cost up to a third of a step (benchmarks/step_time.py).
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_TRIM_THRESHOLD, 2**31 - 1)
            mallopt(_MMAP_THRESHOLD, 2**30)
