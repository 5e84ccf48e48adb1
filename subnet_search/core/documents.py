"""YAML and JSON that people and programs wrote, as plain values; every key has a place that an error can name.

What is read is the common core of YAML 1.1 and 1.2. `1e-3` is a number, `010` is ten. `2:4` and `2024-02-30` are text. Keys
are text, and none stands twice. Tags such as `!!set` are refused. An alias is what it names, written again.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from subnet_search.core.errors import UserError, cut, reading
from subnet_search.core.redaction import remember

LARGEST_FILE, MOST_VALUES, MOST_LEVELS = 500_000, 100_000, 50  # characters; values, with those that aliases write again
TAG = "tag:yaml.org,2002:"
EXPONENT = r"[eE][-+]?\d+"
FLOAT = re.compile(
    rf"[-+]?(?:\d[\d_]*(?:\.[\d_]*(?:{EXPONENT})?|{EXPONENT})|\.\d[\d_]*(?:{EXPONENT})?|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
)
INT = re.compile(r"[-+]?(?:0b[01][01_]*|0o[0-7][0-7_]*|0x[\da-fA-F][\da-fA-F_]*|\d[\d_]*)$")


@dataclass(frozen=True)
class Number:
    """A number as it was written: where a key takes text, the text counts."""

    value: int | float
    text: str


@dataclass
class Document:
    """What a file holds. Numbers are `Number`s in `values`; `places` has, by dotted key, where each stands, in words."""

    values: Any
    places: dict[str, str] = field(default_factory=dict)


class _Loader(yaml.SafeLoader):
    """Written in Python, since the one in C is killed by deep nesting."""

    levels = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.levels += 1
        if self.levels > MOST_LEVELS:
            raise RecursionError
        try:
            return super().compose_node(parent, index)
        finally:
            self.levels -= 1


class _Dumper(yaml.SafeDumper):
    """Puts text in quotes that would be read as a number here."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in rules if tag not in (f"{TAG}float", f"{TAG}int", f"{TAG}timestamp")]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for rules in (_Loader, _Dumper):
    rules.add_implicit_resolver(f"{TAG}int", INT, list("-+0123456789"))
    rules.add_implicit_resolver(f"{TAG}float", FLOAT, list("-+.0123456789"))


def read_file(path: Path, what: str = "") -> Document:
    """The values in a YAML file. Raises UserError that names the file, and the line."""
    with reading(what or path):
        with open(path, encoding="utf-8") as file:
            text = file.read(LARGEST_FILE + 1)
        if len(text) > LARGEST_FILE:
            raise UserError(f"{path} is no configuration: it has more than {LARGEST_FILE:,} characters")
    return read_text(text, str(path))


def read_text(text: str, source: str) -> Document:
    """The values in a text. Raises UserError that names the source, and the line."""
    with reading(source):
        try:
            node = yaml.compose(text, Loader=_Loader)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f", line {mark.line + 1}" if mark else ""
            raise UserError(f"{source}{where} is not YAML: {getattr(error, 'problem', None) or error}") from error
        builder = _Builder(source)
        return Document(builder.build(node, "") if node else None, {"": source, **builder.places})


def plain(value: Any) -> Any:
    """Values as they are, numbers as numbers."""
    match value:
        case Number():
            return value.value
        case dict():
            return {key: plain(inner) for key, inner in value.items()}
        case list():
            return [plain(inner) for inner in value]
    return value


def dump(values: Mapping[str, Any]) -> bytes:
    """Plain values as YAML, which is read back as the same."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False).encode()


def read_json(text: str, what: str) -> Any:
    """The values in a JSON text. Raises UserError that names what was read."""
    with reading(what):
        return json.loads(text, object_pairs_hook=_each_once)


class _Builder:
    """Plain values out of YAML's nodes."""

    def __init__(self, source: str) -> None:
        self.source, self.count = source, 0
        self.places: dict[str, str] = {}
        self.open: list[yaml.Node] = []

    def build(self, node: yaml.Node, key: str) -> Any:
        self.count += 1
        if self.count > MOST_VALUES:
            raise self._refused(node, f"there are more than {MOST_VALUES:,} values, with those that aliases write again")
        if any(node is outer for outer in self.open):
            raise self._refused(node, "an alias stands inside of what it names")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        self.open.append(node)
        try:
            if isinstance(node, yaml.MappingNode) and node.tag == f"{TAG}map":
                return self._mapping(node, key)
            if isinstance(node, yaml.SequenceNode) and node.tag == f"{TAG}seq":
                return [self._at(inner, inner, _join(key, str(place))) for place, inner in enumerate(node.value)]
        finally:
            self.open.pop()
        raise self._refused(node, f"the tag {_tag(node)} is not known here")

    def _at(self, node: yaml.Node, named: yaml.Node, key: str) -> Any:
        self.places[key] = f"{self.source}, line {named.start_mark.line + 1}"
        return self.build(node, key)

    def _mapping(self, node: yaml.MappingNode, key: str) -> dict[str, Any]:
        lines: dict[str, int] = {}
        merged: dict[str, Any] = {}
        values: dict[str, Any] = {}
        for name, inner in node.value:
            if name.tag == f"{TAG}merge":
                for given in inner.value if isinstance(inner, yaml.SequenceNode) else [inner]:
                    if not isinstance(found := self.build(given, key), dict):
                        raise self._refused(given, "<< takes keys and values")
                    merged = {**found, **merged}
                continue
            if not isinstance(name, yaml.ScalarNode):
                raise self._refused(name, "a key must be text")
            line = name.start_mark.line + 1
            if name.value in lines:
                where = f"lines {lines[name.value]} and {line}" if line != lines[name.value] else f"line {line}"
                raise UserError(f"the key {_join(key, name.value)!r} is given twice: leave one out ({self.source}, {where})")
            lines[name.value] = line
            values[name.value] = self._at(inner, name, _join(key, name.value))
        return {**merged, **values}

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        text = node.value
        if "://" in text:
            remember(text)
        match node.tag.removeprefix(TAG):
            case "str":
                return text
            case "null":
                return None
            case "bool" if text.lower() in yaml.SafeLoader.bool_values:
                return yaml.SafeLoader.bool_values[text.lower()]
            case "int" if INT.match(text):
                return Number(_whole(text.replace("_", "")), text)
            case "float" if FLOAT.match(text):
                return Number(float(text.lower().replace("_", "").replace(".inf", "inf").replace(".nan", "nan")), text)
        raise self._refused(node, f"{cut(text)!r} is no value of the tag {_tag(node)}")

    def _refused(self, node: yaml.Node, why: str) -> UserError:
        return UserError(f"{why} ({self.source}, line {node.start_mark.line + 1})")


def _whole(text: str) -> int:
    return int(text, {"0b": 2, "0o": 8, "0x": 16}.get(text.lstrip("+-")[:2], 10))


def _tag(node: yaml.Node) -> str:
    return str(node.tag).replace(TAG, "!!")


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise UserError(f"the key {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return found
