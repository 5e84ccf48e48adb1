"""Studies whose processes are struck at random for minutes, against the same studies undisturbed: is anything lost?

Two `study run --workers 2` at once on digits (`limit: 200`), LeNet-300-100, TPE. At random moments one of their
processes, worker or not, is killed (SIGKILL), told to end (SIGTERM), or stopped (SIGSTOP) for longer than its lease and
let go on; a `study run` that was broken off is started again. Where it says so, the PostgreSQL server is killed too, and
away for some seconds. In the end every trial is compared with the one that a single undisturbed worker came to: number,
state, parameters, values, values on the way, hash of the weights, density, steps, reason, all that is stored of it.
The second table: as many workers, which nothing disturbs. The third: a worker that dies just before or after
one write to the database or the disk, for each of the writes of a whole study, and the next worker goes on.
"""

import contextlib
import importlib.util
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from timing import verdict

from subnet_search.extraction.config_file import check
from subnet_search.search.engine.worker import run_worker
from subnet_search.search.spec.study_spec import StudySpec
from subnet_search.search.studies.launcher import prepare_study, run_study

TESTS = Path(__file__).parents[1] / "tests"
COMMAND = [sys.executable, "-m", "subnet_search", "study", "run"]
KILL, TERM, STOP = signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP


def from_tests(name: str) -> ModuleType:
    """A helper of the tests; one of them is called as this file is."""
    spec = importlib.util.spec_from_file_location(f"tests_{name}", TESTS / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    return module


faults = from_tests("faults")


class Command:
    """A `study run` as a user starts it."""

    def __init__(self, path: Path, url: str, workers: int = 2) -> None:
        self.log = path.with_name("said")
        with open(self.log, "ab") as said:
            self.process = subprocess.Popen(
                [*COMMAND, str(path), "--workers", str(workers), "--wait", "600", "--json"],
                env={**os.environ, "SUBNET_SEARCH_STORAGE": url, "OMP_NUM_THREADS": "1"},
                stdout=said,
                stderr=said,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.pid = self.process.pid

    def code(self) -> int | None:
        return self.process.poll()


def values(quick: bool, **more: Any) -> dict[str, Any]:
    run = {
        "network": "lenet_300_100",
        "data": {"name": "digits", "limit": 200},
        "recipe": {"epochs": 9 if quick else 27, "batch_size": 16, "threads": 1, "device": "cpu"},
    }
    space = {"recipe.lr": {"float": [1, 100], "log": True}, "extractor": ["temperature", "rescale"]}
    return {"name": "toy", "run": run, "space": space, "heartbeat": 0.5, "trials": 6 if quick else 60, **more}


def main(quick: bool = False) -> list[dict[str, object]]:
    pruners: tuple[str, ...] = ("hyperband",) if quick else ("none", "hyperband")
    blows = [KILL, STOP, TERM, KILL] if quick else [KILL, KILL, KILL, TERM, KILL, STOP, KILL, KILL, TERM, STOP] * 6
    struck: list[dict[str, object]] = []
    undisturbed: list[dict[str, object]] = []
    for pruner in pruners:
        wanted = values(quick, pruner=pruner)
        with in_a_folder() as folder:
            expected = alone(wanted)
            struck.append(strike("SQLite", wanted, blows, f"sqlite:///{folder}/struck.db", expected))
            if pruner == "hyperband" and not quick:
                with server() as postgres:
                    if postgres:
                        outages = [*blows[:20], outage(postgres), *blows[20:40], outage(postgres)]
                        struck.append(strike("PostgreSQL", wanted, outages, postgres.url(), expected))
            undisturbed += [with_workers(count, wanted, expected) for count in ((2,) if quick else (1, 3, 8))]
    return [*struck, *undisturbed, at_every_write(quick)]


def alone(wanted: dict[str, Any]) -> list[dict[str, Any]]:
    run_study(check(StudySpec, wanted), storage="sqlite:///alone.db")
    found: list[dict[str, Any]] = faults.account("toy", "sqlite:///alone.db")
    return found


def strike(where: str, wanted: dict[str, Any], blows: list[Any], url: str, expected: list[dict[str, Any]]) -> dict[str, object]:
    path, started = Path("struck.yaml").resolve(), time.monotonic()
    path.write_text(yaml.safe_dump(wanted))
    dealt = blows[: faults.strike(lambda: Command(path, url), 2, blows, 1, pause=(1.0, 4.0), stall=4.0, limit=3000)]
    kinds = Counter("outage" if callable(blow) else signal.Signals(blow).name for blow in dealt)
    return {
        "struck": f"{where}, pruner {wanted['pruner']}",
        "trials": in_words(expected),
        "strikes": ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())),
        "trials handed on": f"{len(faults.interruptions('toy', url))}",
        "seconds": f"{time.monotonic() - started:.0f}",
        **judged(faults.account("toy", url), expected),
    }


def with_workers(count: int, wanted: dict[str, Any], expected: list[dict[str, Any]]) -> dict[str, object]:
    path, url = Path("undisturbed.yaml").resolve(), f"sqlite:///{count}.db"
    path.write_text(yaml.safe_dump(wanted))
    faults.strike(lambda: Command(path, url, count), 1, [], 0, limit=3000)
    return {"workers": count, "pruner": wanted["pruner"], **judged(faults.account("toy", url), expected)}


def at_every_write(quick: bool) -> dict[str, object]:
    """One study after the other, each with one death: at its first write, its second, ..."""
    more = {"pruner": "hyperband", "trials": 2, "heartbeat": 1000.0, "parallel": 1}
    wanted = values(True, **more)
    spec = check(StudySpec, {**wanted, "run": {**wanted["run"], "recipe": {**wanted["run"]["recipe"], "checkpoint_every": 2}}})
    deaths, found = 0, Counter[str]()
    with in_a_folder(), faults.dying() as die:
        run_study(spec, storage="sqlite:///alone.db")
        expected = faults.account("toy", "sqlite:///alone.db")
        for tick in itertools.count(1, 40 if quick else 1):
            url = f"sqlite:///{tick}.db"
            try:
                die(tick)
                prepare_study(spec, url)
                run_worker("toy", url)
                die(0)
                break
            except faults.Killed:
                deaths += 1
                prepare_study(spec, url)
                run_worker("toy", url)
            found.update(faults.differences(faults.account("toy", url), expected))
            shutil.rmtree("runs")
    return {
        "killed at each write of": f"{len(expected)} trials",
        "studies, each with one death": deaths,
        "different": found.total(),
        "target": verdict(found.total(), "<=", 0),
    }


def judged(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> dict[str, object]:
    differences = faults.differences(found, expected)
    for words in differences[:10]:
        print(words, file=sys.stderr)
    return {"different": len(differences), "target": verdict(len(differences), "<=", 0)}


def in_words(rows: list[dict[str, Any]]) -> str:
    return ", ".join(f"{count} {state.lower()}" for state, count in sorted(Counter(row["state"] for row in rows).items()))


@contextlib.contextmanager
def in_a_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        yield Path(folder)


@contextlib.contextmanager
def server() -> Iterator[Any]:
    """A PostgreSQL server of its own, None where there is none installed."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        yield None
        return
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    found = from_tests("servers").Postgres(programs[-1].parent, folder)
    try:
        yield found
    finally:
        found.stop("immediate")
        shutil.rmtree(folder)


def outage(postgres: Any) -> Callable[[], None]:
    def strike() -> None:
        postgres.stop("immediate")
        time.sleep(5)
        postgres.start()

    return strike
