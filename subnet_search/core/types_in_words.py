"""Types of settings in plain words."""

from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin


def type_in_words(kind: Any) -> str:
    """A type in plain words."""
    if kind is NoneType:
        return "none"
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return type_in_words(arguments[0])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, UnionType):
        return " or ".join(map(type_in_words, arguments))
    if origin in (tuple, list):
        return f"list of {type_in_words(arguments[0])}"
    if (origin or kind) is dict:
        return "mapping"
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}.get(
        getattr(kind, "__name__", ""), str(getattr(kind, "__name__", kind))
    )
