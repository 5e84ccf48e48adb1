"""Optuna's samplers and pruners by name, rebuilt from a study's own spec and seeded by trial."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from subnet_search.errors import UserError
from subnet_search.search.spec import StudySpec
from subnet_search.search.storage import place
from subnet_search.seeds import derive

T = TypeVar("T")


class PerTrialSampler(BaseSampler):
    """A sampler made afresh for each trial, with a seed from (study seed, trial number).

    A sampler's own generator is lost with its process: a study that is stopped and continued would draw its first
    points again, and so would two workers with one seed. Seeded by trial, the draw depends on the trial's place and
    on the trials before it, and on nothing else. The samplers that Optuna ships keep what they learn in the storage.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make, self._seed = make, seed
        self._inner = make(seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._inner = self._make(derive(self._seed, "sampler", place(study, trial.number)) % 2**32)
        self._inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._inner.after_trial(study, trial, state, values)


def make_sampler(spec: StudySpec) -> BaseSampler:
    """The spec's sampler. Raises UserError for an option it does not have, or a package it needs."""
    samplers: Mapping[str, Callable[..., BaseSampler]] = {
        "tpe": optuna.samplers.TPESampler,
        "random": optuna.samplers.RandomSampler,
        "gp": optuna.samplers.GPSampler,
        "nsga2": optuna.samplers.NSGAIISampler,
        "cmaes": optuna.samplers.CmaEsSampler,
    }
    options = {key: value for key, value in spec.sampler.items() if key != "name"}
    build = samplers[spec.sampler["name"]]
    return _made("sampler", spec.sampler["name"], lambda: PerTrialSampler(lambda seed: build(seed=seed, **options), spec.seed))


def make_pruner(spec: StudySpec) -> optuna.pruners.BasePruner:
    """The spec's pruner; Hyperband's largest resource is the run's epochs unless it is given."""
    options = {key: value for key, value in spec.pruner.items() if key != "name"}
    match spec.pruner["name"]:
        case "hyperband":
            options = {"min_resource": 1, "max_resource": max(1, spec.run.recipe.epochs), **options}
            return _made("pruner", "hyperband", lambda: optuna.pruners.HyperbandPruner(**options))
        case "median":
            return _made("pruner", "median", lambda: optuna.pruners.MedianPruner(**options))
    return optuna.pruners.NopPruner()


def _made(kind: str, name: str, make: Callable[[], T]) -> T:
    try:
        return make()
    except (TypeError, ValueError) as error:
        raise UserError(f"the {kind} {name!r}: {error}") from error
    except ImportError as error:
        raise UserError(
            f"the {kind} {name!r} needs a package that is not installed: pip install 'subnet-search[samplers]'"
        ) from error
