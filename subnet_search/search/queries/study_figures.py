"""Plotly figures about a study: Optuna's own, the measures over the density, and the times of trials."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from subnet_search.analysis.plots import COLOURS, PERCENT, density_axis, need_plotly
from subnet_search.core.errors import UserError
from subnet_search.core.task_metrics import in_words, is_fraction
from subnet_search.search.queries.trial_table import Row
from subnet_search.search.storage.ranking import front
from subnet_search.search.storage.read import Snapshot
from subnet_search.search.storage.records import TrialRecord

GREY = "#888888"
PALETTE = (*COLOURS[:-1], GREY)  # black cannot be seen on a dark page
SCALE = [[0, "#8fa3b8"], [0.5, "#56B4E9"], [1, "#D55E00"]]  # that can be read on light and dark pages; the last is the best
LINES = 300  # trials in parallel coordinates, at most; of more, each one in so many by its value
CLASSES = 6  # of trials, by their value, that have one colour in parallel coordinates
GAPS: Mapping[str, Any] = {"x": None, "y": None, "customdata": (None, None)}  # between two lines of one trace
HOVER = "%{customdata[0]}: %{customdata[1]}<extra></extra>"
STATES = {"COMPLETE": PALETTE[0], "PRUNED": PALETTE[5], "FAIL": PALETTE[1], "RUNNING": PALETTE[2]}
ACROSS, SLICE_WIDE, SLICE_HIGH = 4, 160, 210  # slices in a row; pixels of each at least
PARALLEL_WIDE, MARGIN = 120, 140  # pixels for each parameter at least, and beside them


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
    """Optuna's parallel coordinates, of the parameters that all trials have. study: complete trials.

    Raises UserError when there is no such parameter.
    """
    trials = sorted(study.get_trials(), key=lambda trial: trial.values[0], reverse=not _minimised(study))
    trials = trials[:: -(-len(trials) // LINES)]
    shared = [name for name in trials[0].params if all(name in trial.params for trial in trials)]
    if not shared:
        raise UserError("no parameter was searched in all trials")
    from plotly.colors import sample_colorscale

    figure = optuna.visualization.plot_parallel_coordinate(
        Snapshot(study, trials), shared, target=_target(names, 0), target_name=words(names[0])
    )
    lines = sorted((trace for trace in figure.data if trace.mode == "lines" and len(trace.y) > 1), key=lambda trace: trace.y[0])
    if _minimised(study):
        lines.reverse()
    figure.data = ()
    classes, opacity = min(CLASSES, len(lines)), 0.6 if len(lines) < 200 else 0.3
    for index, colour in enumerate(sample_colorscale(SCALE, classes)):  # a trace for each trial takes seconds to draw
        own = lines[len(lines) * index // classes : len(lines) * (index + 1) // classes]
        x, y, values = ([item for trace in own for item in (*trace[key], gap)] for key, gap in GAPS.items())
        line = {"color": colour, "width": 1.2}
        figure.add_scatter(x=x, y=y, customdata=values, mode="lines", line=line, opacity=opacity, hovertemplate=HOVER)
    figure.update_annotations(font={"color": GREY, "size": 11})
    figure.update_layout(showlegend=False)
    wide = PARALLEL_WIDE * (len(shared) + 1) + MARGIN
    return figure.update_layout(width=wide, margin={"l": 80, "r": 60, "t": 25, "b": 30})


def slices(study: Snapshot, names: Sequence[str]) -> Any:
    """Optuna's slices, the first objective over each parameter, in rows."""
    figure = optuna.visualization.plot_slice(study, target=_target(names, 0), target_name=words(names[0]))
    figure.update_traces(
        marker={"color": PALETTE[0], "opacity": 0.8, "line": {"width": 0}, "showscale": False}, showlegend=False
    )
    count = len(figure.data)
    across = min(count, ACROSS)
    down = -(-count // across)
    for index, (x, y) in enumerate(zip(figure.select_xaxes(), figure.select_yaxes(), strict=True)):
        row, column = divmod(index, across)
        left, top = column / across, 1 - row / down
        x.update(domain=(left, left + 0.88 / across), title_font_size=11, tickfont_size=10, title_standoff=6)
        y.update(domain=(top - 0.66 / down, top), showticklabels=column == 0, tickformat=_percent(names[0]), title=None)
    size = {"width": SLICE_WIDE * across, "height": SLICE_HIGH * down + 20}
    return figure.update_layout(template="none", margin={"l": 50, "r": 10, "t": 10, "b": 10}, **size)


def over_density(study: Snapshot, rows: Sequence[Row], names: Sequence[str]) -> Any:
    """The first objective over the density: a colour for each method, and the Pareto front of all. A click finds the trial.

    Of a comparison also the mean over the seeds of each method, and that of the dense network as a level.

    rows: `flat_rows` of complete trials with a density
    """
    name = names[0]
    figure = need_plotly().graph_objects.Figure()
    compares = any(row.get("method") for row in rows)
    methods = dict.fromkeys(_method(row) for row in rows)
    for index, method in enumerate(methods):
        own = [row for row in rows if _method(row) == method]
        figure.add_scatter(
            x=[_density(row) for row in own],
            y=[row[name] for row in own],
            customdata=[row["number"] for row in own],
            mode="markers",
            name=method,
            legendgroup=str(index),
            marker={"color": PALETTE[index % len(PALETTE)], "size": 9, "opacity": 0.8, "symbol": index // len(PALETTE)},
            hovertemplate=f"trial %{{customdata}}<br>density %{{x:.4~g}}<br>%{{y:{'.2%' if is_fraction(name) else '.4~g'}}}",
        )
        if compares:
            found = {d: fmean(row[name] for row in own if row["density"] == d) for d in sorted({row["density"] for row in own})}
            style = {"color": PALETTE[index % len(PALETTE)], "width": 1.5}
            means = {"x": list(found), "y": list(found.values()), "legendgroup": str(index), "showlegend": False}
            figure.add_scatter(**means, mode="lines", line=style, hoverinfo="skip")
            if method == "dense":
                figure.add_hline(
                    y=fmean(found.values()), line={"color": GREY, "width": 1, "dash": "dash"}, annotation_text="dense"
                )
    best = [] if name == "density" or compares else [row for row in front(study, [name, "density"]) if row["front"]]
    best.sort(key=lambda row: float(row["density"]))
    if len(best) > 1:
        x, y = ([row[key] for row in best] for key in ("density", name))
        step = {"color": GREY, "width": 1.5, "dash": "dot", "shape": "hv"}
        figure.add_scatter(x=x, y=y, mode="lines", name="Pareto front of all", line=step, hoverinfo="skip")
    density_axis(figure, {float(row["density"]) for row in rows})
    figure.update_yaxes(title=words(name), tickformat=_percent(name))
    return figure.update_layout(height=440)


def bars(importances: Mapping[str, float]) -> Any:
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
    return PERCENT if is_fraction(name) else None


def _method(row: Row) -> str:
    return str(row.get("method") or row.get("extractor") or "trials")


def _density(row: Row) -> float:
    return float(row.get("achieved_density") or row["density"])
