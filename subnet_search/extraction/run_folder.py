"""A run folder: config.yaml, metrics.jsonl, checkpoint/, and at the end the subnetworks and summary.json.

identity.json has hashes of the network and data, which need not be in the configuration and can change under one name.
inputs.safetensors has a few inputs for checking exports. A run locks its folder; the lock ends with the process.
"""

import contextlib
import errno
import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from subnet_search.artifact import Subnetwork
from subnet_search.artifact.input_spec import save_examples
from subnet_search.artifact.mask_file import save_masks
from subnet_search.artifact.subnetwork import INPUTS, Weights
from subnet_search.core.documents import dump, plain, read_file, read_json
from subnet_search.core.errors import RunError, UserError, reading
from subnet_search.core.task_metrics import leading_in
from subnet_search.core.tensor_files import header_of, remove_temporary, write_atomically
from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.config_file import flatten
from subnet_search.training import Epoch
from subnet_search.training.distributed import from_first, rank_and_world

CHECKPOINT = Path("checkpoint") / "state.safetensors"
IDENTITY = "identity.json"
LOCK = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # errors of a file system without locks
IDENTITY_PARTS = {  # keys of identity.json, with the message for a difference
    "network": "the network differs from",
    "weights": "the network's weights differ from",
    "init": "the network's initialisation differs from",
    "data": "the data differ from",
}

log = logging.getLogger(__name__)


def free_folder(name: str) -> Path:
    """The first of runs/NAME, runs/NAME-2, ... without a run."""
    return next(folder for folder in _folders(name) if not (folder / "config.yaml").is_file())


def last_folder(name: str) -> Path:
    """The last of runs/NAME, runs/NAME-2, ... with a run. Raises UserError if there is none."""
    found = list(itertools.takewhile(lambda folder: (folder / "config.yaml").is_file(), _folders(name)))
    if not found:
        raise UserError(f"no run to resume in runs/{name}")
    return found[-1]


def _folders(name: str) -> Iterator[Path]:
    yield Path("runs") / name
    yield from (Path("runs") / f"{name}-{number}" for number in itertools.count(2))


