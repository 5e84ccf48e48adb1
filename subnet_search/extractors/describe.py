"""The catalogue of methods, as plain values and as a page, read from their classes."""

import inspect
import re
from collections.abc import Mapping
from dataclasses import asdict
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from subnet_search.core.search_domains import domains
from subnet_search.extractors.base import Extractor, only_begins, trains_weights
from subnet_search.extractors.fields import Help, marked
from subnet_search.extractors.registry import extractor_names, get_extractor
from subnet_search.topology.select import LayerDensities


def describe(name: str) -> dict[str, Any]:
    """A method as plain values: paper, paradigm, units, published settings, hyperparameters.

    Raises UserError for an unknown name.
    """
    cls = get_extractor(name)
    paper, paradigm = cls.paper, asdict(cls.paradigm)
    units = paradigm.pop("units")
    return {
        "name": name,
        "family": _family(cls),
        "summary": (inspect.getdoc(cls) or "").splitlines()[0],
        "description": " ".join(inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[2].split()),
        "paper": str(paper),
        "cited": paper.short,
        "title": paper.title,
        "formula": paper.formula,
        "paradigm": {**paradigm, "learns": cls.learns},
        "units": list(units),
        "published": {
            "recipe": dict(cls.published.recipe),
            "settings": cls.published.settings(),
            "epochs": cls.published.epochs,
            "source": cls.published.source,
            "note": cls.published.note,
        },
        "hyperparameters": _hyperparameters(cls),
    }


def find(words: str) -> list[str]:
    """The names of the methods that are called `words`, or else whose paper has them in its title, authors or arXiv number.

    Capitals, spaces and punctuation do not count. Without any, `words` itself.
    """
    wanted, methods = _plain(words), catalogue()
    if words in extractor_names() or ":" in words or not wanted:
        return [words]
    named = [method["name"] for method in methods if _plain(method["name"]) == wanted]
    papers = [method["name"] for method in methods if wanted in _plain(f"{method['title']} {method['paper']}")]
    return named or papers or [words]


def _plain(text: str) -> str:
    return re.sub("[^a-z0-9]", "", text.lower())


FAMILIES = (
    "masks of weights that are never trained",
    "masks that are learned, of weights that are trained",
    "before training",
    "during or after training",
    "filters and channels",
    "n:m sparsity and blocks",
)
"""Groups of methods, in the order in which they are listed."""


def _family(cls: type[Extractor]) -> str:
    untrained, learned, before, trained, channels, blocks = FAMILIES
    units = set(cls.paradigm.units)
    if units == {"channel"}:
        return channels
    if not units & {"weight", "channel"}:
        return blocks
    if not trains_weights(cls):
        return untrained
    if cls.learns != "weights":
        return learned
    return before if only_begins(cls) else trained


def catalogue() -> list[dict[str, Any]]:
    """Every registered method, by name."""
    return [describe(name) for name in extractor_names()]


def markdown() -> str:
    """All methods as a page: a table that compares them, then each with its formula and hyperparameters."""
    methods = catalogue()
    heading = ["method", "paper", "mask", "weights", "density", "trains after", "units"]
    rows = [
        [
            f"[`{method['name']}`](#{method['name']})",
            method["cited"],
            *(method["paradigm"][key] for key in ("mask_from", "weights_from", "schedule")),
            "yes" if method["paradigm"]["trains_after"] else "no",
            ", ".join(method["units"]),
        ]
        for method in methods
    ]
    return "\n".join([INTRODUCTION, _table(heading, rows), *map(_section, methods)])


INTRODUCTION = """# Methods

Written by `make docs` from the classes in `subnet_search/extractors/methods/`; one paper, one file. A length of training
(`every`, `end` and so on) is a number of steps when it is whole, and a fraction of the run when it has a decimal point.
Relative densities are numbers above 0, one for every layer, as in `{conv1: 2, fc: 0.5}`: what counts is their ratio, and
the density over all layers is met all the same.

A run takes from the published training settings what its configuration leaves open, but for the length, which is stated
and never a default. `compare` gives one recipe to all methods that train weights, unless it is asked for
`--recipe published`. Settings are those of the network and data named with the source.
"""


def _section(method: dict[str, Any]) -> str:
    rows = [
        [f"`{field['name']}`", field["type"], _default(field["default"]), field["domain"] or "", field["help"]]
        for field in method["hyperparameters"]
    ]
    parts = [
        f"\n## {method['name']}\n\n{method['description'] or method['summary']}\n",
        f"{method['title']} ({method['paper']})\n",
        f"    {method['formula']}\n",
        *(f"{line}\n" for line in published_lines(method["published"])),
        _table(["hyperparameter", "type", "default", "searched over", ""], rows),
    ]
    return "\n".join(parts)


def published_lines(published: Mapping[str, Any]) -> list[str]:
    """The published training settings as sentences, with their note."""
    if published["source"].startswith("none: "):
        lines = [f"Published training settings: {published['source']}."]
    else:
        length = f"; {published['epochs']} epochs (stated, not a default)" if published["epochs"] else ""
        settings = published["settings"] or "those of the default recipe"
        lines = [f"Published training settings: {settings}{length}. Source: {published['source']}."]
    return lines + ([published["note"]] if published["note"] else [])


def _default(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _table(heading: list[str], rows: list[list[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _hyperparameters(cls: type[Extractor]) -> list[dict[str, Any]]:
    found, helps = domains(cls), {name: mark.text for name, mark in marked(cls, Help).items()} | cls.helps()
    return [
        {
            "name": name,
            "type": _words(field.annotation),
            "default": field.default,
            "domain": str(found[name]) if name in found else None,
            "help": " ".join(helps.get(name, "").split()),
        }
        for name, field in cls.model_fields.items()
    ]


def _words(kind: Any) -> str:
    """A type in plain words."""
    if kind is NoneType:
        return "none"
    if kind == LayerDensities:
        return "{layer: relative density}"
    if get_origin(kind) is Annotated:
        return _words(get_args(kind)[0])
    if get_origin(kind) is Literal:
        return " | ".join(map(str, get_args(kind)))
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_words(part) for part in get_args(kind))
    return str(getattr(kind, "__name__", kind))
