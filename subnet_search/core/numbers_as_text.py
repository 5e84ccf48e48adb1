"""Numbers for people: percentages, bytes and durations."""

from collections.abc import Iterable, Mapping
from typing import Any

from subnet_search.core.task_metrics import is_fraction


def cell(key: str, value: Any) -> str:
    """A value as text, formatted by its key: percentage, bytes, seconds, or plain number."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if is_fraction(key):
        return percent(value)
    if "density" in key:
        return f"{value:.4g}"
    if key == "bytes" or key.endswith("_bytes"):
        return size(value)
    if key == "seconds":
        return seconds(value)
    if key == "latency":
        return f"{value:.4g} ms"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {cell(name, inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(cell(key, inner) for inner in value)
    return str(value)


def percent(fraction: float) -> str:
    """A fraction as a percentage with two decimals: "98.61 %" for 0.9861."""
    return f"{100 * fraction:.2f} %"


def size(count: float) -> str:
    """A number of bytes in B, kB, MB or GB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def seconds(count: float) -> str:
    """A duration in seconds, minutes or hours."""
    if count < 60:
        return f"{count:.1f} s"
    minutes, rest = divmod(round(count), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def by_reason(rows: Iterable[Mapping[str, str]]) -> dict[str, list[str]]:
    """The names in rows of `name` and `why`, by the reason."""
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row["why"], []).append(row["name"])
    return found
