"""Figures for papers: SVG, PDF and PNG files of the plots, drawn by matplotlib, which needs no browser.

Takes the Plotly figures that the package makes: lines, points with error bars, bars, levels, axes and panels side by side.
"""

from pathlib import Path
from typing import Any

from subnet_search.core.errors import UserError

STATIC = (".svg", ".pdf", ".png")
MISSING = "SVG, PDF and PNG files need matplotlib: pip install 'subnet-search[plots]'"
MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "x": "x", "triangle-down": "v", "star": "*"}
STYLES = {"solid": "-", "dot": ":", "dash": "--", "dashdot": "-.", "longdash": (0, (8, 3))}
INCHES = (6.5, 4.2)  # of one panel; the text width of a page


def save(figure: Any, path: Path, title: str) -> None:
    """Draw a Plotly figure into a file of the kind that its name ends in. Raises UserError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(MISSING) from error
    panels = sorted({trace.xaxis or "x" for trace in figure.data} or {"x"})
    page = Figure(figsize=(INCHES[0] * len(panels), INCHES[1]), layout="constrained")
    axes = dict(zip(panels, page.subplots(1, len(panels), squeeze=False)[0], strict=True))
    for trace in figure.data:
        _draw(axes[trace.xaxis or "x"], trace)
    for shape in figure.layout.shapes:  # levels
        if shape.type == "line" and shape.y0 == shape.y1:
            panel = (shape.xref or "x").partition(" ")[0]
            axes[panel].axhline(shape.y0, color=shape.line.color, linestyle=STYLES[shape.line.dash or "solid"], linewidth=1)
    for name, ax in axes.items():
        _axis(ax.xaxis, figure.layout[name.replace("x", "xaxis")])
        _axis(ax.yaxis, figure.layout[name.replace("x", "yaxis")])
    for note in figure.layout.annotations:
        if note.text and note.yref == "paper":
            axes[panels[round(note.x * (len(panels) - 1))]].set_title(_plain(note.text), fontsize=10)
        elif note.text:
            ax = axes[panels[0]]
            ax.annotate(_plain(note.text), (0, note.y), xycoords=("axes fraction", "data"), fontsize=9, va="bottom")
    page.suptitle(title, fontsize=11)
    handles, names = axes[panels[0]].get_legend_handles_labels()
    if len(names) > 1:
        page.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)), fontsize=9, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    page.savefig(path, dpi=200)


def _draw(ax: Any, trace: Any) -> None:
    name = trace.name if trace.showlegend is not False else None
    if trace.type == "bar":
        across = trace.orientation == "h"
        (ax.barh if across else ax.bar)(
            _list(trace.y if across else trace.x), _list(trace.x if across else trace.y), label=name
        )
        return
    marker, mode = trace.marker, trace.mode or "lines"
    symbol = str(marker.symbol or "circle")
    hollow = symbol.endswith("-open")
    colour = trace.line.color or (marker.color if isinstance(marker.color, str) else None)
    kind: dict[str, Any] = {
        "color": colour,
        "linestyle": STYLES.get(trace.line.dash or "solid", "-") if "lines" in mode else "none",
        "marker": MARKERS.get(symbol.removesuffix("-open"), "o") if "markers" in mode else None,
        "markerfacecolor": "none" if hollow else colour,
        "markersize": 5,
        "linewidth": 1.3,
        "label": name,
    }
    x, y, error = _list(trace.x), _list(trace.y), trace.error_y
    if error.array is not None and error.visible:
        ax.errorbar(x, y, yerr=[_list(error.arrayminus if error.arrayminus is not None else error.array), _list(error.array)],
                    capsize=2.5, elinewidth=1, **kind)  # fmt: skip
    else:
        ax.plot(x, y, **kind)


def _axis(axis: Any, layout: Any) -> None:
    """Title, scale and ticks of an axis."""
    axis.set_label_text(_plain(layout.title.text or ""))
    scale, ticks = (axis.axes.set_xscale, axis.axes.set_xticks) if axis.axis_name == "x" else (
        axis.axes.set_yscale, axis.axes.set_yticks)  # fmt: skip
    if layout.type == "log":
        scale("log")
    if layout.ticktext is not None:
        ticks(_list(layout.tickvals), _list(layout.ticktext))
        axis.set_tick_params(which="minor", length=0)
        axis.set_minor_formatter("")
    elif (layout.tickformat or "").endswith("%"):
        from matplotlib.ticker import PercentFormatter

        axis.set_major_formatter(PercentFormatter(1.0))
    axis.axes.spines[["top", "right"]].set_visible(False)
    axis.axes.grid(color="#dddddd", linewidth=0.6)
    axis.axes.set_axisbelow(True)


def _plain(text: str) -> str:
    return text.replace("<br>", "\n").replace("$", r"\$")


def _list(values: Any) -> list[Any]:
    return [] if values is None else list(values)
