"""Plotly figures about a study: Optuna's own, the measures over the density, and the times of trials."""

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from subnet_search.analysis.plots import COLOURS, need_plotly
from subnet_search.core.errors import UserError
from subnet_search.core.task_metrics import in_words, is_fraction
from subnet_search.search.queries.trial_table import Row
from subnet_search.search.storage.ranking import front
from subnet_search.search.storage.read import Snapshot
from subnet_search.search.storage.records import TrialRecord

GREY = "#888888"
PALETTE = (*COLOURS[:-1], GREY)  # black cannot be seen on a dark page
SCALE = [[0, "#8fa3b8"], [0.5, "#56B4E9"], [1, "#D55E00"]]  # that can be read on light and dark pages; the last is the best
STATES = {"COMPLETE": PALETTE[0], "PRUNED": PALETTE[5], "FAIL": PALETTE[1], "RUNNING": PALETTE[2]}
SLICES_WIDE, PARALLEL_WIDE, MARGIN = 190, 120, 140  # pixels for each parameter, and beside them


def words(name: str) -> str:
    """An objective's name for people."""
    for prefix, split in {"val_": "validation", "test_": "test"}.items():
        if name.startswith(prefix):
            return in_words(name.removeprefix(prefix), split)  # type: ignore[arg-type]
    return in_words(name)


def history(study: Snapshot, names: Sequence[str], index: int) -> Any:
    """Optuna's optimisation history of an objective. study: with all of its trials, which Optuna finds by their numbers."""
    figure = optuna.visualization.plot_optimization_history(
        study, target=_target(names, index), target_name=words(names[index])
    )
    for trace, colour in zip(figure.data, (PALETTE[0], PALETTE[1], GREY), strict=False):
        trace.update(marker={"color": colour}, line={"color": colour})
    return _styled(figure, tickformat=_percent(names[index]))


def parallel(study: Snapshot, names: Sequence[str]) -> Any:
    """Optuna's parallel coordinates, of the parameters that all trials have. Raises UserError when there are none."""
    trials = study.get_trials()
    shared = [name for name in trials[0].params if all(name in trial.params for trial in trials)]
    if not shared:
        raise UserError("no parameter was searched in all trials")
    figure = optuna.visualization.plot_parallel_coordinate(study, shared, target=_target(names, 0), target_name=words(names[0]))
    figure.update_traces(line={"colorscale": SCALE, "reversescale": _minimised(study), "showscale": False})
    wide = PARALLEL_WIDE * (len(shared) + 1) + MARGIN
    return figure.update_layout(width=wide, margin={"l": 80, "r": 60, "t": 60, "b": 30})


def slices(study: Snapshot, names: Sequence[str]) -> Any:
    """Optuna's slices: the first objective over each parameter."""
    figure = optuna.visualization.plot_slice(study, target=_target(names, 0), target_name=words(names[0]))
    figure.update_traces(
        marker={"color": PALETTE[0], "opacity": 0.6, "line": {"width": 0}, "showscale": False}, showlegend=False
    )
    count = len(study.trials and {name for trial in study.trials for name in trial.params})
    figure.update_xaxes(title={"font": {"size": 11}}, tickfont={"size": 10})
    figure = _styled(figure, tickformat=_percent(names[0]))
    return figure.update_layout(width=SLICES_WIDE * count + MARGIN, margin={"l": 60, "r": 15, "t": 20, "b": 60})


def over_density(study: Snapshot, rows: Sequence[Row], names: Sequence[str]) -> Any:
    """The first objective over the density: a colour for each method, and the Pareto front of all. A click finds the trial.

    rows: `flat_rows` of complete trials with a density
    """
    name = names[0]
    figure = need_plotly().graph_objects.Figure()
    methods = dict.fromkeys(_method(row) for row in rows)
    for index, method in enumerate(methods):
        own = [row for row in rows if _method(row) == method]
        figure.add_scatter(
            x=[_density(row) for row in own],
            y=[row[name] for row in own],
            customdata=[row["number"] for row in own],
            mode="markers",
            name=method,
            marker={"color": PALETTE[index % len(PALETTE)], "size": 9, "opacity": 0.8, "symbol": index // len(PALETTE)},
            hovertemplate=f"trial %{{customdata}}<br>density %{{x:.4~g}}<br>%{{y:{'.2%' if is_fraction(name) else '.4~g'}}}",
        )
    best = [] if name == "density" else [row for row in front(study, [name, "density"]) if row["front"]]
    best.sort(key=lambda row: float(row["density"]))
    if len(best) > 1:
        x, y = ([row[key] for row in best] for key in ("density", name))
        step = {"color": GREY, "width": 1.5, "dash": "dot", "shape": "hv"}
        figure.add_scatter(x=x, y=y, mode="lines", name="Pareto front of all", line=step, hoverinfo="skip")
    figure.update_xaxes(title="density: fraction of weights kept, log scale", type="log")
    figure.update_yaxes(title=words(name), tickformat=_percent(name))
    return figure.update_layout(height=440)


def shares(importances: Mapping[str, float]) -> Any:
    """The importance of parameters as bars, the largest on top."""
    names = sorted(importances, key=lambda name: importances[name])
    figure = need_plotly().graph_objects.Figure(layout={"height": max(200, 24 * len(names) + 90), "showlegend": False})
    values = [importances[name] for name in names]
    figure.add_bar(x=values, y=names, orientation="h", marker_color=PALETTE[0], hovertemplate="%{y}: %{x:.1%}<extra></extra>")
    figure.update_yaxes(type="category")
    return figure.update_xaxes(title="share", tickformat=".0%")


def times(trials: Sequence[FrozenTrial]) -> Any:
    """Seconds of training of each trial, coloured by its state."""
    figure = need_plotly().graph_objects.Figure(layout={"height": 300, "bargap": 0.1, "barmode": "overlay"})
    for state in TrialState:
        if own := [trial for trial in trials if trial.state == state]:
            x, y = [trial.number for trial in own], [TrialRecord(trial).seconds for trial in own]
            colour = STATES.get(state.name, GREY)
            hover = "trial %{x}: %{y:.3g} s"
            figure.add_bar(
                x=x,
                y=y,
                customdata=x,
                name=state.name.lower(),
                marker={"color": colour, "line": {"width": 0}},
                hovertemplate=hover,
            )
    figure.update_xaxes(title="trial")
    return figure.update_yaxes(title="seconds of training")


def _styled(figure: Any, **y: Any) -> Any:
    """Optuna's figure without its own background."""
    figure.update_layout(template="none", colorway=PALETTE)
    return figure.update_yaxes(**y)


def _target(names: Sequence[str], index: int) -> Any:
    return None if len(names) == 1 else lambda trial: trial.values[index]


def _minimised(study: Snapshot) -> bool:
    return study.directions[0] == StudyDirection.MINIMIZE


def _percent(name: str) -> str | None:
    return ".0%" if is_fraction(name) else None


def _method(row: Row) -> str:
    return str(row.get("method") or row.get("extractor") or "trials")


def _density(row: Row) -> float:
    return float(row.get("achieved_density") or row["density"])
