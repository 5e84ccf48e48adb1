"""A worker: one process that runs trials of a study until the budget is used up. All state is in the storage."""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import lru_cache

from optuna.storages import BaseStorage

from subnet_search.core.errors import Interrupted, RunError
from subnet_search.core.search_domains import OneOf
from subnet_search.data import Data, load
from subnet_search.data.imported import check_import
from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.provenance import versions
from subnet_search.extraction.run_folder import drop_checkpoints
from subnet_search.search.engine.callbacks import after_trial, import_callbacks
from subnet_search.search.engine.copies import adopt
from subnet_search.search.engine.scheduler import Scheduler
from subnet_search.search.engine.trial_lease import LeaseLost, TrialLease
from subnet_search.search.engine.trial_runner import Ending, run_trial
from subnet_search.search.spec.study_spec import StudySpec, trusted_spec_of
from subnet_search.search.storage.connect import load_study, open_storage, safe_url
from subnet_search.search.storage.records import FINISHED
from subnet_search.search.storage.retry import guarded, patiently

FAILURES_IN_A_ROW = 5
POLL_SECONDS = 0.01, 2.0  # between two attempts to get a trial: first and longest pause

Objective = Callable[[TrialLease, StudySpec, Callable[[RunConfig], Data], Callable[[], bool]], Ending]

log = logging.getLogger(__name__)


def run_worker(
    name: str,
    url: str,
    *,
    trials: int | None = None,
    timeout: float | None = None,
    wait: float = 0,
    allow_imports: Collection[str] = (),
    should_stop: Callable[[], bool] = lambda: False,
    objective: Objective = run_trial,
    like: StudySpec | None = None,
) -> list[int]:
    """Run trials until the study is finished; returns the numbers of the trials that ended in this worker.

    trials          finished trials at which the study ends; default: the spec's
    timeout         seconds after which no trial is started; default: the spec's
    wait            seconds to wait for a storage that does not respond at first
    allow_imports   names or modules that the study may import
    should_stop     when it returns True, the running trial writes a checkpoint and is requeued
    like            a spec with the Python objects that were passed to the study

    The worker stays while other workers run trials, to take over those that they lose. A failed trial is stored with its
    reason. Raises RunError after five failures in a row (except in a comparison), Interrupted when stopped, and UserError
    for an import that is not allowed, before importing anything, and for data or callbacks that cannot be imported.
    """
    should_stop = _latched(should_stop)
    storage = open_storage(url, wait=wait)
    with guarded(f"the study {name!r} in {safe_url(url)}"):
        spec, scheduler = patiently(_open_study, name, storage, trials, allow_imports, like)
    given = spec.passed.data
    for source in _data_sets(spec) if given is None else ():
        check_import(source)
    spec = spec.with_passed(import_callbacks(spec))
    if spec.artifacts is not None:
        from subnet_search.search.engine.artifact_store import open_store

        open_store(spec)
    data = lru_cache(maxsize=2)(load)
    deadline = time.monotonic() + (timeout or spec.timeout or float("inf"))
    failures: list[str] = []
    ran: list[int] = []
    pause = POLL_SECONDS[0]
    while True:
        if should_stop():
            raise Interrupted("stopped between trials")
        lease = scheduler.next(start_new=time.monotonic() < deadline)
        if lease == "done":
            return ran
        if lease == "wait":
            time.sleep(pause)
            pause = min(2 * pause, POLL_SECONDS[1])
            continue
        pause = POLL_SECONDS[0]
        ending = _run_and_store(
            lease, spec, objective, lambda config: given or data(config.data, config.task.kind_of_labels), should_stop
        )
        if ending is None:
            continue
        ran.append(lease.number)
        failures = [] if ending.state in FINISHED else [*failures, ending.attrs["reason"]]
        if len(failures) >= FAILURES_IN_A_ROW and not spec.compares:
            raise RunError(f"{len(failures)} trials failed in a row, the last: {failures[-1]}")


def _data_sets(spec: StudySpec) -> Iterator[str]:
    """The names of the data sets of a study."""
    yield spec.run.data.name
    for entry in spec.searched.entries:
        if entry.key in ("data", "data.name"):
            values = entry.domain.choices if isinstance(entry.domain, OneOf) else [entry.value]
            names = (value.get("name") if isinstance(value, Mapping) else value for value in values)
            yield from (name for name in names if isinstance(name, str))


def _open_study(
    name: str, storage: BaseStorage, trials: int | None, allowed: Collection[str], like: StudySpec | None
) -> tuple[StudySpec, Scheduler]:
    """Load the study and its spec, and make the scheduler."""
    study = load_study(name, storage)
    spec = trusted_spec_of(study, allowed, like)
    adopt(study)
    started: dict[str, str] = study.user_attrs.get("versions", {})
    changed = [f"{key} {started[key]}, here {now}" for key, now in versions().items() if started.get(key, now) != now]
    if changed:
        log.warning("package versions differ from those at the start of the study: %s", "; ".join(changed))
    return spec, Scheduler(study, spec, trials or spec.trials, allowed)


def _run_and_store(
    lease: TrialLease,
    spec: StudySpec,
    objective: Objective,
    load: Callable[[RunConfig], Data],
    should_stop: Callable[[], bool],
) -> Ending | None:
    """Run a trial and store its final state; None if another worker took over or the study was stopped."""
    try:
        ending = objective(lease, spec, load, should_stop)
        lease.end(ending.state, ending.values, ending.attrs)
        if ending.state in FINISHED:
            drop_checkpoints(lease.folder)
        if spec.artifacts is not None:
            from subnet_search.search.engine.artifact_store import forget

            forget(lease, spec)
        after_trial(lease, spec.passed.on_trial)
        return ending
    except LeaseLost:
        log.warning("trial %d was taken over by another worker", lease.number)
        return None
    except Interrupted:
        stopped = should_stop()
        lease.release("interrupted" if stopped else "the study was stopped")
        if stopped:
            raise
        return None
    except (RunError, KeyboardInterrupt) as error:
        lease.release(str(error) or "interrupted")
        raise


def _latched(should_stop: Callable[[], bool]) -> Callable[[], bool]:
    """`should_stop`, which stays True after the first time."""
    said = False

    def held() -> bool:
        nonlocal said
        said = said or should_stop()
        return said

    return held