@dataclass(frozen=True)
class RunFolder:
    """The folder that a run's first process writes to; without a path, nothing is written.

    leased  the caller holds a lease on the folder, so continue even if another process has its lock
    saves   write subnetwork.safetensors; if False, write only the masks and keep the checkpoint for the caller to delete
    """

    path: Path | None
    leased: bool = False
    saves: bool = True

    @property
    def keeps_subnetwork(self) -> bool:
        """Whether subnetwork.safetensors is written."""
        return self.path is not None and self.saves

    @property
    def checkpoint(self) -> Path | None:
        """The path of the checkpoint. None: there is no folder."""
        return self.path / CHECKPOINT if self.path else None

    @property
    def _written(self) -> Path | None:
        """The folder, in the process that writes to it."""
        return self.path if rank_and_world()[0] == 0 else None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for one run. Raises UserError at once if another run has the lock."""
        if self.path is None:
            yield
            return
        lock = FileLock(self.path / LOCK, timeout=0)
        from_first(partial(_acquire, lock, self.path, self.leased))
        try:
            yield
        finally:
            if lock.is_locked:
                with contextlib.suppress(OSError):  # some systems cannot delete an open file
                    (self.path / LOCK).unlink()
                with contextlib.suppress(OSError):  # if an invalid configuration left it empty
                    self.path.rmdir()
                lock.release()

    def check_free(self) -> None:
        """Raise UserError early if another run has the folder's lock."""
        if self.path is not None and not self.leased and from_first((self.path / LOCK).exists):
            with self.locked():
                pass

    def prepare(self, wanted: Mapping[str, Any], resume: bool, identity: Mapping[str, str | None]) -> str | None:
        """Write config.yaml, or check that the existing one is the same. Returns the run's name in checkpoints.

        identity   hashes of the network and data (`IDENTITY_PARTS`); folders of old versions have none

        Only `weights` may differ. Raises UserError that names the first difference.
        """
        path = self.path
        return from_first(lambda: _prepare(path, wanted, resume, identity)) if path else None

    def finished(self, weights: Weights, densities: Iterable[float] = ()) -> Subnetwork | None:
        """The result of a finished run, or None. Files are rewritten if `weights` has changed.

        Raises UserError if the finished run lacks one of the densities.
        """
        path = self.path
        return from_first(lambda: _finished(path, weights, densities)) if path else None

    @contextlib.contextmanager
    def removed_on_user_error(self) -> Iterator[None]:
        """Remove the folder's new files if a UserError is raised before training."""
        try:
            yield
        except UserError:
            folder = self._written
            if folder and not (folder / "metrics.jsonl").exists() and not (folder / CHECKPOINT).exists():
                for name in ("config.yaml", IDENTITY, INPUTS):
                    (folder / name).unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise

    def save_examples(self, examples: Any) -> None:
        """Save a few inputs, for checking exports."""
        if self._written and self.saves:
            save_examples(self._written / INPUTS, examples)

    def log_epochs(self, on_epoch: Callable[[Epoch], None] | None) -> Callable[[Epoch], None] | None:
        """Wrap `on_epoch` to write a line to metrics.jsonl; lines of epochs that a resume repeats are replaced."""
        if self._written is None:
            return on_epoch
        path = self._written / "metrics.jsonl"
        trimmed = False

        def log(epoch: Epoch) -> None:
            nonlocal trimmed
            if not trimmed and path.is_file():
                kept = path.read_text().splitlines(keepends=True)[: epoch.epoch - 1]
                write_atomically(path, "".join(kept).encode())
            trimmed = True
            with open(path, "a") as file:
                file.write(json.dumps(epoch.plain()) + "\n")
            if on_epoch:
                on_epoch(epoch)

        return log

    def save(self, subnet: Subnetwork, curve: Mapping[float, Subnetwork], weights: Weights) -> Subnetwork:
        """Write the subnetwork, those of the curve, and the summary; returns the subnetwork with the complete record."""
        folder = self._written
        if curve:
            subnet = with_metrics(subnet, {"curve": _save_curve(curve, folder, weights)})
        if folder is None:
            return subnet
        metrics: dict[str, Any] = {"bytes": None, "dense_bytes": subnet.dense_bytes(), "subnetwork": None}
        if not self.saves:
            save_masks(folder / "masks.safetensors", subnet.masks)
        else:
            path = folder / "subnetwork.safetensors"
            metrics |= {"bytes": _save(subnet, path, weights), "subnetwork": str(path)}
        subnet = with_metrics(subnet, metrics)
        write_atomically(folder / "summary.json", json.dumps(subnet.summary(), indent=2).encode())
        if self.saves:
            drop_checkpoints(folder)
        return subnet


def _acquire(lock: FileLock, folder: Path, leased: bool) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        if not leased:
            raise UserError(f"another run is using {folder}: wait until it ends, or choose another folder") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise RunError(f"cannot write {folder}: {error.strerror or error}") from error
        log.warning("cannot lock %s (%s): make sure that no other run uses it", folder, error.strerror)
    else:
        for parent in (folder, folder / CHECKPOINT.parent):
            remove_temporary(parent)


def _prepare(folder: Path, wanted: Mapping[str, Any], resume: bool, identity: Mapping[str, str | None]) -> str | None:
    path = folder / "config.yaml"
    after = json.loads(json.dumps(wanted))
    if not path.is_file():
        decides = json.dumps([{**after, "weights": None}, identity], sort_keys=True)
        name = hashlib.sha256(decides.encode()).hexdigest()
        write_atomically(folder / IDENTITY, json.dumps({"run": name, **identity}, indent=2).encode())
        write_atomically(path, dump(after))
        return name
    if not resume:
        raise UserError(f"{folder} already has a run: use --resume, or choose another folder")
    before = _completed(dict(plain(read_file(path).values)), after)
    flat, asked = flatten({**before, "weights": None}), flatten({**after, "weights": None})
    differing = sorted(key for key in flat.keys() | asked.keys() if flat.get(key) != asked.get(key))
    if differing:
        key = differing[0]
        more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
        raise UserError(f"cannot resume {folder}: {key} was {flat.get(key)!r}, now {asked.get(key)!r}{more}")
    stored = _identity(folder)
    for part, difference in IDENTITY_PARTS.items():
        if stored and stored.get(part) != identity.get(part):
            raise UserError(f"cannot resume {folder}: {difference} the original run's")
    if before.get("weights") != after.get("weights"):
        write_atomically(path, dump(after))
    return stored.get("run")


