"""Find small, effective networks inside large ones.

    import subnet_search as ss
    subnet = ss.extract("lenet5", "digits", "gumbel", density=0.3)
    study = ss.run_study("studies/quickstart.yaml")

Names are imported when they are first used, so that `import subnet_search` stays light.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from subnet_search.artifact import Subnetwork as Subnetwork
    from subnet_search.core.errors import RunError as RunError
    from subnet_search.core.errors import UserError as UserError
    from subnet_search.data import Data as Data
    from subnet_search.data import from_user as load_data
    from subnet_search.deploy.export import export as export
    from subnet_search.deploy.exported_network import load_deployed as load_deployed
    from subnet_search.extraction.config import RunConfig as RunConfig
    from subnet_search.extraction.evaluate import evaluate as evaluate
    from subnet_search.extraction.extract import extract as extract
    from subnet_search.extraction.extract import run as run
    from subnet_search.search import run_study as run_study
    from subnet_search.topology.masks import Masks as Masks
    from subnet_search.training import Recipe as Recipe

_HOMES = {
    "Data": ("data", "Data"),
    "Masks": ("topology.masks", "Masks"),
    "Recipe": ("training", "Recipe"),
    "RunConfig": ("extraction.config", "RunConfig"),
    "RunError": ("core.errors", "RunError"),
    "Subnetwork": ("artifact", "Subnetwork"),
    "UserError": ("core.errors", "UserError"),
    "evaluate": ("extraction.evaluate", "evaluate"),
    "export": ("deploy.export", "export"),
    "extract": ("extraction.extract", "extract"),
    "load_data": ("data", "from_user"),
    "load_deployed": ("deploy.exported_network", "load_deployed"),
    "run": ("extraction.extract", "run"),
    "run_study": ("search", "run_study"),
}

__all__ = [
    "Data",
    "Masks",
    "Recipe",
    "RunConfig",
    "RunError",
    "Subnetwork",
    "UserError",
    "evaluate",
    "export",
    "extract",
    "load_data",
    "load_deployed",
    "run",
    "run_study",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'subnet_search' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    value = getattr(importlib.import_module(f"subnet_search.{module}"), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
