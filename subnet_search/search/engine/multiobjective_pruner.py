"""Stopping trials early with several objectives, which Optuna's pruners cannot: they compare one value of each trial, and
`Trial.report` and `Trial.should_prune` raise NotImplementedError in a study with several objectives.

At each rung (epochs `min_resource`, then `reduction_factor` times as many, ...) a trial goes on when it is among the
best 1 / `reduction_factor` of those that came to the rung before it. The fewer of them dominate it, in the objectives
that are known by then, the better it is (the ranks of Fonseca & Fleming 1993; the rungs are those of successive
halving, Jamieson & Talwalkar 2016, arXiv:1502.07943).
"""

import numpy as np

from subnet_search.core.errors import UserError
from subnet_search.search.engine.history import sees_end
from subnet_search.search.engine.trial_lease import TrialLease
from subnet_search.search.spec.metrics import MEASURES
from subnet_search.search.spec.study_spec import StudySpec
from subnet_search.search.storage.records import TrialRecord
from subnet_search.search.storage.retry import patiently

KNOWN_AT_RUNGS = ("val_accuracy", "val_nll", "density")


def rungs(spec: StudySpec, epochs: int) -> tuple[int, ...]:
    """The epochs after which a trial is compared."""
    first, factor = (spec.pruner.get(key, default) for key, default in (("min_resource", 1), ("reduction_factor", 3)))
    found = []
    while first < epochs:
        found.append(first)
        first *= factor
    return tuple(found)


def check_options(spec: StudySpec) -> None:
    """Raises UserError for an option that the rungs do not have, or a value they cannot."""
    for key, value in spec.pruner.items():
        if key != "name" and (key not in ("min_resource", "reduction_factor") or not isinstance(value, int)):
            raise UserError(f"the pruner 'rungs' takes min_resource and reduction_factor, whole numbers, got {key}: {value!r}")
    if spec.pruner.get("min_resource", 1) < 1 or spec.pruner.get("reduction_factor", 3) < 2:
        raise UserError("the pruner 'rungs' needs a min_resource of 1 or more and a reduction_factor of 2 or more")


def is_behind(lease: TrialLease, spec: StudySpec, rung: str, values: list[float]) -> bool:
    """Whether a trial that has come to a rung with these values is not among the best there."""
    trials = patiently(lambda: lease.study.get_trials(deepcopy=False))
    seen = (trial for trial in trials if trial.number < lease.number and sees_end(spec, lease.number, trial))
    reports = (TrialRecord(trial).get("rungs", dict) or {} for trial in seen)
    others = [report[rung] for report in reports if rung in report]
    signs = [-1 if MEASURES[name].direction == "maximize" else 1 for name in spec.objective if name in KNOWN_AT_RUNGS]
    return behind(np.array([*others, values]) * signs, spec.pruner.get("reduction_factor", 3))


def behind(costs: np.ndarray, factor: int) -> bool:
    """Whether the last row is not among the best 1 / factor of the rows: those that the fewest others dominate."""
    if len(costs) < factor:
        return False
    below = (costs[:, None] <= costs).all(2) & (costs[:, None] < costs).any(2)  # [i, j]: i dominates j
    dominators = below.sum(0)
    return int((dominators < dominators[-1]).sum()) >= -(-len(costs) // factor)
