"""Optuna's own plots of a study: the Pareto front over any measures, and the importance of parameters."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState, create_trial

from subnet_search.analysis.plots import PERCENT, accuracy_density, check_path, look, need_plotly, write
from subnet_search.core.errors import UserError
from subnet_search.core.task_metrics import in_words, is_fraction, leading_in
from subnet_search.search.storage.ranking import direction
from subnet_search.search.storage.read import Snapshot


def pareto(study: Snapshot, rows: Sequence[dict[str, Any]], names: Sequence[str], path: Path, title: str) -> None:
    """The front over two measures, the first one upwards: `rows` of `ranking.front`.

    Of trials that break a constraint Optuna shows no front, and `rows` do: so it is not told of them, and they are marked
    afterwards. Raises UserError without plotly or for more than two measures, RunError when the file cannot be written.
    """
    need_plotly()
    if len(names) != 2:
        raise UserError(f"a plot shows two measures: choose them with --objectives, for example {names[0]},{names[1]}")
    up, across = names
    points = [create_trial(values=[row[across], row[up]]) for row in rows]  # the means over the seeds
    for point, row in zip(points, rows, strict=True):
        point.number, point.params = row["number"], row["params"]
    over = optuna.create_study(directions=[direction(study, across), direction(study, up)])
    figure = optuna.visualization.plot_pareto_front(Snapshot(over, points), target_names=[across, up])
    for drawn, name in zip(figure.data, ("trials", "Pareto front"), strict=True):
        drawn.update(name=name, showlegend=True, marker_showscale=False, marker_size=9)
    if broken := [row for row in rows if not row["feasible"]]:
        marks = {**look(4, hollow=True), "mode": "markers", "name": "trials that break a constraint", "hoverinfo": "skip"}
        figure.add_scatter(x=[row[across] for row in broken], y=[row[up] for row in broken], **marks)
        figure.update_traces(marker_size=15, selector={"name": marks["name"]})
    values = [row[across] for row in rows]
    wide = min(values) > 0 and max(values) / min(values) > 10
    figure.update_xaxes(title=f"{across}{' (log scale)' if wide else ''}", type="log" if wide else "linear", **_format(across))
    figure.update_yaxes(**_format(up))
    write(figure, path, title, rows)


def plot_comparison(record: Mapping[str, Any], path: str | Path) -> None:
    """Plot the leading metric of a comparison over the density, on the test split where there is one.

    record: what `compare` returns. path: its ending is that of a page (.html), a picture (.svg, .pdf, .png), or a table of the
    numbers (.csv, .tex). Raises UserError for another ending and without the extra `plots`.
    """
    path = Path(path)
    check_path(path)
    leading = leading_in(record["rows"][0])
    tested = any(row[f"test_{leading}"] for row in record["rows"])
    measure = f"{'test' if tested else 'val'}_{leading}"
    points = [
        {"label": row["method"], "density": row["achieved_density"]["mean"]}
        | {key: row[measure][key] for key in ("mean", "low", "high")}
        for row in record["rows"]
        if row[measure] is not None and row["achieved_density"]["mean"] > 0
    ]
    dense = next((point for point in points if point["label"] == "dense"), None)
    title = f"{record['name']}: {in_words(leading, 'test' if tested else 'validation')}"
    headings = {"label": "method"} | {key: f"{measure}_{key}" for key in ("mean", "low", "high")}
    accuracy_density([point for point in points if point["label"] != "dense"], path, title, dense, leading, headings)


def importance(study: Snapshot, record: Mapping[str, Any], path: Path, title: str) -> None:
    """The shares of the parameters as bars, the largest on top: what `importance.importance` returned. Raises UserError."""
    need_plotly()

    class Found(optuna.importance.BaseImportanceEvaluator):
        def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
            return dict(record["importances"])

    name = f"{record['evaluator']}, {record['trials']:,} trials: {record['meaning']}"
    trials = Snapshot(study, study.get_trials(states=(TrialState.COMPLETE,)))
    figure = optuna.visualization.plot_param_importances(trials, Found(), target=lambda _: 0.0, target_name=name)
    figure.update_xaxes(tickformat=PERCENT)
    shares = [{"parameter": key, "importance": value} for key, value in record["importances"].items()]
    write(figure, path, title, shares)


def _format(name: str) -> dict[str, Any]:
    return {"tickformat": PERCENT} if is_fraction(name) else {}
