"""File names and folders of studies.

A study name may hold any characters, and a stored folder could be any path: names are made safe here, and stored folders are
always placed below runs/trials.
"""

import hashlib
import re
import uuid
from pathlib import Path
from typing import Any

import optuna

TRIALS = Path("runs/trials")
PLAIN = re.compile(r"\w[\w.-]*")
LONGEST = 100  # bytes; longer names are shortened, so that file names stay below the limits of file systems


def file_name(name: str) -> str:
    """A file name for a study: its name if that is safe, else its safe characters and a hash."""
    if PLAIN.fullmatch(name) and len(name.encode()) <= LONGEST:
        return name
    readable = re.sub(r"[^\w.-]+", "-", name).strip("-.")[:30]
    return f"{readable or 'study'}-{_short_hash(name)}"


def new_folder(name: str) -> str:
    """A new, unique folder for the trials of a study."""
    return str(TRIALS / f"{file_name(name)}-{uuid.uuid4().hex[:8]}")


def rebased(folder: Any) -> Path:
    """A stored folder of trials, moved below runs/trials if it is elsewhere: a storage must not choose other paths."""
    path = Path(folder := str(folder))
    inside = path.parts[: len(TRIALS.parts)] == TRIALS.parts and len(path.parts) > len(TRIALS.parts)
    if inside and ".." not in path.parts and "\0" not in folder:
        return path
    return TRIALS / f"{file_name(path.name)}-{_short_hash(folder)}"


def folder_of(study: optuna.Study) -> Path:
    """The folder that holds the run folders of a study's trials."""
    return rebased(study.user_attrs.get("folder", ""))


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:8]
