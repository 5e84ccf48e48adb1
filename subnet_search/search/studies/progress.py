"""Progress of a study on standard error, read from its storage."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import optuna
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from subnet_search.core.numbers_as_text import cell, seconds
from subnet_search.core.parameter_names import by_key
from subnet_search.core.task_metrics import CLASSIFICATION, TaskMetrics, in_words, leading_in
from subnet_search.extraction.progress import Screen, validation_text
from subnet_search.search.queries.queries import trial_rows


@contextmanager
def study_progress(study: optuna.Study, budget: int, wanted: bool | None, metrics: TaskMetrics) -> Iterator[None]:
    """Shows the progress of a study from its storage. wanted: as for `Screen`. metrics: those of the task."""
    screen = Screen(wanted)
    if not (screen.live or screen.plain):
        yield
        return
    watch = _StudyWatch(lambda: trial_rows(study), budget, metrics, screen)
    if screen.live:
        with Live(get_renderable=watch.render, console=screen.console, refresh_per_second=2, transient=True):
            yield
        return
    ended = threading.Event()

    def print_lines() -> None:
        while not ended.wait(0.5):
            watch.print_ended()

    thread = threading.Thread(target=print_lines, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        watch.print_ended()


class _StudyWatch:
    def __init__(self, rows: Callable[[], list[dict[str, Any]]], budget: int, metrics: TaskMetrics, screen: Screen) -> None:
        self.rows, self.budget, self.metrics, self.screen = rows, budget, metrics, screen
        self.started = time.monotonic()
        before = rows()
        self.printed = {row["number"] for row in before if row["state"] not in ("RUNNING", "WAITING")}
        self.at_start = len(_finished(before))

    def print_ended(self) -> None:
        """Print a line for each trial that has ended since the last call."""
        rows = self.rows()
        for row in rows:
            if row["state"] in ("RUNNING", "WAITING") or row["number"] in self.printed:
                continue
            self.printed.add(row["number"])
            self.screen.note(f"[{len(_finished(rows))}/{self.budget}] trial {row['number']} {_ending(row)}")

    def render(self) -> RenderableType:
        """The live display: a status line, the trial with the best leading metric, and running trials."""
        rows = self.rows()
        done = len(_finished(rows))
        elapsed = time.monotonic() - self.started
        fresh = done - self.at_start
        left = f"about {seconds(elapsed / fresh * (self.budget - done))} left" if fresh else "estimating"
        failed = sum(row["state"] == "FAIL" for row in rows)
        line = f"{done} of {self.budget} trials, {failed} failed, {seconds(elapsed)}, {left}"
        out = Table(box=None, pad_edge=False, header_style="dim")
        name = self.metrics.leading
        accurate = name == CLASSIFICATION.leading
        heading = "validation" if accurate else in_words(name, "validation")
        for column in ("trial", "state", heading, "density", "parameters"):
            out.add_column(column)
        running = [("running", row) for row in rows if row["state"] == "RUNNING"]
        for label, row in [("most accurate" if accurate else "best", self._best(rows)), *running]:
            if row is not None:
                density = "" if row["density"] is None else f"{row['density']:.3f}"
                seen = row[self.metrics.val] if row[self.metrics.val] is not None else row.get("last")
                quality = "" if seen is None else cell(name, seen)
                out.add_row(str(row["number"]), label, quality, density, Text(_params(row)))
        return Group(line, out)

    def _best(self, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
        """The first of the finished trials with the best leading metric."""
        key = self.metrics.val
        measured = [row for row in _finished(rows) if row[key] is not None]
        best = max if self.metrics.directions[self.metrics.leading] == "maximize" else min
        return best(measured, key=lambda row: float(row[key]), default=None)


def _finished(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    own = (row for row in rows if row["repeats"] is None and row["imported"] is None)
    return [row for row in own if row["state"] in ("COMPLETE", "PRUNED")]


def _ending(row: dict[str, Any]) -> str:
    if row["state"] == "FAIL":
        return f"failed: {row['reason']}"
    leading = leading_in(row)
    quality = validation_text(leading, row[f"val_{leading}"])
    density = "-" if row["density"] is None else f"{row['density']:.3f}"
    word = "pruned" if row["state"] == "PRUNED" else "complete"
    more = "".join(f", {key} {cell(key, value)}" for key, value in row["measured"].items())
    broken = ", ".join(key for key, beyond in row["constraints"].items() if beyond > 0)
    breaks = f", violates the constraint on {broken}" if broken else ""
    return f"{word}: {quality}, density {density}{more}{breaks}  ({_params(row)})"


def _params(row: dict[str, Any]) -> str:
    return ", ".join(f"{key.removeprefix('extractor.')}={cell('', value)}" for key, value in by_key(row["params"]).items())
