"""Which study this is, and where its trials run: by its name in the storage, whatever its attributes came from.

Optuna's `copy_study` and the dashboard's Rename copy all attributes, so a copy says that it is the study it was made of.
A name may hold any letters, and a folder that a storage or a file names may lie anywhere: new folders are named here, and
those that were stored are taken for what they should be, folders below runs/trials.
"""

import hashlib
import json
import re
import uuid
from pathlib import Path
from typing import Any

import optuna
from optuna.study.study import _SYSTEM_ATTR_METRIC_NAMES as METRIC_NAMES
from optuna.trial import TrialState

from subnet_search.search.backends import exclusive

TRIALS = Path("runs/trials")
PLAIN = re.compile(r"\w[\w.-]*")
LONGEST = 100  # bytes of a name that is a file's name as it is; with what is added, it stays below what file systems take
ELSEWHERE = "its study was copied, and its worker is at the one that it was copied from"


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


def adopt(study: optuna.Study) -> None:
    """Make a study that was copied or renamed one of its own: its own name, folder and workers. Any other stays as it is.

    To be done before anything is run, written or deleted for it. The trials that are under way are so in the study that
    it was copied from, and wait here; the files of those that have ended stay where they are.
    """
    if not _is_copy(study.user_attrs, study.study_name):
        return
    from subnet_search.search.claim import let_wait  # here, since whoever only looks on need not wait for torch

    with exclusive(study._storage, study.study_name):
        attrs = study.user_attrs
        if not _is_copy(attrs, study.study_name):  # another process was first
            return
        spec = {**json.loads(attrs["spec"]), "name": study.study_name}
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            let_wait(study._storage, trial, ELSEWHERE)
        if study.metric_names is None and len(spec["objective"]) == len(study.directions):  # the dashboard leaves them out
            study._storage.set_study_system_attr(study._study_id, METRIC_NAMES, spec["objective"])
        study.set_user_attr("folder", new_folder(study.study_name))
        study.set_user_attr("spec", json.dumps(spec))  # last: without it, the rest is done again


def _is_copy(attrs: dict[str, Any], name: str) -> bool:
    try:
        return bool(json.loads(attrs["spec"])["name"] != name)
    except (ValueError, KeyError, TypeError):  # none of ours, or damaged: whoever reads it says so
        return False


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:8]
