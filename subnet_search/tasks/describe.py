"""The built-in tasks as plain values, read from their classes."""

import inspect
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from subnet_search.core.errors import unknown
from subnet_search.tasks.registry import TASKS


def describe(name: str) -> dict[str, Any]:
    """A built-in task: leading metric, all metrics with their directions, and settings. Raises UserError for another name."""
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    cls = TASKS[name]
    return {
        "name": name,
        "summary": (inspect.getdoc(cls) or "").splitlines()[0],
        "leading": cls.leading,
        "metrics": dict(cls.directions),
        "settings": [
            {
                "name": key,
                "type": _words(field.annotation),
                "default": field.default,
                "help": " ".join((field.description or "").split()),
            }
            for key, field in cls.model_fields.items()
            if key != "name"
        ],
    }


def catalogue() -> list[dict[str, Any]]:
    """Every built-in task."""
    return [describe(name) for name in TASKS]


def _words(kind: Any) -> str:
    """A type in plain words."""
    if kind is NoneType:
        return "none"
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _words(arguments[0])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, UnionType):
        return " or ".join(map(_words, arguments))
    if origin in (tuple, list):
        return f"list of {_words(arguments[0])}"
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}.get(
        getattr(kind, "__name__", ""), str(getattr(kind, "__name__", kind))
    )
