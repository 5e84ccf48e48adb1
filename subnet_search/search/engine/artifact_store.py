"""Store the files of trials for other machines, in Optuna's artifact store: a folder or an S3 bucket.

While a trial runs, its newest checkpoint is copied to the store under a fixed name, so that a worker on another machine
can resume it. When it ends, the files of its run folder are uploaded: Optuna's dashboard shows them, and `fetch` downloads
them. The store never changes a trial's result: errors are logged, and at worst steps are trained again.
"""

import contextlib
import functools
import io
import itertools
import json
import logging
import os
import re
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import optuna
from optuna.artifacts import Boto3ArtifactStore, FileSystemArtifactStore, get_all_artifact_meta, upload_artifact
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.trial import FrozenTrial

from subnet_search.core.errors import RunError, UserError
from subnet_search.core.tensor_files import load_tensors, write_atomically
from subnet_search.extraction.provenance import versions
from subnet_search.extraction.run_folder import CHECKPOINT
from subnet_search.search.engine.heartbeat import running
from subnet_search.search.engine.trial_lease import TrialLease
from subnet_search.search.spec.study_spec import StudySpec
from subnet_search.search.storage.artifact_protocol import ArtifactStore
from subnet_search.search.storage.connect import database_of, scrub
from subnet_search.search.storage.records import TrialRecord, plain_spec
from subnet_search.search.storage.retry import patiently
from subnet_search.search.storage.study_folder import folder_of
from subnet_search.search.storage.write import delete_system_attrs
from subnet_search.training import Epoch

FILES = ("config.yaml", "identity.json", "metrics.jsonl", "log.txt", "summary.json", "masks.safetensors")
POLL_SECONDS = 1.0  # between two checks for a newer checkpoint
MAX_TIME_FRACTION = 0.1  # largest fraction of the time spent on copying
RETRY_SECONDS = 60.0  # pause after a failed copy
STORE_ERRORS = Exception  # store libraries can raise anything, and that must not fail a finished trial

log = logging.getLogger(__name__)


class _Folder(FileSystemArtifactStore):
    """Optuna's store in a folder, with atomic writes: an interrupted copy leaves the previous file."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        super().write(f"{artifact_id}.part", content_body)
        os.replace(self.folder / f"{artifact_id}.part", self.folder / artifact_id)

    def remove(self, artifact_id: str) -> None:
        (self.folder / f"{artifact_id}.part").unlink(missing_ok=True)
        super().remove(artifact_id)


def open_store(spec: StudySpec) -> ArtifactStore | None:
    """The artifact store of a study, None if it has none. Raises UserError if it cannot be written, read or deleted from."""
    if spec.artifacts is None:
        return None
    with _or_raise(UserError, f"cannot keep artifacts in {_location(spec.artifacts)}"):
        store, name = _make_store(spec.artifacts), f"check-{uuid.uuid4().hex}"
        store.write(name, io.BytesIO(b"check"))
        _download(store, name)
        store.remove(name)
    return store


@contextlib.contextmanager
def shared(lease: TrialLease, spec: StudySpec) -> Iterator[None]:
    """Copy a trial's checkpoints to the study's store while it runs, and upload its files when it has ended."""
    store, copies = _make_store(spec.artifacts), _checkpoint_names(lease.folder, spec.repeats)
    if lease.attrs.get("versions", versions()) != versions():
        forget(lease, spec)
    elif "interruptions" in lease.attrs:
        done = len(lease.attrs.get("seeds", []))
        _restore_checkpoint(store, *list(copies.items())[: done + 1][-1])  # of the seed that was running
    copy = functools.partial(_copy_checkpoints, store, copies, {})
    try:
        with _copying(copy):
            yield
    except RunError:  # stopped; another worker will resume it
        copy()
        raise
    if lease.is_mine():
        _upload_files(store, lease, copies.values())


def forget(lease: TrialLease, spec: StudySpec) -> None:
    """Delete a trial's checkpoints from the store."""
    try:
        _remove(_make_store(spec.artifacts), _checkpoint_names(lease.folder, spec.repeats))
    except STORE_ERRORS as error:
        log.warning("cannot delete the stored checkpoint of trial %d: %s", lease.number, _error_text(error))


