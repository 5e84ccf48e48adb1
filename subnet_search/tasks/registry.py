"""Tasks by name."""

import importlib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from subnet_search.core.errors import UserError, guarded, invalid, shown, unknown
from subnet_search.tasks.base import Task
from subnet_search.tasks.classification import Classification
from subnet_search.tasks.language_modeling import LanguageModeling
from subnet_search.tasks.multi_label import MultiLabel
from subnet_search.tasks.regression import Regression
from subnet_search.tasks.segmentation import Segmentation
from subnet_search.tasks.user import UserTask

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "multi_label": MultiLabel,
    "regression": Regression,
    "segmentation": Segmentation,
    "language_modeling": LanguageModeling,
}


def task_names() -> list[str]:
    """The names of the built-in tasks."""
    return list(TASKS)


def create_task(value: Any) -> Task:
    """A task from a name, from `{name: ..., setting: value}`, from a task, or from an object with a method `loss`.

    `package.module:Name` is imported and called with the settings. Raises UserError for anything else.
    """
    if isinstance(value, Task):
        return value
    if value is None:  # in the config.yaml of such a run
        raise UserError("the task of this run was passed from Python: give its name, package.module:Name")
    if not isinstance(value, str | Mapping):
        return UserTask.of(value() if isinstance(value, type) else value)
    spec = {"name": value} if isinstance(value, str) else {"name": "classification", **value}
    name = spec["name"]
    if isinstance(name, str) and ":" in name:
        return _imported(name, {key: inner for key, inner in spec.items() if key != "name"})
    if name not in TASKS:
        raise unknown("task", shown(name) if not isinstance(name, str) else name, [*TASKS, "package.module:Name"])
    return TASKS[name].model_validate(spec)


def task_of(value: Any) -> Task:
    """As `create_task`, with the first mistake as UserError."""
    try:
        return create_task(value)
    except ValidationError as error:
        raise invalid(error) from error


def _imported(name: str, options: dict[str, Any]) -> UserTask:
    module, _, attribute = name.partition(":")
    with guarded(f"cannot import the task {name!r} (package.module:Name, in the current folder or on PYTHONPATH)"):
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    if not callable(found):
        raise UserError(f"{name} is a {type(found).__name__}, not a class or function that makes a task")
    with guarded(f"the task {name} does not accept {shown(options)}"):
        made = found(**options)
    return UserTask.of(made, name, options)
