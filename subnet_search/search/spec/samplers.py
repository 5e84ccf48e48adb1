"""Make Optuna's samplers and pruners from a study's specification."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import optuna
from optuna.samplers import BaseSampler

from subnet_search.core.errors import UserError
from subnet_search.core.rng import derive
from subnet_search.search.spec.hub import make_from_hub
from subnet_search.search.spec.sampler_options import class_of
from subnet_search.search.spec.study_spec import StudySpec

T = TypeVar("T")


def make_sampler(spec: StudySpec, number: int = 0) -> BaseSampler:
    """The spec's sampler, seeded by the trial number, so that a draw depends only on that and the visible history.

    Optuna's samplers keep their state in the storage, so each trial can use a new one.
    Raises UserError for an invalid option or a missing package.
    """
    seed = derive(spec.seed, "sampler", number) % 2**32
    made: BaseSampler
    if spec.sampler["name"] == "hub":
        made = make_from_hub("sampler", spec.sampler, seed)
        return made
    defaults: dict[str, Any] = {"seed": seed}
    if spec.sampler["name"] == "tpe" and spec.searched.conditional:  # parameters of one branch are modelled together
        defaults |= {"multivariate": True, "group": True}
    made = _made("sampler", spec.sampler, class_of("sampler", spec.sampler["name"]), defaults)
    return made


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