def fetch(study: optuna.Study, trial: FrozenTrial, folder: Path) -> list[Path]:
    """Download the missing files of a finished trial into a folder; returns their paths. Raises RunError if that fails."""
    if (settings := plain_spec(study).get("artifacts")) is None:
        return []
    found = []
    with _or_raise(RunError, f"cannot fetch the files of trial {trial.number} from {_location(settings)}"):
        store = _make_store(settings)
        for meta in get_all_artifact_meta(trial, storage=study._storage):
            seed, _, name = meta.filename.rpartition("-")
            path = folder / seed / name
            if name in FILES and re.fullmatch(r"(seed-\d+)?", seed) and not path.exists():
                with contextlib.suppress(ArtifactNotFound):
                    write_atomically(path, _download(store, meta.artifact_id))
                    found.append(path)
    return found


def uploaded(study: optuna.Study, trials: Iterable[FrozenTrial]) -> dict[int, list[str]]:
    """The names of a trial's uploaded files in the study's store, by the trial's number.

    Files of imported trials belong to their own study and are left out.
    """
    if plain_spec(study).get("artifacts") is None:
        return {}
    own = [trial for trial in trials if TrialRecord(trial).folder.parent == folder_of(study)]
    return {t.number: [meta.artifact_id for meta in get_all_artifact_meta(t, storage=study._storage)] for t in own}


def remove_files(study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
    """Delete the files of trials from the study's store, checkpoints included, and Optuna's records of them.

    Files of imported trials belong to their own study and stay. Raises RunError when files cannot be deleted.
    """
    spec, names = plain_spec(study), uploaded(study, trials)
    own = [trial for trial in trials if trial.number in names]
    copies = [_checkpoint_names(TrialRecord(trial).folder, spec.get("repeats", 1)) for trial in own]
    if not own:
        return
    with _or_raise(RunError, f"cannot delete the study's files from {_location(spec['artifacts'])}"):
        _remove(_make_store(spec["artifacts"]), itertools.chain(*copies, *names.values()))
    records = {t._trial_id: [key for key in t.system_attrs if key.endswith(tuple(names[t.number]))] for t in own}
    delete_system_attrs(database_of(study), records)


def _restore_checkpoint(store: ArtifactStore, name: str, run: Path) -> None:
    """Download a checkpoint into a run folder if it has more steps than the one there."""
    fetched = (run / CHECKPOINT).with_name("fetched.safetensors")
    try:
        write_atomically(fetched, _download(store, name))
        there, here = _progress(fetched), _progress(run / CHECKPOINT)
        if there is None:
            log.warning("the stored checkpoint is damaged and is ignored")
        elif here is None or there["step"] > here["step"]:
            epochs = "".join(json.dumps(Epoch.of(epoch).plain()) + "\n" for epoch in there["history"])
            write_atomically(run / "metrics.jsonl", epochs.encode())
            os.replace(fetched, run / CHECKPOINT)
            log.info("downloaded the checkpoint after step %d", there["step"])
    except ArtifactNotFound:
        pass
    except STORE_ERRORS as error:
        log.warning("cannot download the stored checkpoint: %s", _error_text(error))
    finally:
        fetched.unlink(missing_ok=True)


def _progress(checkpoint: Path) -> dict[str, Any] | None:
    """Progress stored in a checkpoint; None if it is missing or damaged."""
    try:
        return dict(load_tensors(checkpoint, "checkpoint")[1]["progress"])
    except (UserError, KeyError):
        return None


@contextlib.contextmanager
def _copying(copy: Callable[[], bool]) -> Iterator[None]:
    """Copy checkpoints in a background thread, for at most 10 % of the time; only the newest is copied."""
    ended = threading.Event()

    def keep() -> None:
        pause = POLL_SECONDS
        while not ended.wait(pause):
            start = time.monotonic()
            pause = max(POLL_SECONDS if copy() else RETRY_SECONDS, (time.monotonic() - start) / MAX_TIME_FRACTION)

    with running(keep, ended):
        yield


def _copy_checkpoints(store: ArtifactStore, copies: Mapping[str, Path], done: dict[str, tuple[int, int]]) -> bool:
    """Copy the checkpoints that have changed since the copies in `done`. Returns whether this succeeded."""
    try:
        for name, run in copies.items():
            with contextlib.suppress(FileNotFoundError), open(run / CHECKPOINT, "rb") as file:
                state = os.fstat(file.fileno())  # of the opened file, even if it is replaced meanwhile
                if done.get(name) != (mark := (state.st_ino, state.st_mtime_ns)):
                    store.write(name, file)
                    done[name] = mark
    except STORE_ERRORS as error:
        log.warning("cannot copy the checkpoint: %s", _error_text(error))
        return False
    return True


def _upload_files(store: ArtifactStore, lease: TrialLease, runs: Iterable[Path]) -> None:
    """Upload the files of a trial before its final state is stored: Optuna rejects attributes afterwards."""
    storage = lease.study._storage
    try:
        trial = patiently(storage.get_trial, lease.trial_id)
        there = {meta.filename: meta.artifact_id for meta in get_all_artifact_meta(trial, storage=storage)}
        upload = functools.partial(upload_artifact, study_or_trial=trial, storage=storage, artifact_store=store)
        with tempfile.TemporaryDirectory() as links:  # uploads are named by file, and seeds have the same file names
            for run in runs:
                for path in filter(Path.is_file, (run / name for name in FILES)):
                    link = Path(links) / (path.name if run == lease.folder else f"{run.name}-{path.name}")
                    link.symlink_to(path.resolve())
                    if link.name in there:  # uploaded by a worker that was killed before it stored the final state
                        with open(link, "rb") as file:
                            store.write(there[link.name], file)
                    else:
                        patiently(functools.partial(upload, file_path=str(link)))
    except STORE_ERRORS as error:
        log.warning("cannot upload the files of the trial: %s", _error_text(error))
        lease.note(not_uploaded=_error_text(error))


def _checkpoint_names(folder: Path, seeds: int) -> dict[str, Path]:
    """Run folders of a trial, one per seed, by the name of their checkpoint in the store."""
    runs = [folder, *(folder / f"seed-{index}" for index in range(1, seeds))]
    return {"-".join((*run.relative_to(folder.parents[1]).parts, "checkpoint")): run for run in runs}


def _remove(store: ArtifactStore, names: Iterable[str]) -> None:
    """Delete files that may not exist."""

    def remove(name: str) -> None:
        with contextlib.suppress(ArtifactNotFound):
            store.remove(name)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(remove, names))


