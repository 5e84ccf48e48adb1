"""Files of trials for people and workers on other machines, by Optuna's artifact store: a folder, or an S3 bucket.

While a trial runs, its newest checkpoint is copied to the store under a fixed name, so that a worker elsewhere can go on
from it. When it ends, the files of its run folder are uploaded: Optuna's dashboard shows them, and `fetch` brings them
back. What a trial finds never depends on the store: whatever is wrong with it, or with a copy, is logged, and costs at
most the steps again.
"""

import contextlib
import functools
import io
import json
import logging
import os
import re
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from subnet_search.search.engine.trial_lease import TrialLease
from subnet_search.search.spec.study_spec import StudySpec
from subnet_search.search.storage.artifact_protocol import ArtifactStore
from subnet_search.search.storage.connect import scrub
from subnet_search.search.storage.records import TrialRecord
from subnet_search.search.storage.retry import patiently
from subnet_search.search.storage.study_folder import folder_of

FILES = ("config.yaml", "identity.json", "metrics.jsonl", "log.txt", "summary.json", "masks.safetensors")
LOOK = 1.0  # seconds between two looks for a newer checkpoint
SHARE = 0.1  # of a worker's time, that copying takes at most
REST = 60.0  # seconds after a copy that failed
FAULTS = Exception  # the libraries under a store raise what they like, and a trial that has its result must not fail by it

log = logging.getLogger(__name__)


class _Folder(FileSystemArtifactStore):
    """Optuna's store in a folder, where a file is replaced whole: a copy that is cut off leaves the one before."""

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
    """The store of a study's artifacts, after a file was written to it, read and removed; None when it keeps none.

    Raises UserError when that cannot be done.
    """
    if spec.artifacts is None:
        return None
    with _or_raise(UserError, f"cannot keep artifacts in {_where(spec.artifacts)}"):
        store, name = _store(spec.artifacts), f"check-{uuid.uuid4().hex}"
        store.write(name, io.BytesIO(b"a check that files can be kept here"))
        _read(store, name)
        store.remove(name)
    return store


@contextlib.contextmanager
def shared(lease: TrialLease, spec: StudySpec) -> Iterator[None]:
    """While a trial runs here, copy its checkpoints to the store of its study; when it has ended, upload its files."""
    store, copies = _store(spec.artifacts), _copies(lease.folder, spec.repeats)
    if lease.attrs.get("versions", versions()) != versions():
        forget(lease, spec)
    elif "interruptions" in lease.attrs:
        done = len(lease.attrs.get("seeds", []))
        _take_up(store, *list(copies.items())[: done + 1][-1])  # of the seed that is under way
    copy = functools.partial(_copy, store, copies, {})
    try:
        with _now_and_then(copy):
            yield
    except RunError:  # it was stopped, and waits for a worker
        copy()
        raise
    if lease.mine():
        _upload(store, lease, copies.values())


def forget(lease: TrialLease, spec: StudySpec) -> None:
    """Remove the copies of a trial's checkpoints."""
    try:
        _remove(_store(spec.artifacts), _copies(lease.folder, spec.repeats))
    except FAULTS as error:
        log.warning("cannot remove the copy of trial %d's checkpoint: %s", lease.number, _reason(error))


def fetch(study: optuna.Study, trial: FrozenTrial, folder: Path) -> list[Path]:
    """Download the files of a trial that has ended into a folder, but those that it holds. Returns the paths of what came.

    Raises RunError when the study's store cannot be read.
    """
    settings, found = _settings(study)[0], []
    if settings is None:
        return []
    with _or_raise(RunError, f"cannot fetch the files of trial {trial.number} from {_where(settings)}"):
        store = _store(settings)
        for meta in get_all_artifact_meta(trial, storage=study._storage):
            seed, _, name = meta.filename.rpartition("-")
            path = folder / seed / name
            if name in FILES and re.fullmatch(r"(seed-\d+)?", seed) and not path.exists():
                with contextlib.suppress(ArtifactNotFound):
                    write_atomically(path, _read(store, meta.artifact_id))
                    found.append(path)
    return found


def remove_all(study: optuna.Study) -> None:
    """Remove all that a study has in its store: to be done before the study is deleted.

    Trials that came with another study, by an import, leave their files to it. Raises RunError when it cannot be done.
    """
    settings, seeds = _settings(study)
    if settings is None:
        return
    folder, names = folder_of(study), list[str]()
    for trial in study.get_trials(deepcopy=False):
        run_folder = TrialRecord(trial).folder
        if run_folder.parent == folder:
            names += _copies(run_folder, seeds)
            names += [meta.artifact_id for meta in get_all_artifact_meta(trial, storage=study._storage)]
    with _or_raise(RunError, f"cannot remove the study's files from {_where(settings)}"):
        _remove(_store(settings), names)


