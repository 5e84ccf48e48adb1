"""Studies that were copied or renamed by Optuna's own tools: each goes on as the study it is called."""

import json
from typing import Any

import optuna
from optuna.trial import TrialState

from subnet_search.search.storage.locks import exclusive
from subnet_search.search.storage.optuna_private import METRIC_NAMES
from subnet_search.search.storage.study_folder import new_folder

ELSEWHERE = "its study was copied, and its worker is at the one that it was copied from"


def adopt(study: optuna.Study) -> None:
    """Give a copied or renamed study its own name, folder and workers. Any other stays as it is.

    To be done before anything is run, written or deleted for it. The trials that are under way are so in the study that
    it was copied from, and wait here; the files of those that have ended stay where they are.
    """
    if not _is_copy(study.user_attrs, study.study_name):
        return
    from subnet_search.search.engine.trial_lease import let_wait  # here, since whoever only looks on need not wait for torch

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
