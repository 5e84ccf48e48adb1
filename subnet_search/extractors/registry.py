"""Which extractors there are, by name."""

from collections.abc import Callable, Mapping
from typing import Any

from subnet_search.core.errors import UserError, shown, unknown
from subnet_search.extractors.base import E, Extractor

REGISTRY: dict[str, type[Extractor]] = {}


def register(name: str) -> Callable[[E], E]:
    """Make an extractor known by `name`: selectable, searchable, listed, documented and tested."""

    def add(cls: E) -> E:
        if name in REGISTRY and REGISTRY[name].__qualname__ != cls.__qualname__:
            raise ValueError(f"two extractors are called {name!r}")
        cls.name = name
        REGISTRY[name] = cls
        return cls

    return add


def extractor_names() -> list[str]:
    """The registered names, in alphabetical order."""
    return sorted(REGISTRY)


def get_extractor(name: str) -> type[Extractor]:
    """The class registered under `name`. Raises UserError with the nearest names."""
    if not isinstance(name, str) or name not in REGISTRY:
        raise unknown("extractor", name, REGISTRY)
    return REGISTRY[name]


def create(spec: Any) -> Extractor:
    """An extractor from a name, from `{name: ..., hyperparameter: value}`, or from an extractor (returned as it is)."""
    if isinstance(spec, Extractor):
        return spec
    if isinstance(spec, str):
        return get_extractor(spec)()
    if isinstance(spec, Mapping) and "name" in spec:
        return get_extractor(spec["name"]).model_validate({key: value for key, value in spec.items() if key != "name"})
    raise UserError(f"an extractor is a name or {{name: ..., ...}}, got {shown(spec)}")
