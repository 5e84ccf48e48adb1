"""The available data sets, and which of them are on this machine."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from subnet_search.core.errors import UserError
from subnet_search.data import readers
from subnet_search.data.batch import Labels
from subnet_search.data.sources import NAMES, PREFIXES, Data, DataSpec, load


def catalogue() -> list[dict[str, Any]]:
    """A row for every data set: `name`, `description`, and `state` (on this machine, or to be downloaded)."""
    here = {
        "digits": "here",
        "fashion_mnist": f"here: {folder}" if (folder := readers.fashion_folder(None)) else "would be downloaded to data/",
        "cifar10": _downloaded("data/cifar-10-batches-py"),
        "cifar100": _downloaded("data/cifar-100-python"),
    }
    rows = [{"name": name, "state": here[name], "description": text} for name, text in NAMES.items()]
    return rows + [{"name": name, "state": "your files", "description": text} for name, text in PREFIXES.items()]


def describe(spec: DataSpec | str | dict[str, Any]) -> dict[str, Any]:
    """Sizes, shape and statistics of one data set. Nothing is downloaded, and the test split is not read."""
    spec = DataSpec.of(spec)
    listed = {row["name"]: row for row in catalogue()}
    record = listed.get(spec.name, {"name": spec.name, "state": "your files"})
    if record["state"].startswith("would be"):
        return record
    data = _loaded(spec)
    statistics = (
        {}
        if data.mean is None or data.std is None
        else {
            "mean": [round(value, 4) for value in data.mean.tolist()],
            "std": [round(value, 4) for value in data.std.tolist()],
        }
    )
    sizes = {"train": len(data.train), "validation": len(data.val), "shape": list(data.shape), "classes": data.classes}
    return {**record, **sizes, **statistics}


def _loaded(spec: DataSpec) -> Data:
    """The data with class indices as labels, or with any labels where they are no class indices."""
    if spec.kind == "text":
        return load(spec, Labels(classes=False))
    try:
        return load(spec)
    except UserError:
        with suppress(UserError):
            return load(spec, Labels(classes=False))
        raise


def _downloaded(folder: str) -> str:
    return f"here: {folder}" if Path(folder).is_dir() else "would be downloaded to data/"
