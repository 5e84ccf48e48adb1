"""The registry in words: what each method is, from its class alone."""

import inspect
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from subnet_search.domains import domains
from subnet_search.extractors.base import Extractor, RelevanceLearner, extractor_names, get_extractor


def describe(name: str) -> dict[str, Any]:
    """A method as plain values: paper, paradigm, units, hyperparameters. Raises UserError for an unknown name."""
    cls = get_extractor(name)
    paper, paradigm = cls.paper, cls.paradigm
    return {
        "name": name,
        "summary": (inspect.getdoc(cls) or "").splitlines()[0],
        "paper": str(paper),
        "cited": paper.short,
        "title": paper.title,
        "formula": paper.formula,
        "paradigm": {
            "mask_from": paradigm.mask_from,
            "weights_from": paradigm.weights_from,
            "schedule": paradigm.schedule,
            "trains_after": paradigm.trains_after,
            "learns": "relevance" if issubclass(cls, RelevanceLearner) else "weights",
        },
        "units": list(paradigm.units),
        "recipe": dict(cls.recipe),
        "hyperparameters": _hyperparameters(cls),
    }


def catalogue() -> list[dict[str, Any]]:
    """Every registered method, by name."""
    return [describe(name) for name in extractor_names()]


def _hyperparameters(cls: type[Extractor]) -> list[dict[str, Any]]:
    found = domains(cls)
    return [
        {
            "name": name,
            "type": _words(field.annotation),
            "default": field.default,
            "domain": str(found[name]) if name in found else None,
            "help": " ".join((field.description or "").split()),
        }
        for name, field in cls.model_fields.items()
    ]


def _words(kind: Any) -> str:
    """A type as a person would name it."""
    if kind is NoneType:
        return "none"
    if get_origin(kind) is Annotated:
        return _words(get_args(kind)[0])
    if get_origin(kind) is Literal:
        return " | ".join(map(str, get_args(kind)))
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_words(part) for part in get_args(kind))
    return str(getattr(kind, "__name__", kind))
