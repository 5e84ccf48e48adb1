"""Load data for a task."""

from typing import Any

from subnet_search.data import Data, from_user
from subnet_search.tasks.registry import task_of


def load_data(
    data: Any,
    task: Any = "classification",
    *,
    val_fraction: float = 0.1,
    split_seed: int = 0,
    mean: Any = None,
    std: Any = None,
    workers: int | None = None,
    val_transform: Any = None,
) -> Data:
    """Load data that is passed from Python, for use in several runs: see `data.from_user` for all that it may be.

    task: a name, settings or object, as for `extract`. Raises UserError for data that is invalid for the task.
    """
    found = task_of(task)
    return from_user(
        data,
        val_fraction,
        split_seed,
        mean=mean,
        std=std,
        labels=found.kind_of_labels,
        workers=workers,
        val_transform=val_transform,
    )
