"""The metrics of a task, as records of runs and studies name them: val_NAME for each, and test_NAME for the leading one.

Imports no torch and no task: commands that read a study use it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Direction = Literal["minimize", "maximize"]

FRACTIONS = frozenset({"accuracy", "f1", "precision", "recall", "iou", "miou", "dice", "auroc"})
"""Words in names of metrics whose values are from 0 to 1: tables show them as percentages."""
NAME = re.compile(r"[\w.@+-]{1,100}")  # of a metric in a stored study
NOT_MEASURED = "test_error"  # key of a record: why the test split could not be read


@dataclass(frozen=True)
class TaskMetrics:
    """The metrics of a task that are one number, with their directions, and the one that leads."""

    leading: str
    directions: Mapping[str, Direction]

    @property
    def val(self) -> str:
        """The leading metric's key in records, on the validation split."""
        return f"val_{self.leading}"

    @property
    def test(self) -> str:
        """The leading metric's key in records, on the test split."""
        return f"test_{self.leading}"

    @property
    def measures(self) -> dict[str, Direction]:
        """The metrics that are available after each epoch, by their keys in records."""
        return {f"val_{name}": direction for name, direction in self.directions.items()}

    @property
    def maximized(self) -> set[str]:
        """Keys of records where higher is better."""
        higher = [name for name, direction in self.directions.items() if direction == "maximize"]
        return {f"{split}_{name}" for name in higher for split in ("val", "test")}

    def plain(self) -> dict[str, Any]:
        """As stored in a study."""
        return {"leading": self.leading, "directions": dict(self.directions)}

    @classmethod
    def of(cls, task: Any) -> "TaskMetrics":
        """The metrics of a `Task`."""
        return cls(task.leading, dict(task.directions))

    @classmethod
    def read(cls, stored: Any) -> "TaskMetrics":
        """From the values of `plain`; those of classification for anything else, as in studies from before tasks."""
        match stored:
            case {"leading": str(leading), "directions": dict(directions)} if leading in directions:
                valid = all(NAME.fullmatch(str(name)) and one in get_args(Direction) for name, one in directions.items())
                return cls(leading, directions) if valid else CLASSIFICATION
        return CLASSIFICATION


CLASSIFICATION = TaskMetrics(
    "accuracy",
    {
        "accuracy": "maximize",
        "nll": "minimize",
        "brier": "minimize",
        "ece": "minimize",
        "balanced_accuracy": "maximize",
        "top5_accuracy": "maximize",
    },
)
"""As in `tasks.Classification`, which needs torch; a test compares them."""


def leading_in(record: Mapping[str, Any]) -> str:
    """The leading metric of a record of a run, trial or comparison: the one that is measured on the test split."""
    keys = (key.removeprefix("test_") for key in record if key.startswith("test_") and key != NOT_MEASURED)
    return next(keys, CLASSIFICATION.leading)


def is_fraction(key: str) -> bool:
    """Whether the values of a metric are from 0 to 1. key: its name, or its key in a record."""
    return "accuracy" in key or not FRACTIONS.isdisjoint(key.split("_"))


def in_words(name: str, split: Literal["validation", "test", ""] = "") -> str:
    """A metric's name for people: validation balanced accuracy."""
    return f"{split} {name.replace('_', ' ')}".strip()
