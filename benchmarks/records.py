"""What a run measured, as a file in benchmarks/results/, and the newest of a benchmark's files against the one before."""

import importlib.metadata
import itertools
import json
import os
import platform
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from timing import THREADS, Measured

RESULTS = Path(__file__).with_name("results")
Row = Mapping[str, Any]


def circumstances() -> dict[str, Any]:
    """When, on what, and with which versions: without the names of the machine and its folders."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "versions": {
            **{name: importlib.metadata.version(name) for name in ("subnet-search", "torch", "numpy")},
            "python": platform.python_version(),
        },
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": processor(),
            "processors": os.cpu_count(),
            "threads": THREADS,
        },
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }


def processor() -> str | None:
    """The model of the first processor, where Linux says it."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"(?m)^model name\s*: (.*)$", info.read_text()) if info.exists() else None
    return found.group(1).strip() if found else None


def write(name: str, when: Row, rows: Sequence[Mapping[str, object]], folder: Path = RESULTS) -> Path:
    """One file for this run of a benchmark: `NAME-DATE.json`."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{when['date'].removesuffix(' UTC').replace(' ', '-').replace(':', '')}.json"
    cells = [{key: cell(value) for key, value in row.items()} for row in rows]
    path.write_text(json.dumps({"benchmark": name, **when, "rows": cells}, indent=1) + "\n")
    return path


def cell(value: object) -> object:
    """A number as a number, one with a spread as all that `Measured` holds, everything else as its text."""
    if isinstance(value, Measured):
        rounded = {key: float(f"{number:.6g}") for key, number in (("value", value), ("low", value.low), ("high", value.high))}
        return {**rounded, "better": value.better}
    if isinstance(value, int | float):
        return value
    try:
        return float(str(value).replace(",", ""))
    except ValueError:
        return str(value)


def compare(name: str, folder: Path = RESULTS) -> list[str]:
    """The newest run of a benchmark against the one before, in lines; those that end with `WORSE` are regressions.

    A number is worse when its spread is beyond that of the earlier number, on the side that is not better; a target is
    worse when it was met.
    """
    paths = sorted(folder.glob(f"{name}-[0-9]*.json"))[-2:]
    if len(paths) < 2:
        return []
    before, after = (json.loads(path.read_text()) for path in paths)
    differ = [key for key in ("versions", "machine") if before[key] != after[key]]
    lines = [f"{name}: {after['date']} against {before['date']}"]
    lines += [f"  other {key}: {after[key]} against {before[key]}" for key in differ]
    earlier = dict(labelled(before["rows"]))
    for (label, count), row in labelled(after["rows"]):
        old = earlier.get((label, count), {})
        for column in (column for column in row if column in old):
            lines += [f"  {label}, {line}" for line in change(column.strip(), old[column], row[column])]
    return lines


def labelled(rows: Sequence[Row]) -> Iterator[tuple[tuple[str, int], Row]]:
    """Each row under its leading texts and whole numbers, and how many with the same came before it."""
    seen: Counter[str] = Counter()
    for row in rows:
        label = ", ".join(str(value) for value in itertools.takewhile(lambda value: isinstance(value, str | int), row.values()))
        yield (label, seen[label]), row
        seen[label] += 1


def change(column: str, old: Any, new: Any) -> list[str]:
    """A line for each number with a spread, and for each target that was met and is missed; none for other cells."""
    if isinstance(old, dict) and isinstance(new, dict):
        worse = new["low"] > old["high"] if new["better"] == "lower" else new["high"] < old["low"]
        return [f"{column}: {shown(new)}, before {shown(old)}{'  WORSE' if worse else ''}"]
    if str(new).count("missed") > str(old).count("missed"):
        return [f"{column}: {new}, before {old}  WORSE"]
    return []


def shown(measured: Row) -> str:
    return f"{measured['value']:.4g} ({measured['low']:.4g} to {measured['high']:.4g})"
