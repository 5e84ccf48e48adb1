"""Progress on standard error: a bar in a terminal or a notebook, plain lines elsewhere."""

import importlib.util
import time
from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from subnet_search.core.numbers_as_text import cell, percent, seconds
from subnet_search.core.task_metrics import CLASSIFICATION, in_words
from subnet_search.training import Epoch
from subnet_search.training.distributed import rank_and_world

PLAIN_SECONDS = 10.0  # between two plain lines of a run


class Screen:
    """Standard error, and what can be shown on it.

    wanted: None shows progress in a terminal or a notebook and nothing elsewhere, True also plain lines elsewhere.
    """

    def __init__(self, wanted: bool | None) -> None:
        self.console = Console(stderr=True, highlight=False)
        widgets = self.console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None  # rich needs them for a bar
        interactive = self.console.is_terminal or self.console.is_jupyter
        shown = (interactive if wanted is None else wanted) and rank_and_world()[0] == 0
        self.live = shown and (self.console.is_terminal or widgets)
        self.plain = shown and not self.live

    def note(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, markup=False, soft_wrap=True)


class _TwoLines(Progress):
    """A bar, and below it what it is about, so that neither is cut in a terminal of 80 columns."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield from (Text(task.description) for task in self.tasks)


def step_bar(screen: Screen) -> Progress:
    """A bar of training steps; without output if the screen is not live."""
    columns = (BarColumn(30), MofNCompleteColumn(), TextColumn("steps "), TimeElapsedColumn(), TimeRemainingColumn())
    return _TwoLines(*columns, TextColumn("left"), console=screen.console, transient=True, disable=not screen.live)


class RunProgress:
    """Shows the progress of a run, by its callbacks."""

    def __init__(self, wanted: bool | None, leading: str = CLASSIFICATION.leading) -> None:
        """wanted: as for `Screen`. leading: the task's leading metric."""
        self.leading = leading
        self.screen = Screen(wanted)
        self.printed = 0.0
        self.bar = step_bar(self.screen)
        self.task = self.bar.add_task("reading data", total=None, start=False)

    def on_unpruned(self, metrics: dict[str, Any]) -> None:
        """Print the metric of the network with trained weights, before it is pruned."""
        if self.screen.live or self.screen.plain:
            quality = validation_text(self.leading, metrics[f"unpruned_val_{self.leading}"])
            self.bar.console.print(f"before pruning: {quality}", markup=False, soft_wrap=True)

    def on_step(self, clock: Any) -> None:
        """Move the bar to the step of `clock`."""
        if self.screen.live:
            if not self.bar.tasks[0].started:
                self.bar.start_task(self.task)
                self.bar.update(self.task, description="epoch 1")
            self.bar.update(self.task, completed=clock.step + 1, total=clock.total)
        self.total = clock.total

    def on_epoch(self, epoch: Epoch) -> None:
        """Show the metrics of an epoch; where there is no terminal, print a line at intervals and after the last one."""
        quality = validation_text(self.leading, epoch.metrics[f"val_{self.leading}"])
        text = f"epoch {epoch.epoch}  loss {epoch.train_loss:.4f}  {quality}  density {epoch.density:.3f}"
        last = epoch.step == self.total
        self.bar.update(self.task, description=f"{text}  measuring the result" if last else text)
        if self.screen.plain and (last or time.monotonic() - self.printed > PLAIN_SECONDS):
            self.printed = time.monotonic()
            done = epoch.step / self.total
            left = f"{percent(done)} done, {seconds(epoch.seconds * (1 - done) / done)} left"
            self.screen.note(f"{text}  {'trained; measuring the result' if last else left}")

    def __enter__(self) -> "RunProgress":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


class StageProgress:
    """Shows what is done now: a line that is replaced in a terminal or a notebook, plain lines elsewhere."""

    def __init__(self, wanted: bool | None) -> None:
        """wanted: as for `Screen`."""
        self.screen = Screen(wanted)
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        self.bar = Progress(*columns, console=self.screen.console, transient=True, disable=not self.screen.live)
        self.task = self.bar.add_task("")

    def __call__(self, text: str) -> None:
        self.bar.update(self.task, description=text)
        if self.screen.plain:
            self.screen.note(text)

    def __enter__(self) -> "StageProgress":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


def both(*calls: Callable[[Any], None] | None) -> Callable[[Any], None]:
    """One function that calls each of the given ones."""
    wanted = [call for call in calls if call is not None]

    def call_all(value: Any) -> None:
        for call in wanted:
            call(value)

    return call_all


def validation_text(leading: str, value: float | None) -> str:
    """The leading metric in a line of progress; accuracy needs no name."""
    name = "validation" if leading == CLASSIFICATION.leading else in_words(leading, "validation")
    return f"{name} {cell(leading, value)}"
