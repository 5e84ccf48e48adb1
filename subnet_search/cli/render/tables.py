"""Large tables of trials as text, CSV and JSON."""

import csv as csv_files
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from subnet_search.cli.render import format
from subnet_search.core.parameter_names import by_key

if TYPE_CHECKING:
    from subnet_search.search.storage.read import Snapshot

Row = Mapping[str, Any]

FIRST = ("number", "state")  # columns of every table of trials
MEASURED = ("density", "achieved_density", "feasible", "repeats", "seconds")
AT_MOST = 20  # points of a front to print
GAP = 2  # between columns
LONGEST = 30  # characters of a reason if columns must fit


def trials(rows: Sequence[Row], study: "Snapshot", wanted: Sequence[str] | None) -> None:
    """Print a table of trials with the wanted columns, or as many as fit."""
    from subnet_search.search.storage.ranking import objectives, parameters

    if not rows:
        format.say("no trial matches the filters" if study.get_trials() else "no trials yet")
        return
    params = [by_key(parameters(trial)) for trial in study.get_trials()]
    count = Counter(key for one in params for key in one)
    of_all = [key for key in count if count[key] == sum(map(bool, params))]  # not those of some methods only
    bounds = dict.fromkeys(name for trial in study.get_trials() for name in trial.constraints)
    usual = dict.fromkeys((*FIRST, *objectives(study), *of_all, *bounds, *MEASURED, *count, "reason"))
    columns = wanted or [key for key in usual if any(row.get(key) is not None for row in rows)]
    left_out = table(rows, columns, None if wanted else format.console.width)
    if left_out:
        format.prose(f"\n{len(rows):,} trials; hidden columns: {', '.join(left_out)} (use --columns or --csv)")


def front(rows: Sequence[Row], names: Sequence[str], count: int) -> None:
    """Print the first points of a front among `count` complete trials."""
    flat = [{**by_key(row["params"]), **row} for row in rows]
    params = dict.fromkeys(key for row in rows for key in by_key(row["params"]))
    seeds = ["seeds"] if any(row["seeds"] > 1 for row in rows) else []
    feasible = ["feasible"] if not all(row.get("feasible", True) for row in rows) else []
    left_out = table(flat[:AT_MOST], list(dict.fromkeys(["number", *names, *seeds, *feasible, *params])), format.console.width)
    beyond = f"; showing the first {AT_MOST}" if len(rows) > AT_MOST else ""
    narrow = f"; hidden columns: {', '.join(left_out)} (use --json)" if left_out else ""
    format.prose(f"\nOn the Pareto front: {len(rows):,} of {count:,} complete trials{beyond}{narrow}")


def table(rows: Sequence[Row], columns: Sequence[str], width: int | None) -> list[str]:
    """Print all rows at once; returns the columns that do not fit in `width`."""
    short = [_last_part(column) for column in columns]
    headings = {c: s if short.count(s) == 1 else c for c, s in zip(columns, short, strict=True)}
    lines, left_out, space_left = [""] * (len(rows) + 1), [], width or sys.maxsize
    for column in columns:
        texts = [headings[column], *(cell(column, row.get(column)) for row in rows)]
        if column == "reason" and width:  # shorten long reasons
            texts = [text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…" for text in texts]
        size = max(map(len, texts))
        if size > space_left:
            left_out.append(headings[column])
            continue
        space_left -= size + GAP
        side = str.rjust if any(isinstance(row.get(column), int | float) for row in rows) else str.ljust
        lines = [f"{line}{side(text, size)}{' ' * GAP}" for line, text in zip(lines, texts, strict=True)]
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in lines))
    return left_out


def _last_part(column: str) -> str:
    """The last part of a key, or the whole key if the part is ambiguous (a layer number, a target)."""
    last = column.rpartition(".")[2]
    return last if last.isidentifier() and not column.startswith("target.") else column


def csv(rows: Iterable[Row], columns: Sequence[str]) -> None:
    """Print unformatted values as CSV; missing ones are empty."""
    writer = csv_files.DictWriter(sys.stdout, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def json_rows(rows: Iterable[Row]) -> None:
    """Print a JSON list with one line per row."""
    sys.stdout.write("[\n" + ",\n".join(json.dumps(row, default=str) for row in rows) + "\n]\n")


def cell(column: str, value: Any) -> str:
    """`format.cell`, but identifiers such as seeds without thousands separators."""
    return str(value) if column in ("seed", "number", "repeats") and value is not None else format.cell(column, value)
