"""Print JSON or tables on standard output."""

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from subnet_search.core.numbers_as_text import by_reason
from subnet_search.core.numbers_as_text import cell as cell
from subnet_search.core.numbers_as_text import percent as percent
from subnet_search.core.numbers_as_text import seconds as seconds
from subnet_search.core.numbers_as_text import size as size
from subnet_search.core.task_metrics import in_words, leading_in

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """Print a value as JSON on standard output."""
    json.dump(value, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")


def report(record: Any, json: bool, show: Callable[..., None], *options: Any) -> None:
    """Print a record as JSON, or as text by `show(record, *options)`."""
    if json:
        print_json(record)
    else:
        show(record, *options)


def say(text: str) -> None:
    """Print plain text on standard output without inserting line breaks."""
    console.print(text, markup=False, soft_wrap=True)


def prose(text: str) -> None:
    """`say`, with line breaks between words in a terminal: for text that nobody copies."""
    console.print(text, markup=False, soft_wrap=not console.is_terminal)


def note(text: str) -> None:
    """`say`, on standard error."""
    errors.print(text, markup=False, soft_wrap=True)


def table(
    rows: Iterable[Mapping[str, Any]],
    columns: Mapping[str, str],
    title: str | None = None,
    width: int | None = None,
    repeat: int = 0,
) -> None:
    """Print rows as a table; `columns` maps keys to headings. Numbers are right-aligned. width: default: the terminal's.

    repeat: columns that do not fit are printed in further tables below, each with the first `repeat` columns.
    """
    width = min(width or console.width, console.width)
    rows = list(rows)
    if title:  # rich would wrap the title at the table's width
        console.print(Text(title, style="italic"), soft_wrap=True)
    for index, part in enumerate(_parts(rows, columns, width, repeat) if repeat else [columns]):
        if index:
            console.print()
        _table(rows, part, width)


def _parts(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], width: int, repeat: int
) -> Iterator[Mapping[str, str]]:
    """The columns of each table, so that none is wider than `width` if that is possible."""
    sizes = {key: max(map(len, (heading, *(cell(key, row.get(key)) for row in rows)))) + 2 for key, heading in columns.items()}
    first, rest = list(columns)[:repeat], list(columns)[repeat:]
    while rest:
        count = 1
        while count < len(rest) and sum(sizes[key] for key in (*first, *rest[: count + 1])) - 2 <= width:
            count += 1
        yield {key: columns[key] for key in (*first, *rest[:count])}
        rest = rest[count:]


def _table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], width: int) -> None:
    out = Table(header_style="bold", box=None, pad_edge=False, show_edge=False)
    cells = {key: [cell(key, row.get(key)) for row in rows] for key in columns}
    widths = {key: max(map(len, (heading, *cells[key]))) + 2 for key, heading in columns.items()}
    short = {key for key, width in widths.items() if width <= 14}
    fits = sum(widths[key] for key in short) + 20 * bool(widths.keys() - short) <= width
    for key, heading in columns.items():
        numeric = any(isinstance(row.get(key), int | float) for row in rows)
        whole = fits and key in short  # on a narrow terminal, wrap long texts and not numbers
        out.add_column(Text(heading), justify="right" if numeric else "left", overflow="fold", no_wrap=whole)
    for texts in zip(*cells.values(), strict=True):
        out.add_row(*map(Text, texts))
    console.print(out, width=width)


def pairs(values: Mapping[str, Any], title: str | None = None, width: int | None = None) -> None:
    """Print a two-column table of names and values."""
    out = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, show_header=False)
    out.add_column(style="dim", no_wrap=True)
    out.add_column(overflow="fold")
    for name, value in values.items():
        out.add_row(Text(name), Text(value if isinstance(value, str) else cell(name, value)))
    console.print(out, width=min(width or console.width, console.width))


