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
    from subnet_search.analysis.plasticity import plasticity as plasticity
    from subnet_search.artifact import Subnetwork as Subnetwork
    from subnet_search.core.errors import RunError as RunError
    from subnet_search.core.errors import UserError as UserError
    from subnet_search.core.search_domains import Int as Int
    from subnet_search.core.search_domains import OneOf as OneOf
    from subnet_search.core.search_domains import Real as Real
    from subnet_search.data import Data as Data
    from subnet_search.deploy.export import export as export
    from subnet_search.deploy.exported_network import load_deployed as load_deployed
    from subnet_search.extraction.config import RunConfig as RunConfig
    from subnet_search.extraction.evaluate import evaluate as evaluate
    from subnet_search.extraction.extract import extract as extract
    from subnet_search.extraction.extract import run as run
    from subnet_search.extraction.predict import predict as predict
    from subnet_search.extraction.prune_potential import prune_potential as prune_potential
    from subnet_search.extractors import Extractor as Extractor
    from subnet_search.extractors import Paper as Paper
    from subnet_search.extractors import Paradigm as Paradigm
    from subnet_search.extractors import Published as Published
    from subnet_search.extractors import RelevanceLearner as RelevanceLearner
    from subnet_search.extractors import register as register
    from subnet_search.extractors.base import Change as Change
    from subnet_search.extractors.fields import Allocation as Allocation
    from subnet_search.extractors.fields import ChannelDensity as ChannelDensity
    from subnet_search.extractors.fields import Density as Density
    from subnet_search.extractors.fields import DropFraction as DropFraction
    from subnet_search.extractors.fields import Every as Every
    from subnet_search.extractors.fields import Grow as Grow
    from subnet_search.extractors.fields import Images as Images
    from subnet_search.extractors.fields import Invert as Invert
    from subnet_search.extractors.fields import Normalise as Normalise
    from subnet_search.extractors.fields import PhaseEnd as PhaseEnd
    from subnet_search.extractors.fields import Rounds as Rounds
    from subnet_search.extractors.fields import Scope as Scope
    from subnet_search.extractors.fields import Strength as Strength
    from subnet_search.extractors.fields import Until as Until
    from subnet_search.reports.report import report as report
    from subnet_search.search import StudySpec as StudySpec
    from subnet_search.search import run_study as run_study
    from subnet_search.search.engine.user_objective import report_to as report_to
    from subnet_search.search.engine.user_objective import suggest as suggest
    from subnet_search.search.queries.data_frame import to_dataframe as to_dataframe
    from subnet_search.search.queries.figures import plot_comparison as plot_comparison
    from subnet_search.search.queries.queries import load_study as load_study
    from subnet_search.search.studies.comparison import compare as compare
    from subnet_search.search.studies.comparison import sanity as sanity
    from subnet_search.search.studies.reproduce import retrain_trial as retrain_trial
    from subnet_search.tasks import Task as Task
    from subnet_search.tasks import load_data as load_data
    from subnet_search.topology.masks import Masks as Masks
    from subnet_search.training import Recipe as Recipe

_NAMES = {
    "analysis.plasticity": "plasticity",
    "artifact": "Subnetwork",
    "core.errors": "RunError UserError",
    "core.search_domains": "Int OneOf Real",
    "data": "Data",
    "deploy.export": "export",
    "deploy.exported_network": "load_deployed",
    "extraction.config": "RunConfig",
    "extraction.evaluate": "evaluate",
    "extraction.extract": "extract run",
    "extraction.predict": "predict",
    "extraction.prune_potential": "prune_potential",
    "extractors.author": "Change Extractor Paper Paradigm Published RelevanceLearner register",
    "extractors.fields": "Allocation ChannelDensity Density DropFraction Every Grow Images Invert Normalise PhaseEnd Rounds "
    "Scope Strength Until",
    "reports.report": "report",
    "search": "StudySpec run_study",
    "search.engine.user_objective": "report_to suggest",
    "search.queries.data_frame": "to_dataframe",
    "search.queries.figures": "plot_comparison",
    "search.queries.queries": "load_study",
    "search.studies.comparison": "compare sanity",
    "search.studies.reproduce": "retrain_trial",
    "tasks": "Task load_data",
    "topology.masks": "Masks",
    "training": "Recipe",
}
"""Public names by the module that has them, as `public=own` where they differ."""
_HOMES = {one.partition("=")[0]: (module, one.rpartition("=")[2]) for module, names in _NAMES.items() for one in names.split()}

__all__ = sorted(_HOMES)


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
    return __all__
