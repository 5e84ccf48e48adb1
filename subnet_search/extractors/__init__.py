"""Extractors: methods that find a subnetwork. `methods/` has them, one paper a file."""

import importlib
import pkgutil

from subnet_search.extractors import methods
from subnet_search.extractors.base import Clock, Extractor, Paper, Paradigm, Published, RelevanceLearner
from subnet_search.extractors.registry import create, extractor_names, get_extractor, is_extractor, register

for _module in pkgutil.iter_modules(methods.__path__):
    importlib.import_module(f"{methods.__name__}.{_module.name}")

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
    "is_extractor",
    "register",
]
