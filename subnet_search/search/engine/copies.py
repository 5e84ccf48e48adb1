"""Studies that Optuna's tools copied or renamed: continue each under its new name."""

import json
from typing import Any

import optuna
from optuna.trial import TrialState

from subnet_search.search.storage.locks import exclusive
from subnet_search.search.storage.optuna_private import METRIC_NAMES
from subnet_search.search.storage.study_folder import new_folder

ELSEWHERE = "the study was copied; the worker belongs to the original"


def adopt(study: optuna.Study) -> None:
    """Give a copied or renamed study its own name and folder; does nothing to other studies.

    Call this before running, writing or deleting anything. Running trials belong to the original study and are requeued
    here; files of finished trials stay where they are.
    """
    if not _is_copy(study.user_attrs, study.study_name):
        return
    from subnet_search.search.engine.trial_lease import requeue  # not at the top: it imports torch

    with exclusive(study._storage, study.study_name):
        attrs = study.user_attrs
        if not _is_copy(attrs, study.study_name):  # another process did it
            return
        spec = {**json.loads(attrs["spec"]), "name": study.study_name}
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            requeue(study._storage, trial, ELSEWHERE)
        if study.metric_names is None and len(spec["objective"]) == len(study.directions):  # the dashboard does not copy them
            study._storage.set_study_system_attr(study._study_id, METRIC_NAMES, spec["objective"])
        study.set_user_attr("folder", new_folder(study.study_name))
        study.set_user_attr("spec", json.dumps(spec))  # last, so that an interrupted call is repeated


def _is_copy(attrs: dict[str, Any], name: str) -> bool:
    try:
        return bool(json.loads(attrs["spec"])["name"] != name)
    except (ValueError, KeyError, TypeError):  # not our study, or damaged: reported by the caller
        return False
