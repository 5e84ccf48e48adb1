"""Studies: Optuna searching over runs. The only folder that imports optuna.

Names are imported when they are first used, so that looking into a study does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from subnet_search.search.launch import run_study as run_study
    from subnet_search.search.spec import StudySpec as StudySpec
    from subnet_search.search.spec import read_study as read_study
    from subnet_search.search.worker import run_worker as run_worker

_HOMES = {"StudySpec": "spec", "read_study": "spec", "run_study": "launch", "run_worker": "worker"}

__all__ = ["StudySpec", "read_study", "run_study", "run_worker"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'subnet_search.search' has no attribute {name!r}")
    return getattr(importlib.import_module(f"subnet_search.search.{_HOMES[name]}"), name)
