"""Early stopping on digits: studies/hyperband_digits.yaml, with its pruner and without, and the steps both took.

Three study seeds, each with the same first trials in both. `steps` are training steps over all trials; the target is the
full study's best validation accuracy, within half a point, with at most half of its steps.
"""

import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

from subnet_search import run_study
from subnet_search.search.spec.study_spec import read_study

SPEC = Path(__file__).parents[1] / "studies" / "hyperband_digits.yaml"


def main(quick: bool = False) -> list[dict[str, object]]:
    seeds = [0] if quick else [0, 1, 2]
    small = ["run.recipe.epochs=9", "trials=6", "pruner.min_resource=1"] if quick else []
    rows = []
    for seed in seeds:
        full, stopped = (study([*small, f"seed={seed}", *more]) for more in (["pruner=none"], []))
        rows.append(
            {
                "seed": seed,
                "best, all trials to the end": f"{100 * full['best']:.2f} %",
                "best, hyperband": f"{100 * stopped['best']:.2f} %",
                "difference, points": round(100 * (stopped["best"] - full["best"]), 2),
                "steps, full": full["steps"],
                "steps, hyperband": stopped["steps"],
                "of the steps": round(stopped["steps"] / full["steps"], 2),
                "stopped": stopped["stopped"],
            }
        )
    means = {key: round(fmean(float(str(row[key])) for row in rows), 2) for key in ("difference, points", "of the steps")}
    return [*rows, {"mean of the seeds": len(rows), **means}]


def study(overrides: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        found = run_study(read_study(SPEC, overrides), storage=f"sqlite:///{folder}/studies.db")
        trials = found.get_trials()
    return {
        "best": found.best_value,
        "steps": sum(trial.user_attrs["steps"] for trial in trials),
        "stopped": sum(trial.state.name == "PRUNED" for trial in trials),
    }
