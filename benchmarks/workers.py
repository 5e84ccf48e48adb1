"""What our worker costs beside plain Optuna: milliseconds a trial, and trials a second with several processes.

Trials that train nothing, of three parameters drawn by TPE; every contender on a new study of the same storage settings
(write-ahead logging), but for `plain Optuna, default SQLite`. First table: one process, the median time from one trial's
objective to the next one's. Second: where a trial's time goes in our worker, the parts of a row inside those of the row
above it. Third: several processes, from the moment when each has begun its first trial until the budget is met.
"""

import contextlib
import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from timing import verdict

from subnet_search.extraction.config_file import check
from subnet_search.search.engine import scheduler, trial_lease
from subnet_search.search.engine.history import History
from subnet_search.search.engine.trial_runner import Ending
from subnet_search.search.engine.worker import run_worker
from subnet_search.search.spec.study_spec import StudySpec
from subnet_search.search.storage.connect import open_storage
from subnet_search.search.storage.read import Reader
from subnet_search.search.studies.launcher import prepare_study

SPACE: dict[str, Any] = {"recipe.lr": {"float": [1, 100], "log": True}, "extractor": ["temperature", "density"]}
ROUNDS = 3
PARTS: dict[str, tuple[Any, str]] = {  # of a trial: where they are found
    "begin, under the lock": (scheduler.Scheduler, "_next"),
    "- read the trials": (Reader, "trials"),
    "- draw": (History, "draw"),
    "- its configuration": (scheduler.Scheduler, "_config"),
    "- write it": (scheduler.Scheduler, "_store"),
    "end, under the lock": (trial_lease.TrialLease, "_end"),
}


def main(quick: bool = False) -> list[dict[str, object]]:
    one, many = (20, 40) if quick else (200, 600)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        overheads = [overhead(one), *parts(one)]
        counts = (1, 2) if quick else (1, 4, 8)
        contenders = {"our worker": ours, "plain Optuna, write-ahead": plain, "plain Optuna, default SQLite": default}
        rates = {
            (name, count): rate(contender, count, many // 6 if contender is default else many)
            for count in counts
            for name, contender in contenders.items()
        }
    return [*overheads, *(row(name, counts, rates) for name in contenders)]


def row(name: str, counts: tuple[int, ...], rates: dict[tuple[str, int], float]) -> dict[str, object]:
    most = rates[name, counts[-1]]
    return {
        "trials a second": name,
        **{f"{count} processes": f"{rates[name, count]:.0f}" for count in counts},
        "target": verdict(most, ">=", 50) if name == "our worker" else "",
    }


def overhead(trials: int) -> dict[str, object]:
    """Medians of our worker and of plain Optuna."""
    rounds = [(between(ours, trials), between(plain, trials)) for _ in range(ROUNDS)]
    ms, plain_ms = (1000 * statistics.median(itertools.chain(*taken)) for taken in zip(*rounds, strict=True))
    return {
        "ms a trial, one process": f"{ROUNDS} x {trials} trials",
        "plain Optuna": f"{plain_ms:.1f}",
        "our worker": f"{ms:.1f}",
        "more": f"{ms - plain_ms:.1f}",
        "target": verdict(ms - plain_ms, "<=", 5, " ms"),
    }


def between(contender: Callable[..., None], trials: int) -> list[float]:
    """Seconds from each trial to the next, on a new study."""
    moments: list[float] = []
    make(contender, url := fresh(), trials)
    contender(url, trials, lambda: moments.append(time.perf_counter()))
    return [after - before for before, after in itertools.pairwise(moments)]


def parts(trials: int) -> list[dict[str, object]]:
    """Median milliseconds of the parts of a trial of our worker."""
    with timed() as took:
        between(ours, trials)
    return [{"part of a trial": name, "ms": f"{1000 * statistics.median(times):.2f}"} for name, times in took.items()]


@contextlib.contextmanager
def timed() -> Iterator[dict[str, list[float]]]:
    took: dict[str, list[float]] = defaultdict(list)
    before = {name: getattr(owner, method) for name, (owner, method) in PARTS.items()}

    def watch(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return call(*args, **options)
            finally:
                took[name].append(time.perf_counter() - started)

        return watched

    try:
        for name, (owner, method) in PARTS.items():
            setattr(owner, method, watch(name, before[name]))
            took[name]  # in this order
        yield took
    finally:
        for name, (owner, method) in PARTS.items():
            setattr(owner, method, before[name])


def rate(contender: Callable[..., None], processes: int, trials: int) -> float:
    """Trials a second, from the moment when each process has begun one to the end of the last."""
    make(contender, url := fresh(), trials)
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Barrier(processes + 1)
    workers = [
        spawn.Process(target=at_work, args=(contender, url, trials // processes, trials, ready)) for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    ready.wait()
    started = time.time()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise RuntimeError("a process failed")
    found = optuna.load_study(study_name="trivial", storage=open_storage(url)).get_trials(deepcopy=False)
    if sum(trial.state == TrialState.COMPLETE for trial in found) != trials // processes * processes:
        raise RuntimeError(f"{len(found)} trials, not {trials}")
    return len(found) / (max(trial.datetime_complete.timestamp() for trial in found) - started)


def at_work(contender: Callable[..., None], url: str, share: int, trials: int, ready: Any) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    first = iter([ready.wait])
    contender(url, trials if contender is ours else share, lambda: next(first, lambda: None)())


def fresh() -> str:
    return f"sqlite:///{len(list(Path().glob('*.db')))}.db"


def make(contender: Callable[..., None], url: str, trials: int) -> None:
    if contender is ours:
        prepare_study(check(StudySpec, {"name": "trivial", "space": SPACE, "trials": trials}), url)
    else:
        storage = RDBStorage(url) if contender is default else open_storage(url, create=True)
        optuna.create_study(study_name="trivial", storage=storage, direction="maximize")


def ours(url: str, trials: int, tell: Callable[[], None]) -> None:
    def objective(lease: Any, *_: Any) -> Ending:
        tell()
        return Ending(TrialState.COMPLETE, [lease.config.recipe.lr])

    run_worker("trivial", url, trials=trials, objective=objective)


def plain(url: str, trials: int, tell: Callable[[], None], storage: Any = None) -> None:
    def objective(trial: optuna.Trial) -> float:
        tell()
        trial.suggest_float("extractor.temperature", 0.3, 3, log=True)
        trial.suggest_float("extractor.density", 0.05, 0.5, log=True)
        return trial.suggest_float("recipe.lr", 1, 100, log=True)

    optuna.load_study(study_name="trivial", storage=storage or open_storage(url)).optimize(objective, n_trials=trials)


def default(url: str, trials: int, tell: Callable[[], None]) -> None:
    plain(url, trials, tell, RDBStorage(url))
