"""Plots: each one file, of the kind that its name ends in.

A page (.html) holds everything it needs and opens without a network; .svg, .pdf and .png are for papers; .csv and .tex have
the numbers that are plotted. Plotly and matplotlib are optional.
"""

import importlib.util
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from subnet_search.analysis import static_figures, table_files
from subnet_search.core.errors import UserError
from subnet_search.core.task_metrics import in_words, is_fraction
from subnet_search.core.tensor_files import write_atomically

# Okabe & Ito's colours (2008), which colour-blind readers can tell apart too; symbols and dashes say the same again.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "triangle-down", "star")
DASHES = ("solid", "dot", "dashdot", "longdash")  # one for every round through the colours
REFERENCE = {"color": "#666666", "width": 1.5, "dash": "dash"}
PERCENT = ".4~%"
MISSING = "plots need plotly: pip install 'subnet-search[plots]'"
ENDINGS = (".html", ".htm", *static_figures.STATIC, *table_files.TABLES)  # of the files that plots are written to
BESIDE = 1.012  # the ratio of the densities at which two lines show the same density, so that error bars can be told apart
FEW_DENSITIES = 8  # distinct ones in a comparison
TICKS_APART = 1.12  # the least ratio of two neighbouring densities that are both named on the axis

Rows = Sequence[dict[str, Any]]


