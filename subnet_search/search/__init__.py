"""Studies: Optuna searching over runs. The only folder that imports optuna."""

from subnet_search.search.launch import run_study
from subnet_search.search.spec import StudySpec, read_study
from subnet_search.search.worker import run_worker

__all__ = ["StudySpec", "read_study", "run_study", "run_worker"]
