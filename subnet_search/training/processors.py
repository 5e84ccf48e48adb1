"""The number of CPU threads of a run, and a warning when other processes use the processors."""

import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)
LOAD = Path("/proc/loadavg")  # Linux: load averages, then "processes running now/all"


def default_threads() -> int:
    """CPU threads of this process: `OMP_NUM_THREADS` if it is set, else the processors, shared by torchrun's processes.

    Processors are those of the CPU affinity, and no more than the cgroup's quota (versions 1 and 2), rounded up. torchrun
    sets `OMP_NUM_THREADS=1` where it is not set; among several processes this value is not used.
    """
    import joblib

    together = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if given.isdigit() and int(given) and not (given == "1" and together > 1):
        return int(given)
    return max(1, int(joblib.cpu_count()) // together)


def warn_if_busy(threads: int) -> None:
    """Log one line if fewer than `threads` processors of this machine are free. The user's `OMP_NUM_THREADS` is not judged."""
    here, load = os.cpu_count() or 1, _load_of_others()
    if threads > 1 and here - load < threads and "OMP_NUM_THREADS" not in os.environ:
        fewer = max(1, min(threads - 1, int(here - load)))
        log.warning(
            "other processes use this machine (load %.1f on %d processors), and this run has %d threads, which wait for each "
            "other in every step: recipe.threads=%d or OMP_NUM_THREADS=%d may be faster",
            *(load, here, threads, fewer, fewer),
        )


def warn_if_shared(workers: int, threads: int) -> None:
    """Log one line if the workers of a study have more threads than there are processors. One thread each is the default."""
    import joblib

    if threads > 1 and workers * threads > (here := joblib.cpu_count()):
        log.warning(
            "%d workers with %d threads each on %d processors slow each other: use at most %d workers, or recipe.threads=%d",
            *(workers, threads, here, max(1, here // threads), max(1, here // workers)),
        )


def _load_of_others() -> float:
    """The load average of the last minute. On Linux at most the processes that run now, without this one.

    The load average alone would count an earlier run of this process.
    """
    try:
        load = os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows
        return 0.0
    return min(load, int(LOAD.read_text().split()[3].partition("/")[0]) - 1) if LOAD.exists() else load
