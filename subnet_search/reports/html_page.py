"""One HTML page that holds everything it needs: text, tables, Plotly figures and Plotly itself. Names are escaped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from subnet_search.analysis.plots import need_plotly
from subnet_search.core.errors import UserError
from subnet_search.core.tensor_files import write_atomically

MISSING = "reports need jinja2: pip install 'subnet-search[plots]'"


@dataclass(frozen=True)
class Section:
    """A heading, and below it some of: a sentence, a figure, a table, a text with fixed lines."""

    title: str
    text: str = ""
    figure: Any = None
    """A Plotly figure."""
    rows: Sequence[Mapping[str, Any]] = ()
    sortable: bool = False
    code: str = ""
    open: bool = False


@dataclass(frozen=True)
class Column:
    """What a page says about one run or study."""

    title: str
    subtitle: str
    answer: Sequence[tuple[str, str]] = ()
    """Names and values, shown first."""
    sections: Sequence[Section] = field(default_factory=list)


def write(columns: Sequence[Column], path: Path) -> None:
    """Write a page with a column for each run or study. Raises UserError without jinja2 or plotly, RunError for a bad path."""
    try:
        from jinja2 import Environment
    except ImportError as error:
        raise UserError(MISSING) from error
    need_plotly()
    from plotly.offline import get_plotlyjs

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["cell"] = _cell
    template = environment.from_string(files(__package__).joinpath("page.html").read_text())
    shown = [
        {
            "key": number,
            "title": column.title,
            "subtitle": column.subtitle,
            "answer": column.answer,
            "sections": [{**vars(section), "figure": _json(section.figure)} for section in column.sections],
        }
        for number, column in enumerate(columns)
    ]
    text = template.render(
        title=" and ".join(column.title for column in columns),
        columns=shown,
        plotly=get_plotlyjs(),
        made=f"Written by subnet-search {version('subnet-search')}.",
    )
    write_atomically(path, text.encode())


def _json(figure: Any) -> str | None:
    """A figure as JSON that can stand in a script element."""
    if figure is None:
        return None
    figure.update_layout(
        template="none",
        title=None,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        margin={"l": 60, "r": 20, "t": 30, "b": 50},
        height=figure.layout.height or 380,
        modebar={"bgcolor": "rgba(0,0,0,0)"},
        legend={"orientation": "h", "y": 1.08, "yanchor": "bottom"},
    )
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    return str(figure.to_json()).replace("<", "\\u003c")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
