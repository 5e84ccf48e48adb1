"""Make Optuna's samplers and pruners from a study's specification."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import optuna
from optuna.samplers import BaseSampler

from subnet_search.core.errors import UserError, shown
from subnet_search.core.rng import derive
from subnet_search.search.spec.hub import make_from_hub
from subnet_search.search.spec.study_spec import StudySpec

T = TypeVar("T")

KINDS: Mapping[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "dict[str, Any]": (dict,),
    "None": (type(None),),
}
"""Types that YAML can hold, by their spelling in Optuna's signatures."""


def make_sampler(spec: StudySpec, number: int = 0) -> BaseSampler:
    """The spec's sampler, seeded by the trial number, so that a draw depends only on that and the visible history.

    Optuna's samplers keep their state in the storage, so each trial can use a new one.
    Raises UserError for an invalid option or a missing package.
    """
    samplers: Mapping[str, Callable[..., BaseSampler]] = {
        "tpe": optuna.samplers.TPESampler,
        "random": optuna.samplers.RandomSampler,
        "gp": optuna.samplers.GPSampler,
        "nsga2": optuna.samplers.NSGAIISampler,
        "cmaes": optuna.samplers.CmaEsSampler,
    }
    seed = derive(spec.seed, "sampler", number) % 2**32
    if spec.sampler["name"] == "hub":
        made: BaseSampler = make_from_hub("sampler", spec.sampler, seed)
        return made
    defaults: dict[str, Any] = {"seed": seed}
    if spec.sampler["name"] == "tpe" and spec.searched.conditional:  # parameters of one branch are modelled together
        defaults |= {"multivariate": True, "group": True}
    return _made("sampler", spec.sampler, samplers[spec.sampler["name"]], defaults)


def make_pruner(spec: StudySpec) -> optuna.pruners.BasePruner:
    """The spec's pruner. Hyperband's `max_resource` defaults to the run's epochs."""
    match spec.pruner["name"]:
        case "hyperband":
            epochs = spec.run.recipe.resolve(spec.run.extractor.published.recipe).epochs
            defaults = {"min_resource": 1, "max_resource": max(1, epochs)}
            return _made("pruner", spec.pruner, optuna.pruners.HyperbandPruner, defaults)
        case "median":
            return _made("pruner", spec.pruner, optuna.pruners.MedianPruner)
        case "patient":
            patient = {"wrapped_pruner": optuna.pruners.MedianPruner(), "patience": 3}
            return _made("pruner", spec.pruner, optuna.pruners.PatientPruner, patient)
        case "wilcoxon":
            return _made("pruner", spec.pruner, optuna.pruners.WilcoxonPruner)
    return optuna.pruners.NopPruner()  # for none, and for rungs, which Optuna does not have


def _made(kind: str, given: Mapping[str, Any], make: Callable[..., T], defaults: Mapping[str, Any] | None = None) -> T:
    """Make a sampler or pruner from the given options and `defaults`. Raises UserError."""
    name, options = given["name"], {key: value for key, value in given.items() if key != "name"}
    parameters = inspect.signature(make).parameters
    for key, value in options.items():  # Optuna checks most of them only when it draws a trial
        if key in parameters:
            _check_option(f"{kind}.{key} of {name!r}", value, parameters[key])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return make(**{**(defaults or {}), **options})
    except ImportError as error:
        raise UserError(
            f"the {kind} {name!r} needs a package that is not installed: pip install 'subnet-search[samplers]'"
        ) from error
    except Exception as error:
        raise UserError(f"the {kind} {name!r}: {error}") from error


def _check_option(where: str, value: Any, parameter: inspect.Parameter) -> None:
    """Raise UserError for a value of another type than Optuna's signature has, or one below both 0 and the default."""
    stated = getattr(parameter.annotation, "__name__", parameter.annotation).split(" | ")
    kinds = {kind: types for kind, types in KINDS.items() if kind in stated}
    if not any(type(value) in types for types in kinds.values()):
        raise UserError(f"{where} takes {' or '.join(kinds) or 'no value that YAML can hold'}, got {shown(value)}")
    if type(value) in (int, float) and value < min(0, parameter.default if type(parameter.default) in (int, float) else 0):
        raise UserError(f"{where} cannot be below 0, got {shown(value)}")
