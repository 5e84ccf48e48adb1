"""One HTML page that holds everything it needs: text, tables, Plotly figures and Plotly itself. Names are escaped."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from subnet_search.analysis.plots import need_plotly
from subnet_search.core.errors import UserError
from subnet_search.core.numbers_as_text import cell
from subnet_search.core.tensor_files import write_atomically

MISSING = "reports need jinja2: pip install 'subnet-search[plots]'"
HEIGHT = 380  # pixels of a figure that does not set its own


@dataclass(frozen=True)
class Section:
    """A heading, and below it some of: a sentence, a figure, a table, a text with fixed lines."""

    title: str
    text: str = ""
    figure: Any = None
    """A Plotly figure. One that sets its width scrolls sideways on a narrower screen."""
    rows: Sequence[Mapping[str, Any]] = ()
    """Of one table, all with the same keys. The column `trial` links to the trial's row in the column `number`."""
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
    sections: Sequence[Section] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What differs between two runs, or two studies, is listed."""
    study: Any = None
    """The study that the column is about; None for a run."""


def write(columns: Sequence[Column], path: Path, shared: Sequence[Section] = ()) -> None:
    """Write a page with a column for each run or study, below sections about both.

    Raises UserError without jinja2 or plotly, RunError when the page cannot be written.
    """
    try:
        from jinja2 import Environment
    except ImportError as error:
        raise UserError(MISSING) from error
    need_plotly()
    from plotly.offline import get_plotlyjs

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["cell"] = lambda value, key: cell(str(key), value)
    template = environment.from_string(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    text = template.render(
        title=" and ".join(column.title for column in columns),
        shared=_shown(shared),
        columns=[{**vars(column), "sections": _shown(column.sections)} for column in columns],
        plotly=get_plotlyjs(),
        made=f"Written by subnet-search {version('subnet-search')}.",
    )
    write_atomically(path, text.encode(errors="replace"))


def _shown(sections: Sequence[Section]) -> list[dict[str, Any]]:
    return [{**vars(section), **_figure(section.figure)} for section in sections]


def _figure(figure: Any) -> dict[str, Any]:
    """A figure as JSON that can stand in a script element, with the least width and the height that it needs."""
    if figure is None:
        return {"figure": None}
    width, height = figure.layout.width, figure.layout.height or HEIGHT
    figure.update_layout(
        template="none",
        title=None,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        margin=figure.layout.margin if figure.layout.margin.l is not None else {"l": 55, "r": 15, "t": 20, "b": 45},
        width=None,
        height=height,
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
        hoverlabel={"namelength": -1},
    )
    figure.update_xaxes(automargin=True, zeroline=False)
    figure.update_yaxes(automargin=True, zeroline=False)
    values = _escaped(json.loads(figure.to_json()))
    return {"figure": json.dumps(values).replace("<", "\\u003c"), "width": width, "height": height}


def _escaped(values: Any, key: str = "") -> Any:
    """A figure whose texts Plotly shows as they are: it reads them as HTML. Templates of hover texts hold no names."""
    if isinstance(values, str):
        return values if key == "hovertemplate" else values.replace("&", "&amp;").replace("<", "&lt;")
    if isinstance(values, dict):
        return {name: _escaped(value, name) for name, value in values.items()}
    return [_escaped(value, key) for value in values] if isinstance(values, list) else values
