"""Repairs by hand: failed trials once more, trials without a worker, stopping a study, deleting one."""

import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import delete, select

from subnet_search.core.errors import RunError, UserError
from subnet_search.search.engine.copies import adopt
from subnet_search.search.storage.connect import rdb
from subnet_search.search.storage.leases import PATIENCE, is_dead, this_process
from subnet_search.search.storage.locks import exclusive
from subnet_search.search.storage.optuna_private import models
from subnet_search.search.storage.read import read_trials
from subnet_search.search.storage.records import NOW, REPEATS, RETRIES, STOPPED, TrialRecord, plain_spec, searched_trials
from subnet_search.search.storage.retry import patiently
from subnet_search.search.storage.study_folder import folder_of
from subnet_search.search.storage.write import insert_trials

SAME_RUN = ("config", "seed", "cell", REPEATS)  # what makes a trial the same run as another


@dataclass(frozen=True)
class Retried:
    """What `retry` did."""

    queued: dict[int, int]  # the numbers of the new trials, by those of the failed ones
    skipped: dict[int, str]  # why others were not queued
    places: int  # trials that count in the study's budget once all are finished


def retry(study: optuna.Study, numbers: Sequence[int] = ()) -> Retried:
    """Queue failed trials once more, by default all of them: the same configuration, on the same seed.

    A trial is retried once; a retry that fails is a failed trial like any other. Raises UserError for a trial that has
    not failed.
    """
    return patiently(_retry, study, tuple(numbers))


def stop(study: optuna.Study, now: bool = False) -> list[int]:
    """Let the study's workers end after the trials under way; with `now`, interrupt those at their last checkpoint.

    Returns the numbers of the trials under way. `study run` goes on.
    """
    patiently(study.set_user_attr, STOPPED, NOW if now else True)
    return list(at_work(study))


def at_work(study: optuna.Study) -> dict[int, str]:
    """The trials under way whose worker is not known to be gone, by number, and who the worker is."""
    return {trial.number: str(TrialRecord(trial).worker) for trial in _running(study) if not is_dead(TrialRecord(trial).worker)}


def check_idle(study: optuna.Study) -> None:
    """Raises UserError that names the trials under way."""
    if busy := at_work(study):
        trials = ", ".join(f"trial {number} ({who})" for number, who in busy.items())
        raise UserError(
            f"the study {study.study_name!r} is at work: {trials}; stop it first (subnet-search study stop --now "
            f"{study.study_name}, for dead workers study reap), or use --force"
        )


def delete_study(study: optuna.Study, *, force: bool = False, files: bool = True) -> list[Path]:
    """Delete a study; with `files`, its folder of run folders and its artifacts too. Returns what was deleted of the disk.

    Run folders of trials that came with a copy or an import belong to the study that they came from, and stay.

    Raises UserError when trials are under way, unless `force`; RunError when files cannot be deleted: the study stays.
    """
    name, storage = study.study_name, study._storage
    adopt(study)
    folder = folder_of(study) if files and "folder" in study.user_attrs else None
    if folder and folder.is_symlink():
        raise UserError(f"{folder} is a link to a folder: delete it yourself, or keep the files (--keep-files)")
    with exclusive(storage, name):
        if not force:
            check_idle(study)
        study.set_user_attr(STOPPED, NOW)  # so that nobody begins a trial meanwhile
    deleted = []
    if files and plain_spec(study).get("artifacts"):
        from subnet_search.search.engine.artifact_store import remove_all

        remove_all(study)
    if folder and folder.is_dir():
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise RunError(f"cannot delete {error.filename or folder}: {error.strerror}; the study is still there") from error
        deleted.append(folder)
    with exclusive(storage, name):
        _delete_trials(study)
        optuna.delete_study(study_name=name, storage=storage)
    return deleted


def reap(
    study: optuna.Study, *, now: bool = False, watch: Callable[[float, Sequence[int]], None] = lambda left, numbers: None
) -> list[FrozenTrial]:
    """Let the trials wait whose worker is gone, and return them as they are by then; after five deaths a trial fails.

    A worker's process on this machine is looked up. One elsewhere is gone when it gives no sign of life for five
    heartbeats: `watch` is told the seconds left and the trials. With `now` it is held to be gone at once.
    """
    from subnet_search.search.engine.scheduler import Scheduler
    from subnet_search.search.spec.study_spec import spec_of

    spec = spec_of(study)
    adopt(study)
    scheduler = Scheduler(study, spec, 0)
    freed = patiently(scheduler.reap)
    if now:
        freed += patiently(_give_up, study)
    seen, began = {trial.number: _sign(trial) for trial in _running(study)}, time.monotonic()
    while silent := [t.number for t in _running(study) if seen.get(t.number) == _sign(t) and not _in_sight(t)]:
        watch(max(0.0, PATIENCE * spec.heartbeat - (time.monotonic() - began)), silent)
        time.sleep(min(1.0, spec.heartbeat / 4))
        freed += patiently(scheduler.reap)
    return [study.get_trials(deepcopy=False)[number] for number in sorted(set(freed))]


