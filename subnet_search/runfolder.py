"""A run's folder: config.yaml, metrics.jsonl, checkpoint/, and in the end its subnetworks and summary.json."""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from subnet_search.config import RunConfig, flatten
from subnet_search.deploy import Subnetwork
from subnet_search.deploy.masks import save_masks
from subnet_search.documents import dump, plain, read_file
from subnet_search.errors import UserError
from subnet_search.files import write_atomically
from subnet_search.training import Epoch
from subnet_search.training.ranks import from_first, rank_and_world

CHECKPOINT = Path("checkpoint") / "state.safetensors"


def free_folder(name: str) -> Path:
    """The first of runs/NAME, runs/NAME-2, ... that holds no run yet."""
    return next(folder for folder in _folders(name) if not (folder / "config.yaml").is_file())


def last_folder(name: str) -> Path:
    """The last of runs/NAME, runs/NAME-2, ... that holds a run. Raises UserError when none does."""
    found = list(itertools.takewhile(lambda folder: (folder / "config.yaml").is_file(), _folders(name)))
    if not found:
        raise UserError(f"there is no run to resume in runs/{name}")
    return found[-1]


def _folders(name: str) -> Iterator[Path]:
    yield Path("runs") / name
    yield from (Path("runs") / f"{name}-{number}" for number in itertools.count(2))


def claim(folder: Path, wanted: Mapping[str, Any], resume: bool) -> None:
    """Write config.yaml, or check that the one that is there asks for the same. Raises UserError when it does not."""
    from_first(lambda: _claim(folder, wanted, resume))


def _claim(folder: Path, wanted: Mapping[str, Any], resume: bool) -> None:
    path = folder / "config.yaml"
    if path.is_file():
        if not resume:
            raise UserError(f"{folder} already holds a run: resume it, or choose another folder")
        before = flatten(plain(read_file(path).values))
        after = flatten(json.loads(json.dumps(wanted)))
        differing = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
        if differing:
            key = differing[0]
            more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
            raise UserError(f"cannot resume {folder}: {key} was {before.get(key)!r}, now {after.get(key)!r}{more}")
    else:
        write_atomically(path, dump(wanted))


@contextlib.contextmanager
def no_trace_of_mistakes(folder: Path | None) -> Iterator[None]:
    """Take the run folder away again when what was asked for turns out to be impossible before any training."""
    try:
        yield
    except UserError:
        folder = folder if rank_and_world()[0] == 0 else None
        if folder and not (folder / "metrics.jsonl").exists() and not (folder / CHECKPOINT).exists():
            (folder / "config.yaml").unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def finished(folder: Path, densities: Iterable[float] = ()) -> Subnetwork | None:
    """The result of a run that is complete already. Raises UserError when it is, without what is now asked for."""
    return from_first(lambda: _finished(folder, densities))


def _finished(folder: Path, densities: Iterable[float]) -> Subnetwork | None:
    path = folder / "subnetwork.safetensors"
    if not path.is_file() or not (folder / "summary.json").is_file():
        return None
    subnet = Subnetwork.load(path)
    curve = {row["asked"] for row in subnet.metrics.get("curve", [])}
    if missing := [density for density in densities if density not in curve]:
        raise UserError(f"{folder} is finished, and was not asked for density {missing[0]:g} then: choose another folder")
    return with_metrics(subnet, {"bytes": path.stat().st_size, "dense_bytes": subnet.dense_bytes(), "subnetwork": str(path)})


def with_metrics(subnet: Subnetwork, more: Mapping[str, Any]) -> Subnetwork:
    """The same subnetwork, with more in its record."""
    return replace(subnet, metrics={**subnet.metrics, **more})


def log_epochs(folder: Path | None, on_epoch: Callable[[Epoch], None] | None) -> Callable[[Epoch], None] | None:
    """`on_epoch`, and a line in metrics.jsonl. Lines of epochs that a resume runs again are replaced."""
    if folder is None or rank_and_world()[0] != 0:
        return on_epoch
    path = folder / "metrics.jsonl"
    trimmed = False

    def log(epoch: Epoch) -> None:
        nonlocal trimmed
        if not trimmed and path.is_file():
            kept = path.read_text().splitlines(keepends=True)[: epoch.epoch - 1]
            write_atomically(path, "".join(kept).encode())
        trimmed = True
        with open(path, "a") as file:
            file.write(json.dumps(asdict(epoch)) + "\n")
        if on_epoch:
            on_epoch(epoch)

    return log


def save_curve(curve: Mapping[float, Subnetwork], folder: Path | None, config: RunConfig) -> list[dict[str, Any]]:
    """A row for every density that was asked for; with a folder, the subnetworks and the rows are written to it."""
    rows = []
    for density, subnet in curve.items():
        path = folder / f"subnetwork-{density:.10g}.safetensors" if folder else None
        record = subnet.summary()
        kept = ("density", "val_accuracy", "test_accuracy", "kept", "weights", "kept_macs", "collapsed", "sha256")
        rows.append(
            {
                "asked": density,
                **{key: record[key] for key in kept},
                "bytes": subnet.save(path, config.weights) if path else None,
                "subnetwork": str(path) if path else None,
            }
        )
    if folder:
        write_atomically(folder / "curve.json", json.dumps(rows, indent=2).encode())
    return rows


def save_run(subnet: Subnetwork, folder: Path, config: RunConfig, save: bool) -> Subnetwork:
    """Write the subnetwork and the summary. Without `save` its masks alone, and the checkpoint stays for the caller to drop."""
    metrics: dict[str, Any] = {"bytes": None, "dense_bytes": subnet.dense_bytes(), "subnetwork": None}
    if not save:
        save_masks(folder / "masks.safetensors", subnet.masks)
    else:
        path = folder / "subnetwork.safetensors"
        metrics |= {"bytes": subnet.save(path, config.weights), "subnetwork": str(path)}
    subnet = with_metrics(subnet, metrics)
    write_atomically(folder / "summary.json", json.dumps(subnet.summary(), indent=2).encode())
    if save:
        drop_checkpoints(folder)
    return subnet


def drop_checkpoints(folder: Path) -> None:
    """Remove the checkpoint of a run, and of runs inside its folder, once what they came to is stored."""
    for path in list(folder.rglob(CHECKPOINT.name)):
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()
