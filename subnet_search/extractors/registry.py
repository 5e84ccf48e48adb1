"""Finds extractors: of this package, of installed packages (entry points), and by import path.

Trials and files store an extractor of this package by its registered name, one from outside as `package.module:Class`,
which every process can import. An installed package may give it a short name with an entry point in the group
`subnet_search.extractors`.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from subnet_search.core.errors import UserError, guarded, shown, unknown
from subnet_search.extractors.base import E, Extractor

GROUP = "subnet_search.extractors"
PACKAGE = "subnet_search."
REGISTRY: dict[str, type[Extractor]] = {}


def register(name: str) -> Callable[[E], E]:
    """Register an extractor under `name` in this process: selectable, searchable, listed and tested.

    One that is defined outside this package is stored as `package.module:Class` all the same.
    """

    def add(cls: E) -> E:
        if name in REGISTRY and REGISTRY[name].__qualname__ != cls.__qualname__:
            raise ValueError(f"two extractors are called {name!r}")
        if cls.__module__.startswith(PACKAGE):
            cls.name = name
        REGISTRY[name] = cls
        return cls

    return add


def extractor_names() -> list[str]:
    """The registered names and those of entry points, in alphabetical order."""
    return sorted({*REGISTRY, *_entry_points()})


def get_extractor(name: str) -> type[Extractor]:
    """The class of a name, of an entry point, or of `package.module:Class`, which is imported.

    Raises UserError in one line: with the nearest names, or with what is wrong with the import.
    """
    if isinstance(name, str):
        if found := REGISTRY.get(name):
            return found
        if found := next((cls for cls in REGISTRY.values() if cls.name == name), None):
            return found
        if point := _entry_points().get(name):
            with guarded(f"cannot import the extractor {name!r} ({point.value})"):
                found = _checked(name, point.load())
            found.name = name
            REGISTRY[name] = found
            return found
        if ":" in name:
            return _imported(name)
    raise unknown("extractor", name, [*extractor_names(), "package.module:Class"])


def is_extractor(name: Any) -> bool:
    """Whether a name is that of an extractor. `module:Class` counts as one, and is not imported."""
    return isinstance(name, str) and (name in extractor_names() or ":" in name)


def create(spec: Any) -> Extractor:
    """An extractor from a name, from `{name: ..., hyperparameter: value}`, or from an extractor (returned as it is).

    spec: one of these three. Raises UserError for anything else and for an unknown name, and pydantic.ValidationError, a
    ValueError, for an unknown hyperparameter and for a value that is not allowed.
    """
    if isinstance(spec, Extractor):
        return spec
    if isinstance(spec, str):
        return get_extractor(spec)()
    if isinstance(spec, Mapping) and "name" in spec:
        return get_extractor(spec["name"]).model_validate({key: value for key, value in spec.items() if key != "name"})
    raise UserError(f"an extractor is a name or {{name: ..., ...}}, got {shown(spec)}")


def _imported(name: str) -> type[Extractor]:
    module, _, attribute = name.partition(":")
    with guarded(f"cannot import the extractor {name!r} (package.module:Class, in the current folder or on PYTHONPATH)"):
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    return _checked(name, found)


def _checked(name: str, found: Any) -> type[Extractor]:
    """`found`, if it is an extractor's class. Raises UserError when it is not, or lacks a declaration."""
    if not (isinstance(found, type) and issubclass(found, Extractor)):
        raise UserError(f"{name} is a {type(found).__name__}, not a class derived from subnet_search.Extractor")
    if inspect.isabstract(found):
        raise UserError(f"{name} must define {', '.join(sorted(found.__abstractmethods__))}")
    if missing := [attribute for attribute in ("paper", "paradigm") if not hasattr(found, attribute)]:
        raise UserError(f"{name} must declare {' and '.join(missing)}: see CONTRIBUTING.md")
    return found


@cache
def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}
