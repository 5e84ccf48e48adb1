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
    """Load data that is passed from Python, for use in several runs.

    data            as for `extract`; see `data.from_user` for all that it may be
    task            a name, settings or object, as for `extract`
    val_fraction    the fraction of training items to hold out for validation, if the data has no part for it
    split_seed      seed of that split
    mean, std       to normalise uint8 images by: one number for each channel of images scaled to 0..1; default: those of the
                    training images
    workers         processes that read items, for data that is read item by item; default: a DataLoader's, otherwise none
    val_transform   transform of held-out items: a callable, or {attribute of the Dataset: callable}; default: the Dataset's own

    Raises UserError for data that is invalid for the task, and for an invalid fraction, mean or std.
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
