"""Striking the workers of a study while it runs, and the account of its trials that must come out unharmed."""

import contextlib
import math
import multiprocessing
import os
import random
import signal
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from unittest import mock

import optuna
import torch
from sqlalchemy.engine.default import DefaultDialect

from subnet_search.core.errors import Interrupted, UserError
from subnet_search.search.engine import trial_lease
from subnet_search.search.storage import leases
from subnet_search.search.storage.connect import load_study, open_storage
from subnet_search.search.studies.launcher import run_study

# What may differ between two runs of the same study: who ran a trial, where, for how long, and what happened to them.
OF_THE_MACHINE = ("worker", "beat", "interruptions", "seconds", "folder")
BROKEN_OFF = (-signal.SIGKILL, -signal.SIGTERM, 130)  # exit codes of a `study run` that was struck

# Members are forked from a process that has imported everything, so that their time goes into trials.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["subnet_search.search.studies.launcher", "sklearn.datasets", "torch._dynamo", "alembic.command"])

Strike = int | Callable[[], None]


class Process(Protocol):
    """A `study run` under way."""

    pid: int
    log: Path  # what it says, and others of its study beside it

    def code(self) -> int | None: ...


class Member:
    """What `subnet-search study run PATH` does, in a forked process, on a machine that calls itself `host`."""

    def __init__(self, path: str, url: str, folder: Path, host: str) -> None:
        self.log = folder / "members.log"
        self.process = FORKS.Process(target=_run, args=(path, url, self.log, host), daemon=True)
        self.process.start()
        assert self.process.pid
        self.pid = self.process.pid

    def code(self) -> int | None:
        return self.process.exitcode


def _run(path: str, url: str, log: Path, host: str) -> None:
    os.chdir(log.parent)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1), os.dup2(file, 2)
    socket.gethostname = lambda: host
    torch.set_num_threads(1)
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    try:
        run_study(path, storage=url, should_stop=told.is_set)
    except Interrupted:
        sys.exit(130)
    except UserError as error:  # whoever watches over a worker starts it again
        print(error, flush=True)
        sys.exit(130 if str(error).startswith("cannot open the storage") else 2)


def strike(
    start: Callable[[], Process],
    size: int,
    strikes: Sequence[Strike],
    seed: int,
    *,
    pause: tuple[float, float] = (0.3, 1.0),
    growth: float = 1.0,
    stall: float = 2.5,
    limit: float = 300,
) -> int:
    """Keep `size` processes on a study and strike them, until it is done. Returns how many strikes there were.

    A strike is a signal for one process at random (SIGSTOP is taken back after `stall` seconds), or something to call:
    when that returns False it found nothing to strike and is called again.
    Between two of them lie `pause` seconds, from and to, which get longer by the factor `growth` each time, so that on the
    slowest machine too some processes come to work before they are struck. Whoever was broken off is replaced. Raises
    AssertionError when a process ends by itself but not well, or the study takes more than `limit` seconds.
    """
    rng, begun = random.Random(seed), time.monotonic()
    everyone = [start() for _ in range(size)]
    stalled: dict[int, float] = {}
    seen: set[int] = set()  # workers outlive the `study run` that started them
    rest, due = list(strikes)[::-1], begun + rng.uniform(*pause)
    try:
        while True:
            now = time.monotonic()
            assert now - begun < limit, f"the study is not done after {limit:.0f} seconds; {len(rest)} strikes left"
            for one in list(everyone):
                code = one.code()
                assert code in (None, 0, *BROKEN_OFF), f"a process ended with {code}:\n{one.log.read_text()}"
                if code in BROKEN_OFF:
                    everyone.remove(one)
                    everyone.append(start())
            for pid in [pid for pid, until in stalled.items() if until < now]:
                _send(pid, signal.SIGCONT)
                del stalled[pid]
            seen = {pid for pid in seen.union(*(family(one.pid) for one in everyone)) if is_alive(pid)}
            if not seen:
                return len(strikes) - len(rest)
            if rest and now > due:
                blow, due = rest.pop(), now + rng.uniform(*pause) * growth ** (len(strikes) - len(rest))
                if callable(blow):
                    if blow() is False:
                        rest.append(blow)
                        due = now
                else:
                    victim = rng.choice(sorted(seen))
                    _send(victim, blow)
                    if blow == signal.SIGSTOP:
                        stalled[victim] = now + stall
            time.sleep(0.02)
    finally:
        for pid in seen:
            _send(pid, signal.SIGKILL)


