"""Extractors: methods that find a subnetwork. `methods/` has them, one paper a file."""

import importlib
import pkgutil

from subnet_search.extractors import methods
from subnet_search.extractors.base import Clock as Clock
from subnet_search.extractors.base import Extractor as Extractor
from subnet_search.extractors.base import Paper as Paper
from subnet_search.extractors.base import Paradigm as Paradigm
from subnet_search.extractors.base import Published as Published
from subnet_search.extractors.base import RelevanceLearner as RelevanceLearner
from subnet_search.extractors.registry import create as create
from subnet_search.extractors.registry import extractor_names as extractor_names
from subnet_search.extractors.registry import get_extractor as get_extractor
from subnet_search.extractors.registry import is_extractor as is_extractor
from subnet_search.extractors.registry import register as register

for _module in pkgutil.iter_modules(methods.__path__):
    importlib.import_module(f"{methods.__name__}.{_module.name}")
