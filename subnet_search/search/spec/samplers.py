"""Optuna's samplers and pruners by name, rebuilt from a study's own spec."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import optuna
from optuna.samplers import BaseSampler

from subnet_search.core.errors import UserError, shown
from subnet_search.core.rng import derive
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
"""The types of options in Optuna's signatures, as they are written there, that a file can hold."""


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
    ours: dict[str, Any] = {"seed": derive(spec.seed, "sampler", number) % 2**32}
    if spec.sampler["name"] == "tpe" and spec.searched.conditional:  # parameters of one branch are modelled together
        ours |= {"multivariate": True, "group": True}
    return _made("sampler", spec.sampler, samplers[spec.sampler["name"]], ours)


def make_pruner(spec: StudySpec) -> optuna.pruners.BasePruner:
    """The spec's pruner; Hyperband's largest resource is the run's epochs unless it is given."""
    match spec.pruner["name"]:
        case "hyperband":
            epochs = spec.run.recipe.resolve(spec.run.extractor.published.recipe).epochs
            ours = {"min_resource": 1, "max_resource": max(1, epochs)}
            return _made("pruner", spec.pruner, optuna.pruners.HyperbandPruner, ours)
        case "median":
            return _made("pruner", spec.pruner, optuna.pruners.MedianPruner)
        case "patient":
            patient = {"wrapped_pruner": optuna.pruners.MedianPruner(), "patience": 3}
            return _made("pruner", spec.pruner, optuna.pruners.PatientPruner, patient)
        case "wilcoxon":
            return _made("pruner", spec.pruner, optuna.pruners.WilcoxonPruner)
    return optuna.pruners.NopPruner()  # none, and rungs, which is ours


def _made(kind: str, given: Mapping[str, Any], make: Callable[..., T], ours: Mapping[str, Any] | None = None) -> T:
    """What the given options make, before which go `ours`. Raises UserError."""
    name, options = given["name"], {key: value for key, value in given.items() if key != "name"}
    known = inspect.signature(make).parameters
    for key, value in options.items():  # Optuna looks at most of them only when a trial is drawn
        if key in known:
            _check_option(f"{kind}.{key} of {name!r}", value, known[key])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return make(**{**(ours or {}), **options})
    except ImportError as error:
        raise UserError(
            f"the {kind} {name!r} needs a package that is not installed: pip install 'subnet-search[samplers]'"
        ) from error
    except Exception as error:
        raise UserError(f"the {kind} {name!r}: {error}") from error


def _check_option(where: str, value: Any, known: inspect.Parameter) -> None:
    """Raise UserError for a value that is not of the type which Optuna's signature states, or is below 0 and its default."""
    stated = getattr(known.annotation, "__name__", known.annotation).split(" | ")
    kinds = {kind: types for kind, types in KINDS.items() if kind in stated}
    if not any(type(value) in types for types in kinds.values()):
        raise UserError(f"{where} takes {' or '.join(kinds) or 'nothing that a file can hold'}, got {shown(value)}")
    if type(value) in (int, float) and value < min(0, known.default if type(known.default) in (int, float) else 0):
        raise UserError(f"{where} cannot be below 0, got {shown(value)}")
