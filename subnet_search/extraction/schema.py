"""The keys of a configuration, as rows and as a JSON schema for editors and other validators."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from subnet_search.core.errors import unknown
from subnet_search.core.settings import Settings
from subnet_search.core.types_in_words import type_in_words
from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.config_file import DEFAULTS
from subnet_search.extractors import extractor_names, get_extractor
from subnet_search.tasks.registry import TASKS

DIALECT = "https://json-schema.org/draft/2020-12/schema"
TEXT = {"type": "string"}
OWN = {"type": "object", "properties": {"name": {"type": "string", "pattern": ":"}}, "required": ["name"]}
"""A method or task of the user's own, `package.module:Name`, with any settings."""
NAMED = {
    "extractor": "See subnet-search methods NAME for the hyperparameters of a method.",
    "task": "See subnet-search tasks NAME for the settings of a task.",
}


def sections(model: type[Settings], own: str) -> dict[str, list[dict[str, str]]]:
    """Rows of `key`, `type`, `default` and `meaning` by section; the keys without a section are under `own`."""
    found: dict[str, list[dict[str, str]]] = {own: []}
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Settings):
            found[name] = _rows(kind, f"{name}.") if name not in NAMED else [_named(name, model.helps()[name])]
        else:
            found[own] += _rows(model, "", [name])
    return found


def section(found: Mapping[str, list[dict[str, str]]], name: str) -> dict[str, list[dict[str, str]]]:
    """One of the sections. Raises UserError for another name."""
    if name not in found:
        raise unknown("section", name, found)
    return {name: found[name]}


def run_schema() -> dict[str, Any]:
    """A JSON schema of a run's configuration. It refuses unknown keys, also of methods and tasks of this package."""
    schema = RunConfig.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    for name in ("Extractor", "Task"):
        definitions.pop(name, None)
    for name in ("NetworkSpec", "DataSpec"):
        definitions[name].pop("required", None)  # a section without a name has the default one
    methods = {name: get_extractor(name) for name in extractor_names()}
    keys = schema["properties"]
    keys["extractor"] = _choice(keys["extractor"], definitions, methods, DEFAULTS["extractor"])
    keys["task"] = _choice(keys["task"], definitions, TASKS, "classification")
    for key in ("network", "data"):
        keys[key] = {"description": keys[key].get("description", ""), "anyOf": [TEXT, {"$ref": _ref(keys[key])}]}
    return {"$schema": DIALECT, **schema}


def _choice(
    key: Mapping[str, Any], definitions: dict[str, Any], classes: Mapping[str, type[BaseModel]], default: str
) -> dict[str, Any]:
    """The schema of a section whose keys depend on its name; the classes' schemas are added to the definitions."""
    references = []
    for name, cls in classes.items():
        own = cls.model_json_schema()
        definitions |= own.pop("$defs", {})
        own["properties"] = {**own["properties"], "name": {"const": name}}
        own["required"] = sorted({*own.get("required", ()), "name"} - ({"name"} if name == default else set()))
        definitions[f"{cls.__name__}.{name}"] = own
        references.append({"$ref": f"#/$defs/{cls.__name__}.{name}"})
    names = {"type": "string", "anyOf": [{"enum": list(classes)}, {"pattern": ":"}]}
    return {"description": key.get("description", ""), "anyOf": [names, *references, OWN]}


def _ref(key: Mapping[str, Any]) -> str:
    return str(key.get("$ref") or key["allOf"][0]["$ref"])


def _rows(model: type[Settings], prefix: str, names: list[str] | None = None) -> list[dict[str, str]]:
    fields = {name: field for name, field in model.model_fields.items() if names is None or name in names}
    helps = model.helps()
    return [
        {
            "key": f"{prefix}{name}",
            "type": type_in_words(field.annotation),
            "default": DEFAULTS.get(prefix[:-1], "required")
            if field.is_required()
            else _default(field.get_default(call_default_factory=True)),
            "meaning": helps.get(name, ""),
        }
        for name, field in fields.items()
    ]


def _named(name: str, description: str) -> dict[str, str]:
    default = DEFAULTS.get(name, "classification")
    return {"key": name, "type": "text or mapping", "default": default, "meaning": f"{description} {NAMED[name]}"}


def _default(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple | list | dict):
        return str(list(value) if isinstance(value, tuple) else value)
    return str(value).lower() if isinstance(value, bool) else str(value)
