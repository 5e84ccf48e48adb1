"""Read a configuration from YAML; errors name the file, the line and the key."""

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from subnet_search.core.documents import Document, Number, read_file, read_text
from subnet_search.core.errors import UserError, invalid, nearest, reading
from subnet_search.core.settings import Settings
from subnet_search.extractors import Extractor, get_extractor, is_extractor

M = TypeVar("M", bound=Settings)


DEFAULTS = {"network": "lenet5", "data": "digits", "extractor": "gumbel"}


def read_config(model: type[M], path: str | Path | None, overrides: Iterable[str] = ()) -> M:
    """A validated model from a YAML file (None: defaults) and overrides such as `extractor.density=0.2`.

    Raises UserError: one line with the file, the line, the key and the valid values.
    """
    return check(model, *read_values(model, path, overrides))


def read_values(
    model: type[Settings], path: str | Path | None, overrides: Iterable[str] = ()
) -> tuple[dict[str, Any], dict[str, str]]:
    """The values of `read_config` and their locations, as `check` takes them, not validated yet."""
    found = Document({}) if path is None else _read_yaml(Path(path))
    values, locations = found.values, found.places
    keys, what = model.other_kind
    if keys & values.keys() and not values.keys() & (model.model_fields.keys() - {"seed"}):
        raise UserError(f"{path} is {what} {path}")
    for override in overrides:
        key, separator, text = (part.strip() for part in override.partition("="))
        if not separator or not key or "@" in key or "://" in key:
            raise UserError(f"-s takes KEY=VALUE, got {override!r}")
        put(values, key, read_text(text, f"the value of -s {key}").values)
        locations = {name: location for name, location in locations.items() if not name.startswith(f"{key}.")}
        locations[key] = f"-s {key}"  # without the value: it may be a secret
    return typed(values, model), locations


def check(model: type[M], values: Mapping[str, Any], locations: Mapping[str, str] | None = None) -> M:
    """Validate `values` as a `model`. Raises UserError with the first error, with its file and line from `locations`."""
    locations = locations or {}
    with reading(locations.get("", "the settings")):
        try:
            return model.model_validate(values)
        except ValidationError as error:
            raise UserError(_describe(error, locations)) from None  # pydantic's own text says no more


def typed(value: Any, kind: Any = None) -> Any:
    """Parsed YAML as plain values. A number stays text if its key takes text."""
    if isinstance(value, Number):
        return value.text if _is_text(kind) else value.value
    if isinstance(value, dict):
        return {key: typed(inner, _inside(kind, key, value)) for key, inner in value.items()}
    return [typed(inner, _inside(kind, None, value)) for inner in value] if isinstance(value, list) else value


def _is_text(kind: Any) -> bool:
    """Whether a type takes text but no number."""
    kinds = get_args(kind) or (kind,)
    return str in kinds and not {int, float} & set(kinds)


def _inside(kind: Any, key: str | None, value: Any) -> Any:
    """The type of a mapping's value under `key`, or of a list's items (key None); None if it is not known."""
    if (model := _model_of(kind, value)) is not None:
        field = model.model_fields.get(str(key))
        return field.annotation if field else None
    arguments = [inner for inner in get_args(kind) if inner not in (type(None), ...)]
    return arguments[-1] if arguments and isinstance(value, list if key is None else dict) else None


def put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested mappings; a plain name in its path becomes `{name: ...}`."""
    *path, last = key.split(".")
    for part in path:
        inner = values.get(part)
        values[part] = dict(inner) if isinstance(inner, Mapping) else {} if inner is None else {"name": inner}
        values = values[part]
    values[last] = value


def with_values(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested mappings with dotted keys set."""
    out = copy.deepcopy(dict(values))
    for key, value in changes.items():
        put(out, key, value)
    return out


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _read_yaml(path: Path) -> Document:
    """Read a YAML file whose top level is a mapping."""
    if not path.exists():
        near = nearest(path.name, [p.name for p in path.parent.glob("*.y*ml")], 1, 0.6)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise UserError(f"no such file: {path}{hint}")
    found = read_file(path)
    if not isinstance(found.values, dict):
        kind = type(typed(found.values)).__name__
        raise UserError(f"{path} must contain keys and values, got {kind}")
    return found


def _describe(error: ValidationError, locations: Mapping[str, str]) -> str:
    """The first validation error in one line."""
    mistake = invalid(error)
    path = mistake.key.split(".")
    location = next((locations[part] for n in range(len(path), -1, -1) if (part := ".".join(path[:n])) in locations), None)
    where = f" ({location})" if location else ""
    others = error.error_count() - 1 + getattr(mistake, "more", 0)
    return f"{mistake}{where}{f' (and {others} more)' if others else ''}"


def _model_of(kind: Any, values: Any) -> type[BaseModel] | None:
    """The model of a key's type; for a method, the class that the values name."""
    if kind is Extractor:
        name = values.get("name", DEFAULTS["extractor"]) if isinstance(values, Mapping) else str(values)
        return get_extractor(name) if is_extractor(name) else None
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
