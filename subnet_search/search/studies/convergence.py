"""Whether the runs of a comparison were long enough, by the validation values that their trials have stored.

A run stores the leading metric after its epochs (20 times at most), from the epoch on at which its mask has the density
asked for. It has converged if this metric hardly improves over the last fifth of the epochs: by no more than 1 percentage
point, or, for metrics that are not fractions, by 2 % of the value.
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from optuna.trial import FrozenTrial

from subnet_search.core.task_metrics import TaskMetrics, in_words, is_fraction
from subnet_search.search.storage.records import TrialRecord

POINT, SHARE = 0.01, 0.02


def last_fifth(epochs: int) -> int:
    """The number of epochs in the last fifth of a run, 1 at least."""
    return max(1, round(epochs / 5))


def late_gain(values: Mapping[int, float], epochs: int, direction: str) -> float | None:
    """The improvement over the last fifth of the epochs; None if there is no value before it.

    values: the metric by epoch, counted from 1. direction: "maximize" or "minimize".
    """
    before = [epoch for epoch in values if epoch <= epochs - last_fifth(epochs)]
    if not before:
        return None
    gain = values[max(values)] - values[max(before)]
    return gain if direction == "maximize" else -gain


def converged(cells: Iterable[Mapping[str, Any]], metric: str) -> bool | None:
    """Whether runs of one row have converged, by the mean of their gains; None if none is complete or trains.

    cells: records with the state, `late_gain`, `trained` (whether values were stored), and the metric under `val_METRIC`.
    """
    cells = [cell for cell in cells if cell["state"] == "COMPLETE" and cell["trained"]]
    if not cells:
        return None
    gains = [cell["late_gain"] for cell in cells if cell["late_gain"] is not None]
    if len(gains) < len(cells):
        return False
    allowed = POINT if is_fraction(metric) else SHARE * abs(fmean(cell[f"val_{metric}"] for cell in cells))
    return fmean(gains) <= allowed


def too_short_in(trials: Iterable[FrozenTrial], epochs: int, metrics: TaskMetrics) -> str | None:
    """`too_short` for the trials of a stored comparison."""
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for trial in trials:
        if cell := TrialRecord(trial).cell:
            groups.setdefault((cell.method, cell.density), []).append(cell_of(trial, metrics, epochs))
    rows = [
        {"method": key[0], "density": key[1], "converged": converged(cells, metrics.leading)} for key, cells in groups.items()
    ]
    return too_short(rows, epochs, metrics.leading)


def cell_of(trial: FrozenTrial, metrics: TaskMetrics, epochs: int) -> dict[str, Any]:
    """What `converged` reads, of a stored trial."""
    values = trial.intermediate_values
    return {
        "state": trial.state.name,
        "trained": bool(values),
        "late_gain": late_gain(values, epochs, metrics.directions[metrics.leading]),
        metrics.val: trial.user_attrs.get(metrics.val),
    }


def too_short(rows: Sequence[Mapping[str, Any]], epochs: int, metric: str) -> str | None:
    """One line that names the rows that have not converged, or says that nothing was trained; None if all have converged."""
    if not epochs:
        return "nothing was trained: recipe.epochs is 0"
    late = [row for row in rows if row["converged"] is False]
    if not late:
        return None
    names: dict[str, list[str]] = {}
    for row in late:
        names.setdefault(row["method"], []).append(f"{row['density']:g}")
    listed = "; ".join(name if name == "dense" else f"{name} at {', '.join(found)}" for name, found in names.items())
    if epochs == 1:
        return f"one epoch does not show whether a method has converged: {listed}"
    by = "1 point" if is_fraction(metric) else "2 %"
    count = last_fifth(epochs)
    last = "the last epoch" if count == 1 else f"the last {count} epochs"
    return (
        f"{epochs} epochs are too short for {listed}: in {last} the {in_words(metric, 'validation')} still improved by more "
        f"than {by}, or the mask had only then the density asked for"
    )
