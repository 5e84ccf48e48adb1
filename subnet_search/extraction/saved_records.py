"""Records beside the files that they are about, for reports: of `evaluate --save`, and of the exports of a run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from subnet_search.core.documents import read_json
from subnet_search.core.errors import reading
from subnet_search.core.tensor_files import write_atomically

Kind = Literal["evaluation", "export"]


def save_record(file: Path, kind: Kind, record: Mapping[str, Any]) -> Path:
    """Write a record, in place of an earlier one. Raises RunError when it cannot be written."""
    path = _path(file, kind)
    write_atomically(path, json.dumps(record, indent=2).encode())
    return path


def load_record(file: Path, kind: Kind) -> dict[str, Any] | None:
    """The record of a file; None if there is none. Raises UserError for a damaged one."""
    path = _path(file, kind)
    if not path.is_file():
        return None
    with reading(path, "a saved record"):
        return dict(read_json(path.read_text(), str(path)))


def exports_in(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of the exported files in a folder, by name of the file. Files that were replaced are left out."""
    files = {path: load_record(path, "export") for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", ".onnx")}
    return {path.name: record for path, record in files.items() if record and record.get("bytes") == path.stat().st_size}


def _path(file: Path, kind: Kind) -> Path:
    return file.with_name(f"{file.stem}.{kind}.json")