def accuracy_density(
    rows: Rows,
    path: Path,
    title: str,
    dense: dict[str, Any] | None = None,
    metric: str = "accuracy",
    headings: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Accuracy or another metric over density, one line a label; `dense` is the row of the dense network, a level.

    rows hold `label`, `density`, and `mean`, `low`, `high` of the metric. Files of numbers have the dense row last, and
    `headings` in place of these keys.
    Raises UserError without plotly, RunError when the file cannot be written.
    """
    figure = need_plotly().graph_objects.Figure()
    shown = f"{in_words(metric)} %{{y{_decimals(metric)}}}"
    labels = list(dict.fromkeys(row["label"] for row in rows))
    if dense is not None:
        named = f"dense {dense['mean']:.2%}" if is_fraction(metric) else f"dense {dense['mean']:.4g}"
        figure.add_hline(y=dense["mean"], line=REFERENCE, annotation_text=named, annotation_position="top left")
    for index, label in enumerate(labels):
        points = sorted((row for row in rows if row["label"] == label), key=lambda row: float(row["density"]))
        above = [row["high"] - row["mean"] for row in points]
        below = [row["mean"] - row["low"] for row in points]
        figure.add_scatter(
            x=[row["density"] * BESIDE ** (index - (len(labels) - 1) / 2) for row in points],
            y=[row["mean"] for row in points],
            customdata=[row["density"] for row in points],
            error_y={"array": above, "arrayminus": below, "visible": any(above + below), "thickness": 1.5, "width": 5},
            name=str(label),
            hovertemplate=f"density %{{customdata:{PERCENT}}}<br>{shown}<extra>{label}</extra>",
            **look(index),
        )
    density_axis(figure, {row["density"] for row in rows})
    figure.update_yaxes(title=in_words(metric), tickformat=PERCENT if is_fraction(metric) else None)
    numbers = [*rows, dense] if dense else rows
    write(figure, path, title, [{headings.get(key, key): value for key, value in row.items()} for row in numbers])


def plasticity(rows: Rows, path: Path, title: str) -> None:
    """Pruning plasticity over the point of pruning: accuracy right after it, and what is missing some epochs later.

    rows: what `plasticity.plasticity` returned, for any task. A colour for each rate; hollow and dotted with regeneration.
    Raises UserError without plotly, RunError when the file cannot be written.
    """
    epochs = ", ".join(str(count) for count in sorted({row["epochs"] for row in rows}))
    titles = ("right after pruning", f"{epochs} epoch{'' if epochs == '1' else 's'} later, minus the unpruned network")
    figure = need_plotly().subplots.make_subplots(rows=1, cols=2, subplot_titles=titles, horizontal_spacing=0.12)
    metric = metric_of(rows)
    before = sorted({row["at"]: row[f"{metric}_before"] for row in rows}.items())
    figure.add_scatter(
        x=[at for at, _ in before],
        y=[accuracy for _, accuracy in before],
        name="before pruning",
        mode="lines",
        line=REFERENCE,
        hovertemplate=f"at %{{x:.4~%}} of the run: %{{y{_decimals(metric)}}}<extra>before pruning</extra>",
        row=1,
        col=1,
    )
    _branches(figure, rows, metric)
    figure.add_hline(y=0, line=REFERENCE, row=1, col=2)
    figure.update_xaxes(title="point of the run", tickformat=PERCENT, tickvals=[at for at, _ in before])
    name, percent = in_words(metric, "validation"), is_fraction(metric)
    points = f"{name}, percentage points" if percent else name
    figure.update_yaxes(title=name, tickformat=PERCENT if percent else None, row=1, col=1)
    figure.update_yaxes(title=points, tickformat=f"+{PERCENT}" if percent else "+", row=1, col=2)
    write(figure, path, title, rows)


def metric_of(rows: Rows) -> str:
    """The metric of records of `plasticity.plasticity`."""
    return next((key.removesuffix("_before") for row in rows for key in row if key.endswith("_before")), "accuracy")


def _decimals(metric: str, sign: str = "") -> str:
    """Plotly's format of a metric's values."""
    return f":{sign}.2%" if is_fraction(metric) else f":{sign}.4~g"


def _branches(figure: Any, rows: Rows, metric: str) -> None:
    """A line in both panels for every rate, with and without regeneration."""
    rates = sorted({row["rate"] for row in rows})
    for rate, regrow in sorted({(row["rate"], row["regrow"]) for row in rows}):
        points = [row for row in rows if (row["rate"], row["regrow"]) == (rate, regrow)]
        points.sort(key=lambda row: float(row["at"]))
        name = f"{100 * rate:.4g}% pruned{', regrown' if regrow else ''}"
        for column, key, sign in ((1, f"{metric}_pruned", ""), (2, f"{metric}_difference", "+")):
            figure.add_scatter(
                x=[row["at"] for row in points],
                y=[row[key] for row in points],
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                hovertemplate=f"at %{{x:.4~%}} of the run: %{{y{_decimals(metric, sign)}}}<extra>{name}</extra>",
                row=1,
                col=column,
                **look(rates.index(rate), hollow=bool(regrow)),
            )


def need_plotly() -> ModuleType:
    """The module plotly. Raises UserError when it is not installed."""
    try:
        import plotly.graph_objects
        import plotly.subplots
    except ImportError as error:
        raise UserError(MISSING) from error
    return plotly  # type: ignore[no-any-return]


def look(index: int, hollow: bool = False) -> dict[str, Any]:
    """The index-th line's colour, symbol and dash; a hollow one is dotted."""
    turn, place = divmod(index, len(COLOURS))
    symbol = SYMBOLS[place] + ("-open" if hollow else "")
    return {
        "mode": "lines+markers",
        "line": {"color": COLOURS[place], "width": 2, "dash": "dot" if hollow else DASHES[turn % len(DASHES)]},
        "marker": {"symbol": symbol, "size": 9, "line": {"width": 2 if hollow else 0}},
    }


def density_axis(figure: Any, densities: Collection[float]) -> None:
    """Make the x axis of a figure a log scale of densities, with the densities themselves as ticks if they are few."""
    if len(densities) > FEW_DENSITIES:
        round_ones = (factor * 10.0**power for power in range(-5, 1) for factor in (1, 2, 5))
        densities = [one for one in round_ones if min(densities) <= one <= max(densities)] or densities
    ticks = _apart(densities)
    text = [f"{100 * density:.3g}%" for density in ticks]
    figure.update_xaxes(title="density (weights kept, log scale)", type="log", tickvals=ticks, ticktext=text)


def _apart(densities: Iterable[float]) -> list[float]:
    """The densities to name on a log axis: from the highest down, without those too close to the one before."""
    ticks: list[float] = []
    for density in sorted(densities, reverse=True):
        if not ticks or math.log(ticks[-1] / density) >= math.log(TICKS_APART):
            ticks.append(density)
    return ticks


def check_path(path: Path) -> None:
    """Raise UserError for a plot that cannot be written: a package is missing, or the name ends in another kind of file.

    To be asked before the work that is plotted.
    """
    if importlib.util.find_spec("plotly") is None:
        raise UserError(MISSING)
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"the name of a plot ends in {', '.join(ENDINGS)}: got {path}")
    if path.suffix.lower() in static_figures.STATIC and importlib.util.find_spec("matplotlib") is None:
        raise UserError(static_figures.MISSING)


def write(figure: Any, path: Path, title: str, rows: Rows) -> None:
    """Write a plot, or the rows that it shows, by the ending of the file's name."""
    ending = path.suffix.lower()
    if ending in table_files.TABLES:
        table_files.save(rows, path)
    elif ending in static_figures.STATIC:
        static_figures.save(figure, path, title)
    else:
        _write_page(figure, path, title)


def _write_page(figure: Any, path: Path, title: str) -> None:
    figure.update_layout(
        template="plotly_white",
        title={"text": title, "x": 0.02, "xanchor": "left"},
        font={"family": "system-ui, sans-serif", "size": 15, "color": "#222222"},
        legend={"orientation": "h", "yanchor": "top", "y": -0.16, "xanchor": "left", "x": 0},
        showlegend=True,
        height=640,
        margin={"l": 90, "r": 30, "t": 90, "b": 60},
    )
    figure.update_xaxes(showline=True, linecolor="#999999", ticks="outside", automargin=True)
    figure.update_yaxes(showline=True, linecolor="#999999", ticks="outside", automargin=True)
    settings = {"displaylogo": False, "responsive": True}
    html = figure.to_html(config=settings, include_plotlyjs=True, full_html=True, div_id="plot")
    write_atomically(path, html.encode())
