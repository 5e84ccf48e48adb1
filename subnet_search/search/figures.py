"""Pictures of studies, in the style of `plots.py`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from subnet_search import plots
from subnet_search.errors import UserError


def pareto(rows: Sequence[dict[str, Any]], names: Sequence[str], path: Path, title: str) -> None:
    """The front over two measures, the first one upwards: `rows` of `fronts.front`.

    Raises UserError without plotly or for more than two measures, RunError when the file cannot be written.
    """
    if len(names) != 2:
        raise UserError(f"a plot shows two measures: choose them with --objectives, for example {names[0]},{names[1]}")
    up, across = names
    figure = plots.need_plotly().graph_objects.Figure()
    kinds = (
        ("trials that break a constraint", [row for row in rows if not row["feasible"]], 4, "markers"),
        ("trials", [row for row in rows if row["feasible"]], 0, "markers"),
        ("Pareto front", [row for row in rows if row["front"]], 1, "lines+markers"),
    )
    for name, points, index, mode in kinds:
        if points:
            points = sorted(points, key=lambda row: float(row[across]))
            look = {**plots.look(index), "mode": mode, "opacity": 1.0 if mode != "markers" else 0.45}
            figure.add_scatter(
                x=[row[across] for row in points],
                y=[row[up] for row in points],
                name=name,
                customdata=[[row["number"], ", ".join(f"{k} {v}" for k, v in row["params"].items())] for row in points],
                hovertemplate=f"trial %{{customdata[0]}}<br>{across} %{{x:.4~g}}<br>{up} %{{y:.4~g}}<br>%{{customdata[1]}}"
                "<extra></extra>",
                **look,
            )
    values = [row[across] for row in rows]
    wide = min(values) > 0 and max(values) / min(values) > 10
    figure.update_xaxes(title=f"{across}{' (log scale)' if wide else ''}", type="log" if wide else "linear", **_format(across))
    figure.update_yaxes(title=up, **_format(up))
    plots.write_page(figure, path, title)


def importance(record: Mapping[str, Any], path: Path, title: str) -> None:
    """The shares of the parameters as bars, the largest on top: what `importance.importance` returned. Raises UserError."""
    shares = list(record["importances"].items())[::-1]
    figure = plots.need_plotly().graph_objects.Figure()
    figure.add_bar(
        x=[share for _, share in shares],
        y=[name for name, _ in shares],
        orientation="h",
        name=f"{record['evaluator']}, {record['trials']:,} trials: {record['meaning']}",
        marker={"color": plots.COLOURS[0]},
        text=[f"{share:.1%}" for _, share in shares],
        hovertemplate="%{y}: %{x:.2%}<extra></extra>",
    )
    figure.update_xaxes(title="importance", tickformat=plots.PERCENT)
    plots.write_page(figure, path, title)


def _format(name: str) -> dict[str, Any]:
    return {"tickformat": plots.PERCENT} if "accuracy" in name else {}
