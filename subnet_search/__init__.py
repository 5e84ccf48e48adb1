"""Find small, effective networks inside large ones.

    import subnet_search as ss
    subnet = ss.extract("lenet5", "digits", "gumbel", density=0.3)
    study = ss.run_study("studies/quickstart.yaml")

Names are imported when they are first used, so that `import subnet_search` stays light.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from subnet_search.artifact import Subnetwork as Subnetwork
    from subnet_search.core.errors import RunError as RunError
    from subnet_search.core.errors import UserError as UserError
    from subnet_search.core.search_domains import Int as Int
    from subnet_search.core.search_domains import OneOf as OneOf
    from subnet_search.core.search_domains import Real as Real
    from subnet_search.data import Data as Data
    from subnet_search.data import from_user as load_data
    from subnet_search.deploy.export import export as export
    from subnet_search.deploy.exported_network import load_deployed as load_deployed
    from subnet_search.extraction.config import RunConfig as RunConfig
    from subnet_search.extraction.evaluate import evaluate as evaluate
    from subnet_search.extraction.extract import extract as extract
    from subnet_search.extraction.extract import run as run
    from subnet_search.extractors import Extractor as Extractor
    from subnet_search.extractors import Paper as Paper
    from subnet_search.extractors import Paradigm as Paradigm
    from subnet_search.extractors import Published as Published
    from subnet_search.extractors import RelevanceLearner as RelevanceLearner
    from subnet_search.extractors import register as register
    from subnet_search.extractors.base import Change as Change
    from subnet_search.search import StudySpec as StudySpec
    from subnet_search.search import run_study as run_study
    from subnet_search.search.studies.comparison import compare as compare
    from subnet_search.topology.masks import Masks as Masks
    from subnet_search.training import Recipe as Recipe

_HOMES = {
    "Change": ("extractors.base", "Change"),
    "compare": ("search.studies.comparison", "compare"),
    "Data": ("data", "Data"),
    "evaluate": ("extraction.evaluate", "evaluate"),
    "export": ("deploy.export", "export"),
    "extract": ("extraction.extract", "extract"),
    "Extractor": ("extractors", "Extractor"),
    "Int": ("core.search_domains", "Int"),
    "load_data": ("data", "from_user"),
    "load_deployed": ("deploy.exported_network", "load_deployed"),
    "Masks": ("topology.masks", "Masks"),
    "OneOf": ("core.search_domains", "OneOf"),
    "Paper": ("extractors", "Paper"),
    "Paradigm": ("extractors", "Paradigm"),
    "Published": ("extractors", "Published"),
    "Real": ("core.search_domains", "Real"),
    "Recipe": ("training", "Recipe"),
    "register": ("extractors", "register"),
    "RelevanceLearner": ("extractors", "RelevanceLearner"),
    "run": ("extraction.extract", "run"),
    "run_study": ("search", "run_study"),
    "RunConfig": ("extraction.config", "RunConfig"),
    "RunError": ("core.errors", "RunError"),
    "StudySpec": ("search", "StudySpec"),
    "Subnetwork": ("artifact", "Subnetwork"),
    "UserError": ("core.errors", "UserError"),
}

__all__ = [
    "Change",
    "Data",
    "Extractor",
    "Int",
    "Masks",
    "OneOf",
    "Paper",
    "Paradigm",
    "Published",
    "Real",
    "Recipe",
    "RelevanceLearner",
    "RunConfig",
    "RunError",
    "StudySpec",
    "Subnetwork",
    "UserError",
    "compare",
    "evaluate",
    "export",
    "extract",
    "load_data",
    "load_deployed",
    "register",
    "run",
    "run_study",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("subnet-search")
    if name not in _HOMES:
        raise AttributeError(f"module 'subnet_search' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    value = getattr(importlib.import_module(f"subnet_search.{module}"), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
