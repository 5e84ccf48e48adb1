"""Optuna's samplers and pruners by name, rebuilt from a study's own spec."""

import warnings
from collections.abc import Callable, Mapping
from typing import TypeVar

import optuna
from optuna.samplers import BaseSampler

from subnet_search.errors import UserError
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
    return _made("sampler", name, lambda: samplers[name](seed=seed, **options))


def make_pruner(spec: StudySpec) -> optuna.pruners.BasePruner:
    """The spec's pruner; Hyperband's largest resource is the run's epochs unless it is given."""
    name, options = spec.pruner["name"], {key: value for key, value in spec.pruner.items() if key != "name"}
    match name:
        case "hyperband":
            epochs = spec.run.recipe.resolve(spec.run.extractor.published.recipe).epochs
            options = {"min_resource": 1, "max_resource": max(1, epochs), **options}
            return _made("pruner", name, lambda: optuna.pruners.HyperbandPruner(**options))
        case "median":
            return _made("pruner", name, lambda: optuna.pruners.MedianPruner(**options))
        case "patient":
            options = {"patience": 3, **options}
            return _made("pruner", name, lambda: optuna.pruners.PatientPruner(optuna.pruners.MedianPruner(), **options))
        case "wilcoxon":
            return _made("pruner", name, lambda: optuna.pruners.WilcoxonPruner(**options))
    return optuna.pruners.NopPruner()  # none, and rungs, which is ours


def _made(kind: str, name: str, make: Callable[[], T]) -> T:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return make()
    except (TypeError, ValueError) as error:
        raise UserError(f"the {kind} {name!r}: {error}") from error
    except ImportError as error:
        raise UserError(
            f"the {kind} {name!r} needs a package that is not installed: pip install 'subnet-search[samplers]'"
        ) from error
