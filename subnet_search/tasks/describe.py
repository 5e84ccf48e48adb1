"""The built-in tasks as plain values, read from their classes."""

import inspect
from typing import Any

from subnet_search.core.errors import unknown
from subnet_search.core.types_in_words import type_in_words
from subnet_search.tasks.registry import TASKS


def describe(name: str) -> dict[str, Any]:
    """A built-in task: leading metric, all metrics with their directions, and settings. Raises UserError for another name."""
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    cls = TASKS[name]
    helps = cls.helps()
    return {
        "name": name,
        "summary": (inspect.getdoc(cls) or "").splitlines()[0],
        "leading": cls.leading,
        "metrics": dict(cls.directions),
        "settings": [
            {
                "name": key,
                "type": type_in_words(field.annotation),
                "default": field.default,
                "help": helps.get(key, ""),
            }
            for key, field in cls.model_fields.items()
            if key != "name"
        ],
    }


def catalogue() -> list[dict[str, Any]]:
    """Every built-in task."""
    return [describe(name) for name in TASKS]
