"""Administration of studies: retry failed trials, release lost trials, stop or delete a study, prune its files."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import delete, select

from subnet_search.core.errors import RunError, UserError
from subnet_search.search.engine.copies import adopt
from subnet_search.search.storage.connect import database_of, rdb
from subnet_search.search.storage.leases import PATIENCE, is_dead, this_process
from subnet_search.search.storage.locks import exclusive
from subnet_search.search.storage.optuna_private import models
from subnet_search.search.storage.read import Snapshot, read_trials
from subnet_search.search.storage.records import NOW, REPEATS, RETRIES, STOPPED, TrialRecord, plain_spec, searched_trials
from subnet_search.search.storage.retry import patiently
from subnet_search.search.storage.run_files import kept_trials, run_folders, total
from subnet_search.search.storage.study_folder import folder_of
from subnet_search.search.storage.write import insert_trials, queued_again

RUN_LOCK = ".lock"  # as in extraction/run_folder.py, which imports torch
SAME_RUN = ("config", "seed", "cell", REPEATS)  # attributes that a retry copies from the failed trial


@dataclass(frozen=True)
class Retried:
    """The result of `retry`."""

    queued: dict[int, int]  # number of the new trial, by the number of the failed one
    skipped: dict[int, str]  # reason why a trial was not queued, by number
    counting: int  # trials that count in the study's budget, queued ones included


@dataclass(frozen=True)
class PrunedFiles:
    """The result of `prune_files`: numbers of run folders and bytes of their files, deleted and kept."""

    folder: str  # of the study
    trials: tuple[int, ...]  # numbers of the trials that keep their files
    deleted: Mapping[str, int]  # folders, bytes
    kept: Mapping[str, int]
    artifacts: int  # files deleted from the study's artifact store


def retry(study: optuna.Study, numbers: Sequence[int] = ()) -> Retried:
    """Queue failed trials (default: all) again with the same configuration and seed.

    Each trial is retried once; a failed retry can itself be retried. Raises UserError for a trial that has not failed.
    """
    return patiently(_retry, study, tuple(numbers))


def stop(study: optuna.Study, now: bool = False) -> list[int]:
    """Stop the study's workers after their running trials; with `now`, interrupt these at a checkpoint.

    Returns the numbers of the running trials. `study run` continues the study.
    """
    patiently(study.set_user_attr, STOPPED, NOW if now else True)
    return list(running_trials(study))


def running_trials(study: optuna.Study) -> dict[int, str]:
    """Running trials whose worker is not known to be dead: the worker as text, by trial number."""
    workers = {trial.number: TrialRecord(trial).worker for trial in _running_trials(study)}
    return {number: str(worker) for number, worker in workers.items() if not is_dead(worker)}


def check_idle(study: optuna.Study) -> None:
    """Raise UserError if trials are running."""
    if busy := running_trials(study):
        trials = ", ".join(f"trial {number} ({who})" for number, who in busy.items())
        raise UserError(
            f"the study {study.study_name!r} has running trials: {trials}; stop it first (subnet-search study stop --now "
            f"{study.study_name}; if the workers are dead, subnet-search study reap {study.study_name}), or use --force"
        )


def delete_study(study: optuna.Study, *, force: bool = False, files: bool = True) -> list[Path]:
    """Delete a study and, with `files`, its run folders and artifacts. Returns the deleted paths.

    Run folders of copied or imported trials belong to the original study and stay. Raises UserError if trials are running,
    unless `force`; RunError if files cannot be deleted, and the study then stays.
    """
    name, storage = study.study_name, study._storage
    adopt(study)
    folder = folder_of(study) if files and "folder" in study.user_attrs else None
    if folder and folder.is_symlink():
        raise UserError(f"{folder} is a symbolic link: delete it yourself, or use --keep-files")
    with exclusive(storage, name):
        if not force:
            check_idle(study)
        study.set_user_attr(STOPPED, NOW)  # so that no trial is started meanwhile
    deleted = []
    if files and plain_spec(study).get("artifacts"):
        from subnet_search.search.engine.artifact_store import remove_files

        remove_files(study, study.get_trials(deepcopy=False))
    if folder and folder.is_dir():
        _delete_folder(folder, "the study is still there")
        deleted.append(folder)
    with exclusive(storage, name):
        _delete_trials(study)
        optuna.delete_study(study_name=name, storage=storage)
    return deleted


def prune_files(study: optuna.Study, keep: int = 1, *, dry_run: bool = False) -> PrunedFiles:
    """Delete the run folders and artifacts of all finished trials but the best; the trials themselves stay.

    keep      how many of the best trials keep their files, with their repeats (of a comparison: rows, with all seeds); of
              several objectives, the whole Pareto front does
    dry_run   delete nothing, and return what would be deleted

    Trials that run or wait keep their files, so the study can be continued, and so do folders that a process has locked. Run
    folders of copied or imported trials belong to the original study and stay. Raises UserError for a study that
    subnet-search did not create, or a folder that is a symbolic link; RunError if files cannot be deleted.
    """
    spec = plain_spec(study)
    if keep < 1:
        raise UserError(f"keep must be 1 or more, got {keep}")
    if not spec:
        raise UserError(f"the study {study.study_name!r} was not created by subnet-search, so it has no run folders")
    adopt(study)
    if (folder := folder_of(study)).is_symlink():
        raise UserError(f"{folder} is a symbolic link: its files are not deleted")
    seen = Snapshot(study)
    trials, folders, kept = seen.get_trials(), run_folders(seen), kept_trials(seen, keep)
    kept |= {number for number, path in folders.items() if number not in kept and _is_locked(path)}
    rest, files = [trial for trial in trials if trial.number not in kept], dict[int, list[str]]()
    if spec.get("artifacts"):
        from subnet_search.search.engine.artifact_store import remove_files, uploaded

        files = uploaded(study, trials)
        if not dry_run:
            remove_files(study, rest)
    removed = {number: path for number, path in folders.items() if number not in kept}
    sizes = total(removed.values()), total(path for number, path in folders.items() if number in kept)
    stored = sum(len(names) for number, names in files.items() if number not in kept)
    for path in () if dry_run else removed.values():
        _delete_folder(path, "the other trials' files are still there")
    return PrunedFiles(str(folder), tuple(sorted(kept)), *sizes, stored)


def release_lost_trials(
    study: optuna.Study, *, now: bool = False, watch: Callable[[float, Sequence[int]], None] = lambda left, numbers: None
) -> list[FrozenTrial]:
    """Requeue the running trials that lost their worker and return them; after five worker deaths a trial fails.

    Worker processes on this machine are looked up. A worker on another machine counts as dead after five heartbeats
    without a sign of it: `watch` receives the remaining seconds and the trial numbers. `now` skips this wait.
    """
    from subnet_search.extraction.config_file import check
    from subnet_search.search.engine.scheduler import Scheduler
    from subnet_search.search.spec.study_spec import StudySpec

    if not (stored := plain_spec(study)):
        raise UserError(f"the study {study.study_name!r} was not created by subnet-search, so it cannot be continued")
    values: dict[str, Any] = {key: stored[key] for key in ("name", "heartbeat") if key in stored}
    spec = check(StudySpec, values)  # without its run, which could import a method or a task
    adopt(study)
    scheduler = Scheduler(study, spec, 0)
    freed = patiently(scheduler.release_lost_trials)
    if now:
        freed += patiently(_release_remote, study)
    seen, began = {trial.number: _heartbeat(trial) for trial in _running_trials(study)}, time.monotonic()
    while silent := [t.number for t in _running_trials(study) if seen.get(t.number) == _heartbeat(t) and not _is_alive_here(t)]:
        watch(max(0.0, PATIENCE * spec.heartbeat - (time.monotonic() - began)), silent)
        time.sleep(min(1.0, spec.heartbeat / 4))
        freed += patiently(scheduler.release_lost_trials)
    return [study.get_trials(deepcopy=False)[number] for number in sorted(set(freed))]


def _delete_folder(folder: Path, otherwise: str) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise RunError(f"cannot delete {error.filename or folder}: {error.strerror}; {otherwise}") from error


def _is_locked(folder: Path) -> bool:
    """Whether a process runs in a run folder: a worker that lost its trial can still do so."""
    if not (path := folder / RUN_LOCK).exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


def _retry(study: optuna.Study, numbers: Sequence[int]) -> Retried:
    with exclusive(study._storage, study.study_name):
        trials = read_trials(study, without=("log", "traceback"))
        done = {record.retries: record.trial.number for record in map(TrialRecord, trials) if record.retries is not None}
        failed = [trial for trial in trials if trial.state == TrialState.FAIL and trial.number not in done]
        chosen = _select(study, trials, numbers) if numbers else failed
        skipped = {t.number: f"already retried as trial {done[t.number]}" for t in chosen if t.number in done}
        for trial in chosen:
            record = TrialRecord(trial)
            if record.config is None:
                skipped[trial.number] = f"its configuration is invalid: {record.reason or 'it was never started'}"
        again = [trial for trial in chosen if trial.number not in skipped]
        added = insert_trials(database_of(study), study._study_id, list(map(_retry_of, again)))
    counting = sum(TrialRecord(trial).counts for trial in trials)
    queued = dict(zip((trial.number for trial in again), added, strict=True))
    return Retried(queued, skipped, counting + len(searched_trials(again)))


def _select(study: optuna.Study, trials: Sequence[FrozenTrial], numbers: Sequence[int]) -> list[FrozenTrial]:
    for number in numbers:
        if not 0 <= number < len(trials):
            raise UserError(f"the study {study.study_name!r} has no trial {number}: it has {len(trials)}, numbered from 0")
        if trials[number].state != TrialState.FAIL:
            raise UserError(f"only failed trials can be retried; trial {number} is {trials[number].state.name}")
    return [trials[number] for number in dict.fromkeys(numbers)]


def _retry_of(trial: FrozenTrial) -> FrozenTrial:
    same = {key: trial.user_attrs[key] for key in SAME_RUN if key in trial.user_attrs}
    return queued_again(trial, {**same, RETRIES: trial.number})


def _release_remote(study: optuna.Study) -> list[int]:
    """Requeue the running trials whose worker is not a live process on this machine."""
    from subnet_search.search.engine.trial_lease import requeue

    with exclusive(study._storage, study.study_name):
        unseen = [trial for trial in _running_trials(study) if not _is_alive_here(trial)]
        for trial in unseen:
            requeue(study._storage, trial, f"{TrialRecord(trial).worker} was declared dead by `study reap --now`")
    return [trial.number for trial in unseen]


def _running_trials(study: optuna.Study) -> list[FrozenTrial]:
    storage = rdb(study._storage) or study._storage  # the cache would read all trials first
    return patiently(lambda: storage.get_all_trials(study._study_id, deepcopy=False, states=(TrialState.RUNNING,)))


def _heartbeat(trial: FrozenTrial) -> tuple[Any, Any]:
    """Changes while the worker is alive."""
    return TrialRecord(trial).worker.token, TrialRecord(trial).beat


def _is_alive_here(trial: FrozenTrial) -> bool:
    """Whether the trial's worker is a live process on this machine."""
    here, worker = this_process(""), TrialRecord(trial).worker
    return (worker.host, worker.namespace) == (here.host, here.namespace) and not is_dead(worker)


def _delete_trials(study: optuna.Study) -> None:
    """Delete all trials table by table; Optuna would read each of them first."""
    if (database := rdb(study._storage)) is None:
        return
    trials = models.TrialModel.__table__
    mine = select(trials.c.trial_id).where(trials.c.study_id == study._study_id)
    with database.engine.begin() as connection:
        for table in models.BaseModel.metadata.sorted_tables:
            if "trial_id" in table.c and table is not trials:
                connection.execute(delete(table).where(table.c.trial_id.in_(mine)))
        connection.execute(delete(trials).where(trials.c.study_id == study._study_id))
