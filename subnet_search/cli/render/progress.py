"""Progress on standard error: a live display on a terminal, plain lines otherwise."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from subnet_search.cli.render import format
from subnet_search.cli.render.signals import stop_on_signal
from subnet_search.core.parameter_names import by_key
from subnet_search.core.task_metrics import CLASSIFICATION, TaskMetrics, in_words, leading_in

PLAIN_SECONDS = 10.0  # between two plain lines of a run


def step_bar(live: bool) -> Progress:
    """A bar of training steps on standard error; not live: without output."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"))
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    return Progress(*columns, *times, console=format.errors, transient=True, disable=not live)


class RunProgress:
    """Shows the progress of a run, by its callbacks `on_step` and `on_epoch`."""

    def __init__(self, quiet: bool = False, leading: str = CLASSIFICATION.leading) -> None:
        """leading: the task's leading metric."""
        self.leading = leading
        self.live = format.errors.is_terminal and not quiet
        self.quiet = quiet
        self.printed = 0.0
        self.bar = step_bar(self.live)
        self.task = self.bar.add_task("reading data", total=None, start=False)

    def on_unpruned(self, metrics: dict[str, Any]) -> None:
        if not self.quiet:
            format.note(f"before pruning: {_validation(self.leading, metrics[f'unpruned_val_{self.leading}'])}")

    def on_step(self, clock: Any) -> None:
        if self.live:
            self.bar.start_task(self.task)  # the first call starts the clock
            self.bar.update(self.task, completed=clock.step + 1, total=clock.total)
        self.total = clock.total

    def on_epoch(self, epoch: Any) -> None:
        quality = _validation(self.leading, epoch.metrics[f"val_{self.leading}"])
        text = f"epoch {epoch.epoch}  loss {epoch.train_loss:.4f}  {quality}"
        self.bar.update(self.task, description=f"{text}  density {epoch.density:.3f}")
        last = epoch.step == self.total
        if not self.live and not self.quiet and (last or time.monotonic() - self.printed > PLAIN_SECONDS):
            self.printed = time.monotonic()
            done = epoch.step / self.total
            left = format.seconds(epoch.seconds * (1 - done) / done)
            format.note(f"{text}  density {epoch.density:.3f}  {format.percent(done)} done, {left} left")

    def __enter__(self) -> "RunProgress":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


@contextmanager
def follow_run(quiet: bool, resume_command: str, leading: str = CLASSIFICATION.leading) -> Iterator[dict[str, Any]]:
    """Callbacks for `run`: progress, and stopping on Ctrl-C. The error of a stopped run has the command to continue.

    leading: the task's leading metric.
    """
    with stop_on_signal(f"continue with: {resume_command}") as should_stop, RunProgress(quiet, leading) as progress:
        seen = {"on_unpruned": progress.on_unpruned, "on_step": progress.on_step, "on_epoch": progress.on_epoch}
        yield {**seen, "should_stop": should_stop}


@contextmanager
def study_progress(
    rows: Callable[[], list[dict[str, Any]]], budget: int, quiet: bool = False, metrics: TaskMetrics = CLASSIFICATION
) -> Iterator[None]:
    """Shows the progress of a study from its storage. `rows` returns all trials as plain rows; `metrics` are the task's."""
    if quiet:
        yield
        return
    watch = _StudyWatch(rows, budget, metrics)
    if format.errors.is_terminal:
        with Live(get_renderable=watch.render, console=format.errors, refresh_per_second=2, transient=True):
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
    def __init__(self, rows: Callable[[], list[dict[str, Any]]], budget: int, metrics: TaskMetrics = CLASSIFICATION) -> None:
        self.rows, self.budget, self.metrics = rows, budget, metrics
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
            format.note(f"[{len(_finished(rows))}/{self.budget}] trial {row['number']} {_ending(row)}")

    def render(self) -> RenderableType:
        """The live display: a status line, the trial with the best leading metric, and running trials."""
        rows = self.rows()
        done = len(_finished(rows))
        elapsed = time.monotonic() - self.started
        fresh = done - self.at_start
        left = f"about {format.seconds(elapsed / fresh * (self.budget - done))} left" if fresh else "estimating"
        failed = sum(row["state"] == "FAIL" for row in rows)
        line = f"{done} of {self.budget} trials, {failed} failed, {format.seconds(elapsed)}, {left}"
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
                quality = "" if seen is None else format.cell(name, seen)
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
    quality = _validation(leading, row[f"val_{leading}"])
    density = "-" if row["density"] is None else f"{row['density']:.3f}"
    word = "pruned" if row["state"] == "PRUNED" else "complete"
    more = "".join(f", {key} {format.cell(key, value)}" for key, value in row["measured"].items())
    broken = ", ".join(key for key, beyond in row["constraints"].items() if beyond > 0)
    breaks = f", violates the constraint on {broken}" if broken else ""
    return f"{word}: {quality}, density {density}{more}{breaks}  ({_params(row)})"


def _validation(leading: str, value: float | None) -> str:
    """The leading metric in a line of progress; accuracy needs no name."""
    name = "validation" if leading == CLASSIFICATION.leading else in_words(leading, "validation")
    return f"{name} {format.cell(leading, value)}"


def _params(row: dict[str, Any]) -> str:
    return ", ".join(
        f"{key.removeprefix('extractor.')}={format.cell('', value)}" for key, value in by_key(row["params"]).items()
    )