def _retry(study: optuna.Study, numbers: Sequence[int]) -> Retried:
    database = rdb(study._storage)
    assert database is not None, "studies are made in databases"
    with exclusive(study._storage, study.study_name):
        trials = read_trials(study, without=("log", "traceback"))
        done = {record.retries: record.trial.number for record in map(TrialRecord, trials) if record.retries is not None}
        chosen = _chosen(study, trials, numbers) if numbers else _failed(trials, but=done)
        skipped = {t.number: f"it was retried as trial {done[t.number]}" for t in chosen if t.number in done}
        for trial in chosen:
            record = TrialRecord(trial)
            if record.config is None:
                skipped[trial.number] = f"it asks for no run that can be: {record.reason or 'it never began'}"
        again = [trial for trial in chosen if trial.number not in skipped]
        added = insert_trials(database, study._study_id, [_again(trial) for trial in again])
    places = sum(TrialRecord(trial).counts for trial in trials)
    queued = dict(zip((trial.number for trial in again), added, strict=True))
    return Retried(queued, skipped, places + len(searched_trials(again)))


def _failed(trials: Iterable[FrozenTrial], but: Iterable[int]) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state == TrialState.FAIL and trial.number not in set(but)]


def _chosen(study: optuna.Study, trials: Sequence[FrozenTrial], numbers: Sequence[int]) -> list[FrozenTrial]:
    for number in numbers:
        if not 0 <= number < len(trials):
            raise UserError(f"the study {study.study_name!r} has no trial {number}: it has {len(trials)}, counted from 0")
        if trials[number].state != TrialState.FAIL:
            raise UserError(f"trial {number} has not failed, so it cannot be retried: it is {trials[number].state.name}")
    return [trials[number] for number in dict.fromkeys(numbers)]


def _again(trial: FrozenTrial) -> FrozenTrial:
    same = {key: trial.user_attrs[key] for key in SAME_RUN if key in trial.user_attrs}
    return create_trial(
        state=TrialState.WAITING,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs={**same, RETRIES: trial.number},
    )


def _give_up(study: optuna.Study) -> list[int]:
    """Let the running trials wait that cannot be seen from this machine."""
    from subnet_search.search.engine.trial_lease import let_wait

    with exclusive(study._storage, study.study_name):
        unseen = [trial for trial in _running(study) if not _in_sight(trial)]
        for trial in unseen:
            let_wait(study._storage, trial, f"{TrialRecord(trial).worker} was given up by hand")
    return [trial.number for trial in unseen]


def _running(study: optuna.Study) -> list[FrozenTrial]:
    storage = rdb(study._storage) or study._storage  # its cache would first read all trials, finished ones too
    return patiently(lambda: storage.get_all_trials(study._study_id, deepcopy=False, states=(TrialState.RUNNING,)))


def _sign(trial: FrozenTrial) -> tuple[Any, Any]:
    """A worker's sign of life: alive is one for whom it changes."""
    return TrialRecord(trial).worker.token, TrialRecord(trial).beat


def _in_sight(trial: FrozenTrial) -> bool:
    """Whether the trial's worker can be looked up from here, and is there."""
    here, worker = this_process(""), TrialRecord(trial).worker
    return (worker.host, worker.namespace) == (here.host, here.namespace) and not is_dead(worker)


def _delete_trials(study: optuna.Study) -> None:
    """All trials, table by table; Optuna would read each of them first."""
    if (database := rdb(study._storage)) is None:
        return
    trials = models.TrialModel.__table__
    mine = select(trials.c.trial_id).where(trials.c.study_id == study._study_id)
    with database.engine.begin() as connection:
        for table in models.BaseModel.metadata.sorted_tables:
            if "trial_id" in table.c and table is not trials:
                connection.execute(delete(table).where(table.c.trial_id.in_(mine)))
        connection.execute(delete(trials).where(trials.c.study_id == study._study_id))
