"""Imports and downloads of stored studies and run folders need the user's permission.

A configuration file that the user passes may import code (a network, method, task or data as `package.module:Name`) and
download weights or data. A configuration from a storage, an exported study or a run folder may come from somebody else, so the
user must allow it.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from subnet_search.core.errors import UserError

PARTS = ("network", "extractor", "task", "data")  # sections of a run that can import code or download
NAMES = ("network", "extractor", "task", "data", "name", "source")  # last part of the keys with such names
FILES = (
    "npz:",
    "npy:",
    "safetensors:",
    "csv:",
    "parquet:",
    "text:",
    "image_folder:",
)  # beginnings of data names that are files, and no modules
DOWNLOADS = re.compile("pretrained|weights")  # prefixes of options of torchvision and timm that download
LIBRARIES = ("torchvision:", "timm:", "hf:")  # networks of installed packages, which import nothing of the user's
DATA = {"fashion_mnist": "train-images-idx3-ubyte*", "cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
"""Data sets that can be downloaded, with a file pattern that shows whether a folder has them."""


def imports_of(*values: Any) -> set[str]:
    """Names in values of a run, or in domains over them, that would import code or download weights or data.

    A data set counts if it is missing from its `root` and that is outside the current folder. Values that are not mappings
    are ignored.
    """
    found = [
        (part, *leaf)
        for one in values
        if isinstance(one, Mapping)
        for key, value in one.items()
        if (part := key.partition(".")[0]) in PARTS
        for leaf in _leaves(value, key.rpartition(".")[2])
    ]
    code = [(part, value) for part, key, value in found if key in NAMES and isinstance(value, str) and ":" in value]
    names = {value for part, value in code if part != "data" or not value.startswith(FILES)}
    roots = [Path(value) for part, key, value in found if part == "data" and key == "root" and isinstance(value, str)]
    elsewhere = [root for root in roots if root.is_absolute() or ".." in root.parts]
    data = {value for part, key, value in found if part == "data" and key in NAMES and value in DATA}
    data = {name for name in data if any(not any(root.rglob(DATA[name])) for root in elsewhere)}
    downloads = any(part == "network" and DOWNLOADS.match(key) and value not in (None, False) for part, key, value in found)
    return data | {name for name in names if downloads or not name.startswith(LIBRARIES)}


def imports_of_spec(spec: Mapping[str, Any]) -> set[str]:
    """The names that the sampler, the callbacks or any trial of a study's specification, as plain values, could import."""
    code = [spec.get("sampler"), *(spec.get("callbacks") or {}).values()]
    hub = {hub_name(one) for one in code if isinstance(one, Mapping) and "hub" in one}
    return imports_of(spec.get("run"), spec.get("space")) | hub | {one for one in code if isinstance(one, str) and ":" in one}


def hub_name(settings: Mapping[str, Any]) -> str:
    """A package of OptunaHub, as it is allowed by name: `optunahub:samplers/NAME`, or with the folder that it is in."""
    folder = f"{settings['folder']}/" if settings.get("folder") else ""
    return f"optunahub:{folder}{settings['hub']}"


def check_imports(what: str, names: Collection[str], allowed: Collection[str]) -> None:
    """Raise UserError for the names that are not allowed, neither by name nor by module."""
    refused = [name for name in sorted(names) if not {name, name.partition(":")[0]} & set(allowed)]
    if not refused:
        return
    name, module = refused[0], refused[0].partition(":")[0]
    act = "downloads weights for" if name.startswith(LIBRARIES) else "imports"
    if name in DATA:
        act = "downloads, to a folder outside the current one,"
    how = " ".join(f"--allow-import {one}" for one in refused)
    how += f" (or --allow-import {module})" if module != name and len(refused) == 1 else ""
    raise UserError(f"{what} {act} {name}, which a stored configuration may do only with {how}")


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Every scalar value with the last part of its key."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if name == "choice" and isinstance(inner, Mapping):  # methods with their hyperparameters
                yield from ((key, one) for one in inner)
            yield from _leaves(inner, key if name in ("choice", "value") else str(name).rpartition(".")[2])
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner, key)
    else:
        yield key, value