def _download(store: ArtifactStore, name: str) -> bytes:
    with store.open_reader(name) as reader:
        return reader.read()


def _make_store(settings: str | dict[str, Any] | None) -> ArtifactStore:
    if isinstance(settings, str):
        return _Folder(Path(settings).expanduser())
    return _bucket(json.dumps(settings))


@functools.cache
def _bucket(settings: str) -> ArtifactStore:
    """An S3 bucket. Raises UserError when boto3 is missing."""
    options = json.loads(settings)
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise UserError("artifacts in an S3 bucket need boto3 (pip install 'subnet-search[s3]')") from error
    config = Config(
        connect_timeout=10,
        retries={"mode": "standard", "total_max_attempts": 5},
        request_checksum_calculation="when_required",  # servers other than Amazon's refuse the checksums that are optional
        response_checksum_validation="when_required",
    )
    return Boto3ArtifactStore(options.pop("bucket"), boto3.client("s3", config=config, **options), avoid_buf_copy=True)


def _location(settings: str | dict[str, Any]) -> str:
    return settings if isinstance(settings, str) else f"the bucket {settings['bucket']}"


@contextlib.contextmanager
def _or_raise(kind: type[UserError | RunError], what: str) -> Iterator[None]:
    try:
        yield
    except (UserError, RunError):
        raise
    except STORE_ERRORS as error:
        raise kind(f"{what}: {_error_text(error)}") from error


def _error_text(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    return scrub(" ".join(text.split()))
