"""Optuna's samplers and pruners by name, rebuilt from a study's own spec."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import optuna
from optuna.samplers import BaseSampler

from subnet_search.errors import UserError, shown
from subnet_search.search.spec import StudySpec
from subnet_search.seeds import derive

T = TypeVar("T")


def make_sampler(spec: StudySpec, number: int = 0) -> BaseSampler:
    """The spec's sampler, seeded for a trial: its draw depends on the trial's number and what it knows, and nothing else.

    The samplers that Optuna ships keep what they learn in the storage, so one can be made afresh for each trial.
    Raises UserError for an option it does not have, or a package it needs.
    """
    samplers: Mapping[str, Callable[..., BaseSampler]] = {
        "tpe": optuna.samplers.TPESampler,
        "random": optuna.samplers.RandomSampler,
        "gp": optuna.samplers.GPSampler,
        "nsga2": optuna.samplers.NSGAIISampler,
        "cmaes": optuna.samplers.CmaEsSampler,
    }
    name, options = spec.sampler["name"], {key: value for key, value in spec.sampler.items() if key != "name"}
    if name == "tpe" and spec.searched.conditional:  # parameters of one branch are modelled together
        options = {"multivariate": True, "group": True, **options}
    seed = derive(spec.seed, "sampler", number) % 2**32
    return _made("sampler", name, samplers[name], {"seed": seed, **options})


def make_pruner(spec: StudySpec) -> optuna.pruners.BasePruner:
    """The spec's pruner; Hyperband's largest resource is the run's epochs unless it is given."""
    name, options = spec.pruner["name"], {key: value for key, value in spec.pruner.items() if key != "name"}
    match name:
        case "hyperband":
            epochs = spec.run.recipe.resolve(spec.run.extractor.published.recipe).epochs
            options = {"min_resource": 1, "max_resource": max(1, epochs), **options}
            return _made("pruner", name, optuna.pruners.HyperbandPruner, options)
        case "median":
            return _made("pruner", name, optuna.pruners.MedianPruner, options)
        case "patient":
            options = {"wrapped_pruner": optuna.pruners.MedianPruner(), "patience": 3, **options}
            return _made("pruner", name, optuna.pruners.PatientPruner, options)
        case "wilcoxon":
            return _made("pruner", name, optuna.pruners.WilcoxonPruner, options)
    return optuna.pruners.NopPruner()  # none, and rungs, which is ours


def _made(kind: str, name: str, make: Callable[..., T], options: Mapping[str, Any]) -> T:
    """Optuna looks at most options only when a trial is drawn, so their types are compared with those of the defaults here."""
    for key, known in inspect.signature(make).parameters.items():
        wanted, given = type(known.default), options.get(key)
        numbers: tuple[type, ...] = (int, float) if wanted is float else (wanted,)
        if key in options and wanted in (int, float, bool) and (type(given) not in numbers or given < min(0, known.default)):
            words = {int: "a whole number", float: "a number", bool: "true or false"}[wanted]
            raise UserError(f"{kind}.{key} of {name!r} takes {words}, not below 0, got {shown(given)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return make(**options)
    except ImportError as error:
        raise UserError(
            f"the {kind} {name!r} needs a package that is not installed: pip install 'subnet-search[samplers]'"
        ) from error
    except Exception as error:
        raise UserError(f"the {kind} {name!r}: {error}") from error
