"""Objectives and constraints that the runs of a study cannot measure, found before the first trial."""

from subnet_search.core.errors import UserError, blaming
from subnet_search.data import load
from subnet_search.evaluation.accuracy import TOP
from subnet_search.evaluation.robustness import check_noise
from subnet_search.search.spec.metrics import ENSEMBLE, UNDER_NOISE, check_dense
from subnet_search.search.spec.study_spec import StudySpec

STORED = {"recipe.store_relevance", "recipe.weight_statistics"}
TOP5 = "val_top5_accuracy"


def check_measures(spec: StudySpec) -> None:
    """Raise UserError for metrics that the network or the data of a trial does not have."""
    bounds = [bound.name for bound in spec.bounds]
    for name in (*spec.objective, *bounds):
        if name in (TOP5, ENSEMBLE, *UNDER_NOISE):
            with blaming("constraints" if name in bounds else "objective"):
                _check(name, spec)


def _check(name: str, spec: StudySpec) -> None:
    if name == ENSEMBLE:
        recipe, keys = spec.run.recipe, {entry.key for entry in spec.searched.entries}
        if not (recipe.weight_statistics or recipe.store_relevance or keys & STORED):
            raise UserError(f"{name} needs runs that store what to draw networks from: set {' or '.join(sorted(STORED))}")
        return
    for run in spec.searched.networks():
        if name == "functional_distance":
            check_dense(run.network, spec.passed.network)
        data = spec.passed.data or load(run.data, run.task.kind_of_labels)
        if name != TOP5:
            check_noise(data.val)
        elif data.classes <= TOP:
            raise UserError(f"{name} needs more than {TOP} classes, and {data.name} has {data.classes}")
