"""Extractors: methods that find a subnetwork, one paper a file.

Every module in this folder is imported here, so a file that calls `@register("name")` needs no other mention.
"""

import importlib
import pkgutil

from subnet_search.extractors.base import (
    Clock,
    Extractor,
    Paper,
    Paradigm,
    Published,
    RelevanceLearner,
    create,
    extractor_names,
    get_extractor,
    register,
)

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "Clock",
    "Extractor",
    "Paper",
    "Paradigm",
    "Published",
    "RelevanceLearner",
    "create",
    "extractor_names",
    "get_extractor",
    "register",
]
