"""What a study or a run folder that is stored may cause: no import, and no download, that nobody here has asked for.

A configuration that the user passes may name a network by `package.module:factory`, and have weights or data downloaded.
One that is read from a storage, an exported study or a run folder may have come from anybody, so it needs the user's word.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from subnet_search.core.errors import UserError

PARTS = ("network", "extractor", "data")  # of a run, whose names may stand for code or a download
NAMES = ("network", "extractor", "data", "name", "source")  # the last part of the keys that are such names
DOWNLOADS = re.compile("pretrained|weights")  # torchvision's options that do, by how they begin
TORCHVISION = "torchvision:"
DATA = {"fashion_mnist": "train-images-idx3-ubyte*", "cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
"""Data sets that are downloaded when they are not in the folder that is their root, and what a folder that has them holds."""


def imports_of(*values: Any) -> set[str]:
    """The names by which values of a run, or domains over them, would import code, or download weights or data.

    A data set counts when it is not in the folder that is named for it, and that folder is not below the current one.
    What is no mapping names nothing.
    """
    found = [
        (part, *leaf)
        for one in values
        if isinstance(one, Mapping)
        for key, value in one.items()
        if (part := key.partition(".")[0]) in PARTS
        for leaf in _leaves(value, _last(key))
    ]
    code = [value for part, key, value in found if part != "data" and key in NAMES and isinstance(value, str)]
    names = {value for value in code if ":" in value}
    roots = [value for part, key, value in found if part == "data" and key == "root" and isinstance(value, str)]
    data = {value for part, key, value in found if part == "data" and key in NAMES and value in DATA}
    data = {name for name in data if any(_is_elsewhere(root) and not _has(root, name) for root in roots)}
    downloads = any(part == "network" and DOWNLOADS.match(key) and value not in (None, False) for part, key, value in found)
    return data | {name for name in names if downloads or not name.startswith(TORCHVISION)}


def imports_of_spec(spec: Mapping[str, Any]) -> set[str]:
    """Those of all trials that a study's specification, as plain values, may lead to."""
    return imports_of(spec.get("run"), spec.get("space"))


def check_imports(what: str, names: Collection[str], allowed: Collection[str]) -> None:
    """Raise UserError for a name that is not allowed, by itself or by its module."""
    for name in sorted(names):
        module = name.partition(":")[0]
        if not {name, module} & set(allowed):
            act = "downloads weights for" if name.startswith(TORCHVISION) else "imports"
            if name in DATA:
                act = "downloads, to a folder that it names,"
            how = f"--allow-import {name}" + (f" (or --allow-import {module})" if module != name else "")
            raise UserError(f"{what} {act} {name}, and what is stored may do so only when it is allowed: {how}")


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Every value that is no mapping or list, with the last part of the key that it is a value of."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if name == "choice" and isinstance(inner, Mapping):  # methods, with what is searched of each
                yield from ((key, one) for one in inner)
            yield from _leaves(inner, key if name in ("choice", "value") else _last(str(name)))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner, key)
    else:
        yield key, value


def _is_elsewhere(root: str) -> bool:
    """Whether a folder is not below the current one."""
    return Path(root).is_absolute() or ".." in Path(root).parts


def _has(root: str, name: str) -> bool:
    return any(Path(root).rglob(DATA[name]))


def _last(key: str) -> str:
    return key.rpartition(".")[2]