def family(pid: int) -> Iterator[int]:
    """A process and those it started."""
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in children:
        yield from family(int(child))


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


class Killed(BaseException):
    """What a worker in this process dies of. Nothing catches it."""


@contextlib.contextmanager
def dying() -> Iterator[Callable[[int], None]]:
    """Yields a function that lets this process die at its so manieth tick: just before or after a write.

    A write is a commit of a database, or a file that takes its place or goes; 0 lets it live. Whatever process ran a
    trial before is held to be dead, and no trial fails because of its workers' deaths.
    """
    left = [0]

    def lets_die(call: Callable[..., Any]) -> Callable[..., Any]:
        def write(*args: Any, **options: Any) -> Any:
            _tick(left)
            result = call(*args, **options)
            _tick(left)
            return result

        return write

    with contextlib.ExitStack() as patches:
        for owner, name in ((DefaultDialect, "do_commit"), (os, "replace"), (Path, "unlink")):
            patches.enter_context(mock.patch.object(owner, name, lets_die(getattr(owner, name))))
        patches.enter_context(mock.patch.object(leases, "is_dead", return_value=True))
        patches.enter_context(mock.patch.object(trial_lease, "DEATHS", math.inf))
        yield lambda ticks: left.__setitem__(0, ticks)


def _tick(left: list[int]) -> None:
    if left[0] > 0:
        left[0] -= 1
        if left[0] == 0:
            raise Killed


@contextlib.contextmanager
def failing(rng: random.Random, longest: int) -> Iterator[list[str]]:
    """A database fails at a statement, again and again, after up to `longest` of them. Yields what it was asked then."""
    left, failed = [rng.randrange(longest)], list[str]()

    def may_fail(call: Callable[..., Any]) -> Callable[..., Any]:
        def execute(dialect: Any, cursor: Any, statement: str, *args: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] >= 0:
                return call(dialect, cursor, statement, *args, **options)
            left[0] = rng.randrange(longest)
            failed.append(statement)
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorname = "SQLITE_IOERR"
            raise error

        return execute

    with contextlib.ExitStack() as patches:
        for name in ("do_execute", "do_execute_no_params"):
            patches.enter_context(mock.patch.object(DefaultDialect, name, may_fail(getattr(DefaultDialect, name))))
        yield failed


def account(name: str, url: str) -> list[dict[str, Any]]:
    """Every trial of a study with everything stored about it but what is of the machine."""
    study = load_study(name, open_storage(url))
    return [_row(trial) for trial in study.get_trials(deepcopy=False)]


def _row(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    kept = {key: value for key, value in trial.user_attrs.items() if key not in OF_THE_MACHINE}
    if "first" in kept:  # of several seeds
        kept["first"] = {**kept["first"], "seconds": None}
    return {
        "number": trial.number,
        "state": trial.state.name,
        "params": trial.params,
        "values": trial.values,
        "reported": trial.intermediate_values,
        "noted": trial.system_attrs,
        **kept,
    }


def differences(found: Iterable[Mapping[str, Any]], expected: Iterable[Mapping[str, Any]]) -> list[str]:
    """In words, where two accounts of a study are not the same."""
    found, expected = list(found), list(expected)
    words = [f"{len(found)} trials, expected {len(expected)}"] if len(found) != len(expected) else []
    for one, other in zip(found, expected, strict=False):
        for key in sorted(one.keys() | other.keys()):
            if one.get(key) != other.get(key):
                words.append(f"trial {other['number']}: {key} is {one.get(key)!r}, expected {other.get(key)!r}")
    return words


def interruptions(name: str, url: str) -> list[dict[str, Any]]:
    """What happened to the workers of a study's trials."""
    trials = load_study(name, open_storage(url)).get_trials(deepcopy=False)
    return [one for trial in trials for one in trial.user_attrs.get("interruptions", [])]
