"""Studies: Optuna searching over runs. The only folder that imports optuna.

Names are imported on first use, so that commands that only read a study do not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from subnet_search.search.engine.worker import run_worker as run_worker
    from subnet_search.search.spec.study_spec import StudySpec as StudySpec
    from subnet_search.search.spec.study_spec import read_study as read_study
    from subnet_search.search.studies.launcher import run_study as run_study

_HOMES = {
    "StudySpec": "spec.study_spec",
    "read_study": "spec.study_spec",
    "run_study": "studies.launcher",
    "run_worker": "engine.worker",
}

__all__ = ["StudySpec", "read_study", "run_study", "run_worker"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'subnet_search.search' has no attribute {name!r}")
    return getattr(importlib.import_module(f"subnet_search.search.{_HOMES[name]}"), name)