def _take_up(store: ArtifactStore, name: str, run: Path) -> None:
    """Bring a run folder up to the copy of its checkpoint, where that is further than its own."""
    fetched = (run / CHECKPOINT).with_name("fetched.safetensors")
    try:
        write_atomically(fetched, _read(store, name))
        there, here = _progress(fetched), _progress(run / CHECKPOINT)
        if there is None:
            log.warning("the copy of its checkpoint is damaged, and not used")
        elif here is None or there["step"] > here["step"]:
            epochs = "".join(json.dumps(epoch) + "\n" for epoch in there["history"])
            write_atomically(run / "metrics.jsonl", epochs.encode())
            os.replace(fetched, run / CHECKPOINT)
            log.info("its checkpoint after step %d was fetched", there["step"])
    except ArtifactNotFound:
        pass
    except FAULTS as error:
        log.warning("cannot fetch its checkpoint: %s", _reason(error))
    finally:
        fetched.unlink(missing_ok=True)


def _progress(checkpoint: Path) -> dict[str, Any] | None:
    """How far a checkpoint is; None for one that is missing or damaged."""
    try:
        return dict(load_tensors(checkpoint, "checkpoint")[1]["progress"])
    except (UserError, KeyError):
        return None


@contextlib.contextmanager
def _now_and_then(copy: Callable[[], bool]) -> Iterator[None]:
    """Copy in the background, for a tenth of the time at most. What has become old in between is passed over."""
    ended = threading.Event()

    def keep() -> None:
        pause = LOOK
        while not ended.wait(pause):
            start = time.monotonic()
            pause = max(LOOK if copy() else REST, (time.monotonic() - start) / SHARE)

    (thread := threading.Thread(target=keep, daemon=True)).start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _copy(store: ArtifactStore, copies: Mapping[str, Path], done: dict[str, tuple[int, int]]) -> bool:
    """Copy the checkpoints that are newer than what was `done`. Whether that went well."""
    try:
        for name, run in copies.items():
            with contextlib.suppress(FileNotFoundError), open(run / CHECKPOINT, "rb") as file:
                state = os.fstat(file.fileno())  # of what is read now, also when the next one takes its place
                if done.get(name) != (mark := (state.st_ino, state.st_mtime_ns)):
                    store.write(name, file)
                    done[name] = mark
    except FAULTS as error:
        log.warning("cannot copy the checkpoint: %s", _reason(error))
        return False
    return True


def _upload(store: ArtifactStore, lease: TrialLease, runs: Iterable[Path]) -> None:
    """Upload the files of a trial that ends. The storage takes their names only before it knows of the end."""
    storage = lease.study._storage
    try:
        trial = patiently(storage.get_trial, lease.trial_id)
        there = {meta.filename: meta.artifact_id for meta in get_all_artifact_meta(trial, storage=storage)}
        upload = functools.partial(upload_artifact, study_or_trial=trial, storage=storage, artifact_store=store)
        with tempfile.TemporaryDirectory() as links:  # an upload goes by its file's name, which seeds share
            for run in runs:
                for path in filter(Path.is_file, (run / name for name in FILES)):
                    link = Path(links) / (path.name if run == lease.folder else f"{run.name}-{path.name}")
                    link.symlink_to(path.resolve())
                    if link.name in there:  # by a worker that was killed before it could store the end
                        with open(link, "rb") as file:
                            store.write(there[link.name], file)
                    else:
                        patiently(functools.partial(upload, file_path=str(link)))
    except FAULTS as error:
        log.warning("cannot upload the files of the trial: %s", _reason(error))
        lease.note(not_uploaded=_reason(error))


def _copies(folder: Path, seeds: int) -> dict[str, Path]:
    """The run folders of a trial, one for each of its seeds, by the names of the copies of their checkpoints."""
    runs = [folder, *(folder / f"seed-{index}" for index in range(1, seeds))]
    return {"-".join((*run.relative_to(folder.parents[1]).parts, "checkpoint")): run for run in runs}


def _remove(store: ArtifactStore, names: Iterable[str]) -> None:
    """Remove files, of which some may not be there."""

    def remove(name: str) -> None:
        with contextlib.suppress(ArtifactNotFound):
            store.remove(name)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(remove, names))


def _read(store: ArtifactStore, name: str) -> bytes:
    with store.open_reader(name) as reader:
        return reader.read()


def _settings(study: optuna.Study) -> tuple[str | dict[str, Any] | None, int]:
    """Where a study keeps artifacts, and how many seeds its trials have at most."""
    spec = json.loads(study.user_attrs.get("spec", "{}"))
    return spec.get("artifacts"), spec.get("repeats", 1)


def _store(settings: str | dict[str, Any] | None) -> ArtifactStore:
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


def _where(settings: str | dict[str, Any]) -> str:
    return settings if isinstance(settings, str) else f"the bucket {settings['bucket']}"


@contextlib.contextmanager
def _or_raise(kind: type[UserError | RunError], what: str) -> Iterator[None]:
    try:
        yield
    except (UserError, RunError):
        raise
    except FAULTS as error:
        raise kind(f"{what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    return scrub(" ".join(text.split()))
