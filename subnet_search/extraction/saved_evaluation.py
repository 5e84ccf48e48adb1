"""What `evaluate --save` has measured, in a file beside that of the subnetwork."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from subnet_search.core.documents import read_json
from subnet_search.core.errors import reading
from subnet_search.core.tensor_files import write_atomically


def evaluation_file(subnetwork: Path) -> Path:
    """The file of the evaluation of a subnetwork's file."""
    return subnetwork.with_name(f"{subnetwork.stem}.evaluation.json")


def save_evaluation(subnetwork: Path, record: Mapping[str, Any]) -> Path:
    """Write a record of `evaluate`, in place of an earlier one. Raises RunError when it cannot be written."""
    path = evaluation_file(subnetwork)
    write_atomically(path, json.dumps(record, indent=2).encode())
    return path


def load_evaluation(subnetwork: Path, sha256: str) -> dict[str, Any] | None:
    """The saved record; None if there is none, or if it is of other weights. Raises UserError for a damaged file."""
    path = evaluation_file(subnetwork)
    if not path.is_file():
        return None
    with reading(path, "a saved evaluation"):
        record = dict(read_json(path.read_text(), str(path)))
    return record if record.get("sha256") == sha256 else None
