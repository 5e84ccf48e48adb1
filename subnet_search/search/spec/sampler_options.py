"""Names and options of Optuna's samplers and pruners, as a study's specification has them."""

import inspect
from collections.abc import Mapping
from typing import Any

import optuna

from subnet_search.core.errors import UserError, blaming, shown, unknown

SAMPLERS = {
    "tpe": "TPESampler",
    "random": "RandomSampler",
    "gp": "GPSampler",
    "nsga2": "NSGAIISampler",
    "cmaes": "CmaEsSampler",
    "hub": None,
}
PRUNERS = {
    "none": "NopPruner",
    "hyperband": "HyperbandPruner",
    "median": "MedianPruner",
    "patient": "PatientPruner",
    "wilcoxon": "WilcoxonPruner",
    "rungs": None,
}
"""Names, with the names of Optuna's classes; None: it is not one of them."""
CLASSES: Mapping[str, tuple[Any, Mapping[str, str | None]]] = {
    "sampler": (optuna.samplers, SAMPLERS),
    "pruner": (optuna.pruners, PRUNERS),
}
EXAMPLES = {"sampler": "{name: tpe, n_startup_trials: 5}", "pruner": "{name: median, n_startup_trials: 5}"}

KINDS: Mapping[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "dict[str, Any]": (dict,),
    "None": (type(None),),
}
"""Types that YAML can hold, by their spelling in Optuna's signatures."""


def class_of(kind: str, name: str) -> Any:
    """Optuna's class of a sampler or pruner by its name. kind: "sampler" or "pruner"."""
    module, classes = CLASSES[kind]
    return getattr(module, classes[name] or "")


def check_options(kind: str, given: Mapping[str, Any]) -> None:
    """Raise UserError for an unknown name, or for an option that Optuna's class does not have, or not with this value.

    kind: "sampler" or "pruner". given: the options, with the name.
    """
    _, classes = CLASSES[kind]
    name: Any = given.get("name")
    with blaming(f"{kind}.name"):
        _check_not_optunas(kind, name)
        if name not in classes:
            raise unknown(kind, name, classes)
    if name == "none" or classes[name] is None:
        return
    parameters = inspect.signature(class_of(kind, name)).parameters
    for key, value in given.items():  # Optuna checks most of them only when it draws a trial
        with blaming(f"{kind}.{key}"):
            if key not in parameters and key != "name":
                valid = [option for option, parameter in parameters.items() if _types(parameter).keys() - {"None"}]
                raise unknown("option", key, valid, where=f"{kind} {name}")
            if key in parameters:
                _check_option(f"{kind}.{key} of {name!r}", value, parameters[key])


def _check_not_optunas(kind: str, given: Any) -> None:
    """Raise UserError for an object of Optuna, or the name of its class."""
    own = given.rpartition(".")[2] if isinstance(given, str) else type(given).__name__
    name = next((name for name, theirs in CLASSES[kind][1].items() if theirs == own), None)
    if name or isinstance(given, optuna.samplers.BaseSampler | optuna.pruners.BasePruner):
        raise UserError(
            f"{kind}: give a name and options, as in {kind}: {EXAMPLES[kind]}, because each worker makes its own; got {own}"
            + (f", which is named {name}" if name else "")
        )


def _check_option(where: str, value: Any, parameter: inspect.Parameter) -> None:
    """Raise UserError for a value of another type than Optuna's signature has, or one below both 0 and the default."""
    kinds = _types(parameter)
    if not any(type(value) in types for types in kinds.values()):
        raise UserError(f"{where} takes {' or '.join(kinds) or 'no value that YAML can hold'}, got {shown(value)}")
    if type(value) in (int, float) and value < min(0, parameter.default if type(parameter.default) in (int, float) else 0):
        raise UserError(f"{where} cannot be below 0, got {shown(value)}")


def _types(parameter: inspect.Parameter) -> dict[str, tuple[type, ...]]:
    """The items of KINDS that an argument takes."""
    stated = getattr(parameter.annotation, "__name__", parameter.annotation).split(" | ")
    return {kind: types for kind, types in KINDS.items() if kind in stated}
