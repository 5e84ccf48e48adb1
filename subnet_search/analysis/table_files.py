"""Tables for papers: CSV and LaTeX files of rows."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from subnet_search.core.tensor_files import write_atomically

TABLES = (".csv", ".tex")
SPECIAL = {char: f"\\{char}" for char in "&%$#_{}"} | {
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
}


def save(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows of the same keys as CSV, or as a LaTeX table (package booktabs), by the ending of the file's name."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[row.get(name) for name in names] for row in rows]
    text = _latex(names, cells) if path.suffix.lower() == ".tex" else _csv(names, cells)
    write_atomically(path, text.encode())


def _csv(names: Sequence[str], cells: Sequence[Sequence[Any]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([names, *(["" if cell is None else cell for cell in row] for row in cells)])
    return file.getvalue()


def _latex(names: Sequence[str], cells: Sequence[Sequence[Any]]) -> str:
    numbers = [all(isinstance(row[place], int | float | None) for row in cells) for place in range(len(names))]
    lines = [" & ".join(map(_escaped, row)) + r" \\" for row in (names, *([_cell(cell) for cell in row] for row in cells))]
    columns = "".join("r" if number else "l" for number in numbers)
    head, *body = lines
    return "\n".join(
        [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", ""]
    )


def _cell(value: Any) -> str:
    return "--" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _escaped(text: Any) -> str:
    return "".join(SPECIAL.get(char, char) for char in str(text))
