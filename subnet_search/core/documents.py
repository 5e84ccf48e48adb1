"""Parse YAML and JSON to plain values, with the file and line of every key for error messages.

The YAML read is the common subset of 1.1 and 1.2: `1e-3` is a number, `010` is ten, `2:4` and `2024-02-30` are text. Keys
must be text and unique. Tags such as `!!set` are refused. Aliases are expanded.
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

LARGEST_FILE, MOST_VALUES, MOST_LEVELS = 500_000, 100_000, 50  # characters; values after expanding aliases; nesting levels
TAG = "tag:yaml.org,2002:"
EXPONENT = r"[eE][-+]?\d+"
FLOAT = re.compile(
    rf"[-+]?(?:\d[\d_]*(?:\.[\d_]*(?:{EXPONENT})?|{EXPONENT})|\.\d[\d_]*(?:{EXPONENT})?|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
)
INT = re.compile(r"[-+]?(?:0b[01][01_]*|0o[0-7][0-7_]*|0x[\da-fA-F][\da-fA-F_]*|\d[\d_]*)$")


@dataclass(frozen=True)
class Number:
    """A number together with its spelling in the file, which is used where a key takes text."""

    value: int | float
    text: str


@dataclass
class Document:
    """A parsed file. `values` holds numbers as `Number`; `places` maps each dotted key to its file and line."""

    values: Any
    places: dict[str, str] = field(default_factory=dict)


class _Loader(yaml.SafeLoader):
    """PyYAML's pure Python loader with a nesting limit; the C loader crashes on deep nesting."""

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
    """Quotes text that this module would read as a number."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in rules if tag not in (f"{TAG}float", f"{TAG}int", f"{TAG}timestamp")]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for rules in (_Loader, _Dumper):
    rules.add_implicit_resolver(f"{TAG}int", INT, list("-+0123456789"))
    rules.add_implicit_resolver(f"{TAG}float", FLOAT, list("-+.0123456789"))


def read_file(path: Path, what: str = "") -> Document:
    """Parse a YAML file. Raises UserError with the file and line."""
    with reading(what or path):
        with open(path, encoding="utf-8") as file:
            text = file.read(LARGEST_FILE + 1)
        if len(text) > LARGEST_FILE:
            raise UserError(f"{path} is too large for a configuration: more than {LARGEST_FILE:,} characters")
    return read_text(text, str(path))


def read_text(text: str, source: str) -> Document:
    """Parse YAML text. Raises UserError with `source` and the line."""
    with reading(source):
        try:
            node = yaml.compose(text, Loader=_Loader)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f", line {mark.line + 1}" if mark else ""
            problem = str(getattr(error, "problem", None) or error)
            colon = "':'" in problem or "mapping values" in problem
            hint = "; write a space after the colon of each key, as in epochs: 3" if colon else ""
            raise UserError(f"{source}{where} is not YAML: {problem}{hint}") from error
        builder = _Builder(source)
        return Document(builder.build(node, "") if node else None, {"": source, **builder.places})


def plain(value: Any) -> Any:
    """The same values with each `Number` replaced by its value."""
    match value:
        case Number():
            return value.value
        case dict():
            return {key: plain(inner) for key, inner in value.items()}
        case list():
            return [plain(inner) for inner in value]
    return value


def dump(values: Mapping[str, Any]) -> bytes:
    """Plain values as YAML in UTF-8; `read_text` returns the same values."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False).encode()


def read_json(text: str, what: str) -> Any:
    """Parse JSON text. Raises UserError with `what`, and for duplicate keys."""
    with reading(what):
        return json.loads(text, object_pairs_hook=_each_once)


class _Builder:
    """Convert YAML nodes to plain values."""

    def __init__(self, source: str) -> None:
        self.source, self.count = source, 0
        self.places: dict[str, str] = {}
        self.open: list[yaml.Node] = []

    def build(self, node: yaml.Node, key: str) -> Any:
        self.count += 1
        if self.count > MOST_VALUES:
            raise self._refused(node, f"more than {MOST_VALUES:,} values after expanding aliases")
        if any(node is outer for outer in self.open):
            raise self._refused(node, "an alias refers to a value that contains it")
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
        raise self._refused(node, f"the tag {_tag(node)} is not supported")

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
                        raise self._refused(given, "<< takes a mapping")
                    merged = {**found, **merged}
                continue
            if not isinstance(name, yaml.ScalarNode):
                raise self._refused(name, "a key must be text")
            line = name.start_mark.line + 1
            if node.flow_style:
                self._check_space(name, inner)
            if name.value in lines:
                where = f"lines {lines[name.value]} and {line}" if line != lines[name.value] else f"line {line}"
                raise UserError(f"the key {_join(key, name.value)!r} is given twice: leave one out ({self.source}, {where})")
            lines[name.value] = line
            values[name.value] = self._at(inner, name, _join(key, name.value))
        return {**merged, **values}

    def _check_space(self, name: yaml.ScalarNode, value: yaml.Node) -> None:
        """Raise UserError for {a:b}, which YAML reads as the key "a:b" without a value."""
        before, _, after = name.value.partition(":")
        if before and after and name.style is None and value.start_mark.index == value.end_mark.index:
            right = f"write {cut(f'{{{before}: {after}}}')} (or quote a key with a colon)"
            raise self._refused(name, f"a space is missing after the colon of {cut(name.value)!r}: {right}")

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
        raise self._refused(node, f"{cut(text)!r} is not a valid value for the tag {_tag(node)}")

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
