"""Detect trials whose worker is dead, without comparing clocks of different machines.

Optuna's heartbeats fail a trial of a killed worker and queue it under a new number; here the same trial is resumed. They only
work inside `Study.optimize`, which this package does not use, and find a dead local process only after a grace period.
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

PATIENCE = 5  # missed heartbeats after which a worker counts as dead


def this_process(token: str) -> Worker:
    """This process as a stored worker record, by which another process on this machine can check whether it is alive."""
    return Worker(socket.gethostname(), os.getpid(), token, _started(os.getpid()), *_machine())


class Leases:
    """Finds running trials that lost their worker.

    A process on the same machine is looked up. Any worker increments the trial's `beat`; it counts as dead if that does not
    change for five heartbeats on the local monotonic clock, so clock changes on either machine have no effect.
    """

    def __init__(self, heartbeat: float, token: str) -> None:
        self.heartbeat, self.token = heartbeat, token
        self.seen: dict[int, tuple[Any, float]] = {}

    def lost(self, trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
        """The running trials whose worker is dead."""
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
    """Whether a worker ran on this machine and its process is dead; False for other machines."""
    boot, namespace = _machine()
    if worker.pid is None or (worker.host, worker.namespace) != (socket.gethostname(), namespace):
        return False
    if worker.boot != boot:
        return True  # the machine was rebooted
    try:
        os.kill(worker.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return _started(worker.pid) != worker.started  # the process id was reused


def _started(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot; None if it is dead or /proc is missing."""
    fields = (_read_text(f"/proc/{pid}/stat") or "Z").rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]


@cache
def _machine() -> tuple[str | None, int | None]:
    """Boot id of this machine and its process id namespace."""
    namespace = os.stat("/proc/self/ns/pid").st_ino if os.path.exists("/proc/self/ns/pid") else None
    return _read_text("/proc/sys/kernel/random/boot_id"), namespace


def _read_text(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
