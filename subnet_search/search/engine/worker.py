"""A worker: one process that runs trials of a study until its budget is met. Stateless; the storage is the state."""

import logging
import time
from collections.abc import Callable, Collection
from functools import lru_cache

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from subnet_search.core.errors import Interrupted, RunError
from subnet_search.data import Data, load
from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.config_file import check
from subnet_search.extraction.provenance import versions
from subnet_search.extraction.run_folder import drop_checkpoints
from subnet_search.search.engine.copies import adopt
from subnet_search.search.engine.scheduler import Scheduler
from subnet_search.search.engine.trial_lease import LeaseLost, TrialLease
from subnet_search.search.engine.trial_runner import Ending, run_trial
from subnet_search.search.spec.study_spec import StudySpec, trusted_spec_of
from subnet_search.search.storage.connect import load_study, open_storage, safe_url
from subnet_search.search.storage.records import FINISHED, TrialRecord
from subnet_search.search.storage.retry import guarded, patiently

FAILURES_IN_A_ROW = 5
LOOK_AGAIN = 0.01, 2.0  # seconds a worker waits for others before it looks again: at first, and at most

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
) -> list[int]:
    """Run trials until `trials` of the study (default: its spec's number) are finished or `timeout` seconds passed.

    Returns the numbers of the trials that ended here. While others are at work the worker stays, to take over what they
    leave. A trial that fails is recorded with its reason and the worker goes on; after five failures in a row it raises
    RunError, since the sixth would fail too (but not in a comparison, whose cells have little in common). When
    `should_stop` says so, the trial under way writes a checkpoint and waits to go on, and Interrupted is raised.
    A storage that does not answer at first is waited for `wait` seconds. What the study imports, for networks that are
    not ours, must be in `allow_imports`, by its name or its module: else UserError says so, and nothing is imported.
    """
    should_stop = _held(should_stop)
    storage = open_storage(url, wait=wait)
    with guarded(f"the study {name!r} in {safe_url(url)}"):
        spec, scheduler = patiently(_take_up, name, storage, trials, allow_imports)
    if spec.artifacts is not None:
        from subnet_search.search.engine.artifact_store import open_store

        open_store(spec)
    data = lru_cache(maxsize=2)(load)
    deadline = time.monotonic() + (timeout or spec.timeout or float("inf"))
    failures: list[str] = []
    ran: list[int] = []
    pause = LOOK_AGAIN[0]
    while True:
        if should_stop():
            raise Interrupted("stopped between trials")
        lease = scheduler.next(begin=time.monotonic() < deadline)
        if lease == "done":
            return ran
        if lease == "wait":
            time.sleep(pause)
            pause = min(2 * pause, LOOK_AGAIN[1])
            continue
        pause = LOOK_AGAIN[0]
        ending = _run(lease, spec, objective, lambda config: data(config.data), should_stop)
        if ending is None:
            continue
        ran.append(lease.number)
        failures = [] if ending.state in FINISHED else [*failures, ending.attrs["reason"]]
        if len(failures) >= FAILURES_IN_A_ROW and not spec.compares:
            raise RunError(f"{len(failures)} trials failed in a row, the last because: {failures[-1]}")


def _take_up(name: str, storage: BaseStorage, trials: int | None, allowed: Collection[str]) -> tuple[StudySpec, Scheduler]:
    """All that a worker reads of a study before it looks for a trial."""
    study = load_study(name, storage)
    spec = trusted_spec_of(study, allowed)
    adopt(study)
    _tell_versions(study.user_attrs.get("versions", {}))
    return spec, Scheduler(study, spec, trials or spec.trials, allowed)


def _run(
    lease: TrialLease,
    spec: StudySpec,
    objective: Objective,
    load: Callable[[RunConfig], Data],
    should_stop: Callable[[], bool],
) -> Ending | None:
    """Run a trial and store its end; None when another worker has taken it over, or the study was stopped."""
    try:
        ending = objective(lease, spec, load, should_stop)
        lease.end(ending.state, ending.values, ending.attrs)
        if ending.state in FINISHED:
            drop_checkpoints(lease.folder)
        if spec.artifacts is not None:
            from subnet_search.search.engine.artifact_store import forget

            forget(lease, spec)
        return ending
    except LeaseLost:
        log.warning("trial %d was taken over by another worker", lease.number)
        return None
    except Interrupted:
        if should_stop():
            lease.release("interrupted")
            raise
        lease.release("the study was stopped")
        return None
    except RunError as error:
        lease.release(str(error))
        raise
    except KeyboardInterrupt:
        lease.release("broken off")
        raise


def _held(should_stop: Callable[[], bool]) -> Callable[[], bool]:
    """`should_stop`, which goes on saying so once it has."""
    said = False

    def held() -> bool:
        nonlocal said
        said = said or should_stop()
        return said

    return held


def _tell_versions(begun: dict[str, str]) -> None:
    changed = [f"{key} {begun[key]}, here {now}" for key, now in versions().items() if begun.get(key, now) != now]
    if changed:
        log.warning("the study was begun with %s: its trials say which version they ran with", "; ".join(changed))


def config_of(trial: FrozenTrial) -> RunConfig:
    """The complete configuration that a trial ran with. Raises RunError when it never began."""
    record = TrialRecord(trial)
    if record.config is None:
        reason = "it waits to begin" if trial.state == TrialState.WAITING else record.reason or "it never began"
        raise RunError(f"trial {trial.number} holds no configuration: {reason}")
    return check(RunConfig, record.config)
