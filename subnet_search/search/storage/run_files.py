"""The run folders of a study's trials on this machine, and which of them are kept when files are pruned."""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna

from subnet_search.search.storage.ranking import compared, promising, rank
from subnet_search.search.storage.records import TrialRecord, plain_spec
from subnet_search.search.storage.study_folder import folder_of


def kept_trials(study: optuna.Study, keep: int = 1) -> set[int]:
    """Numbers of the trials whose files are kept: the `keep` best with their repeats, and all that have not finished.

    With several objectives, the whole Pareto front is kept; of a comparison, all seeds of the best row and of the `keep` best
    rows with a density below 1, since the best is often the dense network.
    """
    trials = study.get_trials(deepcopy=False)
    records = list(map(TrialRecord, trials))
    unfinished = {trial.number for trial in trials if not trial.state.is_finished()}
    if rows := compared(study):
        rows.sort(key=lambda row: -len(row.values))
        cells = [(cell.method, cell.density) for row in rows if (cell := TrialRecord(row.trial).cell)]
        same = {*cells[:1], *[cell for cell in cells if cell[1] < 1][:keep]}
        return unfinished | {r.trial.number for r in records if (cell := r.cell) and (cell.method, cell.density) in same}
    best = [ranked.trial.number for ranked in rank(study)]
    if len(study.directions) == 1:
        if len(best) < keep:  # trials with fewer seeds follow, such as those that were not repeated
            best += [trial.number for trial in promising(trials, study.directions, len(trials))]
        best = list(dict.fromkeys(best))[:keep]
    return unfinished | {*best} | {record.trial.number for record in records if record.repeats in best}


def run_folders(study: optuna.Study) -> dict[int, Path]:
    """The run folders of trials in the study's own folder on this machine, by number. Symbolic links are left out.

    Folders of imported and copied trials belong to another study.
    """
    folder = folder_of(study)
    if "folder" not in study.user_attrs or plain_spec(study).get("name") != study.study_name or folder.is_symlink():
        return {}
    found = {trial.number: TrialRecord(trial).folder for trial in study.get_trials(deepcopy=False)}
    return {number: path for number, path in found.items() if path.parent == folder and path.is_dir() and not path.is_symlink()}


def disk_usage(study: optuna.Study, keep: int = 1) -> dict[str, Any] | None:
    """The study's folder, and how many run folders of how many bytes are kept and not kept; None if there are none here."""
    if not (folders := run_folders(study)):
        return None
    kept = kept_trials(study, keep)
    return {
        "folder": str(folder_of(study)),
        "kept": total(path for number, path in folders.items() if number in kept),
        "not_kept": total(path for number, path in folders.items() if number not in kept),
    }


def total(folders: Iterable[Path]) -> Mapping[str, int]:
    """The number of folders, and the bytes of their files."""
    sizes = list(map(_size, folders))
    return {"folders": len(sizes), "bytes": sum(sizes)}


def _size(folder: str | Path) -> int:
    size = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):  # a running trial replaces its checkpoint
                inside = entry.is_dir(follow_symlinks=False)
                size += _size(entry.path) if inside else entry.stat(follow_symlinks=False).st_size
    return size