def _identity(folder: Path) -> dict[str, Any]:
    path = folder / IDENTITY
    if not path.is_file():
        return {}
    with reading(path, "the identity of a run"):
        return dict(read_json(path.read_text(), str(path)))


def _completed(written: dict[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration with the defaults of keys that newer versions added."""
    named = [key for key in ("extractor", "task") if key == "extractor" or key in written]  # before 0.1.0 there was no task
    if any({**(written.get(key) or {})}.get("name") != (wanted.get(key) or {}).get("name") for key in named):
        return written  # another run; a method or task named in a file is not imported
    try:
        full = RunConfig.model_validate({key: value for key, value in written.items() if value is not None}).dump()
    except ValidationError:  # incomplete, or with keys that no longer exist
        return written
    keys = {**dict.fromkeys(wanted), **written}
    return {key: None if key in written and written[key] is None else full[key] for key in keys}


def _finished(folder: Path, weights: Weights, densities: Iterable[float]) -> Subnetwork | None:
    path = folder / "subnetwork.safetensors"
    if not path.is_file() or not (folder / "summary.json").is_file():
        return None
    subnet = Subnetwork.load(path)
    curve = {row["asked"] for row in subnet.metrics.get("curve", [])}
    if missing := [density for density in densities if density not in curve]:
        raise UserError(f"the run in {folder} is finished and has no density {missing[0]:g}: choose another folder")
    if header_of(path).get("weights") != weights:
        for density in curve:
            one = _at_density(folder, density)
            Subnetwork.load(one).save(one, weights)
        subnet.save(path, weights)
    found = with_metrics(subnet, {"bytes": path.stat().st_size, "dense_bytes": subnet.dense_bytes(), "subnetwork": str(path)})
    return found


def with_metrics(subnet: Subnetwork, more: Mapping[str, Any]) -> Subnetwork:
    """A copy of the subnetwork with more metrics in its record."""
    return replace(subnet, metrics={**subnet.metrics, **more})


def _save_curve(curve: Mapping[float, Subnetwork], folder: Path | None, weights: Weights) -> list[dict[str, Any]]:
    """One row per requested density; with a folder, write the rows and the subnetworks."""
    rows = []
    for density, subnet in curve.items():
        path = _at_density(folder, density) if folder else None
        record = subnet.summary()
        leading = leading_in(record)
        kept = ("density", f"val_{leading}", f"test_{leading}", "kept", "weights", "kept_macs", "collapsed", "sha256")
        rows.append(
            {
                "asked": density,
                **{key: record[key] for key in kept},
                "bytes": _save(subnet, path, weights) if path else None,
                "subnetwork": str(path) if path else None,
            }
        )
    if folder:
        write_atomically(folder / "curve.json", json.dumps(rows, indent=2).encode())
    return rows


def _at_density(folder: Path, density: float) -> Path:
    return folder / f"subnetwork-{density:.10g}.safetensors"


def _save(subnet: Subnetwork, path: Path, weights: Weights) -> int:
    """Write a subnetwork; if the seed does not generate its weights, write their values."""
    try:
        return subnet.save(path, weights)
    except UserError as error:
        if weights == "values":
            raise
        log.warning("%s was saved with weights=values: %s", path, error)
        return subnet.save(path, "values")


def drop_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a run and of runs inside its folder."""
    for path in list(folder.rglob(CHECKPOINT.name)):
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()
