"""Who runs a trial, and whether that worker is still there. No clock of any machine is compared with another's.

Optuna's heartbeats do not do. A trial whose worker was killed fails, and is queued under a new number, where here the same
number goes on from its checkpoint. They beat only inside `Study.optimize`, and our workers ask and tell. A process that is
dead on this machine is found after its grace period, where here it is found at once.
"""

import os
import socket
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from subnet_search.search.storage.records import TrialRecord, Worker

PATIENCE = 5  # heartbeats without a sign of life, after which a worker is given up


def this_process(token: str) -> Worker:
    """This process, as a trial keeps it: readable, and enough to find out on the same machine whether it is alive."""
    return Worker(socket.gethostname(), os.getpid(), token, _started(os.getpid()), *_machine())


class Leases:
    """Watches the running trials, and tells which have lost their worker.

    On the same machine a process is looked up. Elsewhere, and for one that hangs, a worker counts up the trial's `beat`,
    and is gone when that stays the same for five heartbeats by the watcher's own monotonic clock: a clock that jumps,
    there or here, changes nothing.
    """

    def __init__(self, heartbeat: float, token: str) -> None:
        self.heartbeat, self.token = heartbeat, token
        self.seen: dict[int, tuple[Any, float]] = {}

    def lost(self, trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
        """The running trials that nobody runs any more."""
        now, found = time.monotonic(), []
        for trial in trials:
            record = TrialRecord(trial)
            worker = record.worker
            if trial.state != TrialState.RUNNING or worker.token == self.token:
                continue
            sign = worker.token, record.beat
            before, since = self.seen.setdefault(trial.number, (sign, now))
            if before != sign:
                self.seen[trial.number] = (sign, now)
            elif now - since > PATIENCE * self.heartbeat or is_dead(worker):
                found.append(trial)
        return found


def is_dead(worker: Worker) -> bool:
    """Whether a worker ran on this machine and its process is gone; False when that cannot be told from here."""
    boot, namespace = _machine()
    if worker.pid is None or (worker.host, worker.namespace) != (socket.gethostname(), namespace):
        return False
    if worker.boot != boot:
        return True  # the machine was started again
    try:
        os.kill(worker.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return _started(worker.pid) != worker.started  # the number belongs to another process by now


def _started(pid: int) -> str | None:
    """When a process began, in ticks since the machine did; None for one that is gone, or where the system does not say."""
    fields = (_read(f"/proc/{pid}/stat") or "Z").rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]


@cache
def _machine() -> tuple[str | None, int | None]:
    """What tells this run of this machine, and its numbering of processes, from every other."""
    namespace = os.stat("/proc/self/ns/pid").st_ino if os.path.exists("/proc/self/ns/pid") else None
    return _read("/proc/sys/kernel/random/boot_id"), namespace


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
