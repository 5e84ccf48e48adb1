"""Which study this is, and where its trials run: by its name in the storage, whatever its attributes came from.

Optuna's `copy_study` and the dashboard's Rename copy all attributes, so a copy says that it is the study it was made of.
A name may hold any letters, and a folder that a storage or a file names may lie anywhere: new folders are named here, and
those that were stored are taken for what they should be, folders below runs/trials.
"""

import hashlib
import re
import uuid
from pathlib import Path
from typing import Any

import optuna

TRIALS = Path("runs/trials")
PLAIN = re.compile(r"\w[\w.-]*")
LONGEST = 100  # bytes of a name that is a file's name as it is; with what is added, it stays below what file systems take


def file_name(name: str) -> str:
    """A study's name as that of a file or folder: as it is when it is a plain one, else what is readable of it and a hash."""
    if PLAIN.fullmatch(name) and len(name.encode()) <= LONGEST:
        return name
    readable = re.sub(r"[^\w.-]+", "-", name).strip("-.")[:30]
    return f"{readable or 'study'}-{_short_hash(name)}"


def new_folder(name: str) -> str:
    """A folder for the trials of a study, which no other has."""
    return str(TRIALS / f"{file_name(name)}-{uuid.uuid4().hex[:8]}")


def rebased(folder: Any) -> Path:
    """A folder of trials as it was stored, but below runs/trials: what is stored does not decide on other places."""
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
