"""Tasks: what a network is trained for, and how its outputs are measured."""

from subnet_search.tasks.base import Direction, LogitsTask, Network, Task
from subnet_search.tasks.calls import (
    Recorded,
    check_metrics,
    check_scalar,
    guarded_loss,
    inputs_sent,
    with_outputs,
    without_labels,
)
from subnet_search.tasks.classification import Classification
from subnet_search.tasks.loading import load_data
from subnet_search.tasks.registry import TASKS, create_task, task_names, task_of
from subnet_search.tasks.user import UserTask

__all__ = [
    "TASKS",
    "Classification",
    "Direction",
    "LogitsTask",
    "Network",
    "Recorded",
    "Task",
    "UserTask",
    "check_metrics",
    "check_scalar",
    "create_task",
    "guarded_loss",
    "inputs_sent",
    "load_data",
    "task_names",
    "task_of",
    "with_outputs",
    "without_labels",
]