def command(words: str, *arguments: object, **options: Any) -> str:
    """A subnet-search command, quoted for the shell, without passwords.

    Options that are None, False or empty are left out, and so is the storage if the environment sets it. `set` becomes -s.
    """
    parts = ["subnet-search", *words.split(), *map(str, arguments)]
    for key, value in options.items():
        if key == "storage" and value:
            from subnet_search.search.storage.connect import safe_url

            value = None if value == os.environ.get("SUBNET_SEARCH_STORAGE") else safe_url(value)
        flag = "-s" if key == "set" else f"--{key.replace('_', '-')}"
        if isinstance(value, list | tuple):
            parts += [part for one in value for part in (flag, str(one))]
        elif value not in (None, False):
            parts += [flag] if value is True else [flag, str(value)]
    return shlex.join(parts)


def subnetwork_summary(record: Mapping[str, Any], unit: str) -> None:
    """Print the result of a run. unit: what was pruned together."""
    leading, density, by = leading_in(record), record["density"], "" if unit == "weight" else f" by {unit}"
    rows = {
        "method": f"{record['extractor']}{by} on {record['network'] or 'your network'}, {record['data'] or 'your data'}",
        in_words(leading, "validation"): _validated(record, leading),
        in_words(leading, "test"): _tested(record, leading),
        "density": f"{density:.4f} ({record['kept']:,} of {record['weights']:,} weights; sparsity {percent(1 - density)})",
        "multiply-accumulates": macs(record),
        "steps": f"{record['steps']:,} in {seconds(record['seconds'])}{_passes(record)}",
    }
    if not record["steps"] and not record.get("readout"):
        rows["steps"] = "0: nothing was trained (recipe.epochs is 0)"
    asked, reached = record.get("asked"), record.get("reached")
    if asked is not None and reached is not None and abs(reached - asked) > 0.01 * asked:
        rows["target"] = f"{asked:.4g}; reached {reached:.4g}"
    if record.get("left_whole"):
        rows["not pruned"] = "; ".join(
            f"{one['name']} ({one['why']}, {percent(one['parameters_share'])} of the parameters)"
            for one in record["left_whole"]
        )
    if record.get("channels_left_whole"):
        reasons = by_reason(record["channels_left_whole"])
        rows["channels not pruned"] = "; ".join(f"{', '.join(names)}: {why}" for why, names in reasons.items())
    if record.get("raised_intervals"):
        raised = (f"{name} to {steps} steps" for name, steps in record["raised_intervals"].items())
        rows["raised intervals"] = f"{', '.join(raised)}, because the run is short"
    rate = record.get("exploration_rate", record.get("explored"))  # the name before 0.1.0
    if rate is not None:
        rows["explored weights"] = f"{percent(rate)} were kept at some time"
    if record.get("collapsed"):
        rows["no weights left in"] = ", ".join(record["collapsed"])
    if record.get("bytes"):
        rows["file"] = f"{record['subnetwork']} ({size(record['bytes'])}; dense {size(record['dense_bytes'])})"
    pairs(rows)
    say(f"sha256 {record['sha256']}")  # on one line, to be copied


def _validated(record: Mapping[str, Any], leading: str) -> str:
    return f"{cell(leading, record[f'val_{leading}'])}{_before(record, f'unpruned_val_{leading}', leading)}"


def _before(record: Mapping[str, Any], key: str, leading: str) -> str:
    return "" if record.get(key) is None else f" (before pruning {cell(leading, record[key])})"


def _tested(record: Mapping[str, Any], leading: str) -> str:
    if record[f"test_{leading}"] is not None:
        return f"{cell(leading, record[f'test_{leading}'])}{_before(record, f'unpruned_test_{leading}', leading)}"
    return f"not measured: {record['test_error']}" if record.get("test_error") else "no test split"


def macs(record: Mapping[str, Any]) -> str:
    """Multiply-accumulates of the subnetwork and of the dense network."""
    return f"{record['kept_macs']:,} of {record['macs']:,} {which_macs(record)}"


def which_macs(record: Mapping[str, Any]) -> str:
    """Which operations `kept_macs` counts."""
    return "on average per input" if record.get("dynamic") else "with a kept weight"


def _passes(record: Mapping[str, Any]) -> str:
    """Forward and backward passes of a run, if they differ from its steps."""
    passes = record.get("passes") or {}
    if set(passes.values()) <= {record["steps"]}:
        return ""
    return f"; {passes['forward']:,} forward and {passes['backward']:,} backward passes"
