"""Tasks: what a network is trained for, and how its outputs are measured."""

from subnet_search.tasks.base import Direction, LogitsTask, Network, Task
from subnet_search.tasks.calls import (
    Recorded,
    check_metrics,
    check_scalar,
    first_inputs,
    guarded_loss,
    inputs_sent,
    with_outputs,
    without_labels,
)
from subnet_search.tasks.classification import Classification
from subnet_search.tasks.language_modeling import LanguageModeling
from subnet_search.tasks.loading import load_data
from subnet_search.tasks.multi_label import MultiLabel
from subnet_search.tasks.predictions import (
    MultiLabelPrediction,
    NextTokenPrediction,
    Prediction,
    RegressionPrediction,
    SegmentationPrediction,
)
from subnet_search.tasks.registry import TASKS, create_task, task_names, task_of
from subnet_search.tasks.regression import Regression
from subnet_search.tasks.segmentation import Segmentation
from subnet_search.tasks.user import UserTask

__all__ = [
    "TASKS",
    "Classification",
    "Direction",
    "LanguageModeling",
    "LogitsTask",
    "MultiLabel",
    "MultiLabelPrediction",
    "Network",
    "NextTokenPrediction",
    "Prediction",
    "Recorded",
    "Regression",
    "RegressionPrediction",
    "Segmentation",
    "SegmentationPrediction",
    "Task",
    "UserTask",
    "check_metrics",
    "check_scalar",
    "create_task",
    "first_inputs",
    "guarded_loss",
    "inputs_sent",
    "load_data",
    "task_names",
    "task_of",
    "with_outputs",
    "without_labels",
]
