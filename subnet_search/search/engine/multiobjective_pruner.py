"""Pruning with several objectives. Optuna's pruners support one: `Trial.report` raises NotImplementedError for several.

Rungs are at epoch `min_resource`, then at `reduction_factor` times as many, and so on. A trial continues if it is among
the best 1 / `reduction_factor` of the earlier trials at the rung, ranked by how many trials dominate it in the objectives
available at that epoch (ranks: Fonseca & Fleming 1993; rungs: successive halving, Jamieson & Talwalkar 2016,
arXiv:1502.07943).
"""

import numpy as np

from subnet_search.core.errors import UserError
from subnet_search.search.engine.history import sees_end
from subnet_search.search.engine.trial_lease import TrialLease
from subnet_search.search.spec.study_spec import StudySpec
from subnet_search.search.storage.records import TrialRecord
from subnet_search.search.storage.retry import patiently

DEFAULTS = {"min_resource": 1, "reduction_factor": 3}


def rungs(spec: StudySpec, epochs: int) -> tuple[int, ...]:
    """The epochs after which a trial is compared."""
    options = DEFAULTS | spec.pruner
    found, epoch = [], options["min_resource"]
    while epoch < epochs:
        found.append(epoch)
        epoch *= options["reduction_factor"]
    return tuple(found)


def check_options(spec: StudySpec) -> None:
    """Raise UserError for an unknown option or an invalid value."""
    for key, value in spec.pruner.items():
        if key != "name" and (key not in DEFAULTS or not isinstance(value, int)):
            raise UserError(f"the pruner 'rungs' takes min_resource and reduction_factor, whole numbers, got {key}: {value!r}")
    options = DEFAULTS | spec.pruner
    if options["min_resource"] < 1 or options["reduction_factor"] < 2:
        raise UserError("the pruner 'rungs' needs a min_resource of 1 or more and a reduction_factor of 2 or more")


def is_behind(lease: TrialLease, spec: StudySpec, rung: str, values: list[float]) -> bool:
    """Whether a trial with these values at a rung should be pruned."""
    trials = patiently(lambda: lease.study.get_trials(deepcopy=False))
    seen = (trial for trial in trials if trial.number < lease.number and sees_end(spec, lease.number, trial))
    reports = (TrialRecord(trial).get("rungs", dict) or {} for trial in seen)
    others = [report[rung] for report in reports if len(report.get(rung, ())) == len(values)]
    known = {*spec.task_metrics.measures, "density"}
    pairs = zip(spec.objective, spec.directions, strict=True)
    signs = [-1 if direction == "maximize" else 1 for name, direction in pairs if name in known]
    return behind(np.array([*others, values]) * signs, (DEFAULTS | spec.pruner)["reduction_factor"])


def behind(costs: np.ndarray, factor: int) -> bool:
    """Whether the last row is outside the best 1 / factor of the rows, ranked by the number of rows that dominate them."""
    if len(costs) < factor:
        return False
    below = (costs[:, None] <= costs).all(2) & (costs[:, None] < costs).any(2)  # [i, j]: i dominates j
    dominators = below.sum(0)
    return int((dominators < dominators[-1]).sum()) >= -(-len(costs) // factor)
