"""The visible history of a trial: an in-memory Optuna study for its sampler and pruner.

Optuna's samplers and pruners use all results available at that moment, so the order in which workers finish would change
what is drawn, and Optuna has no option to hide trials from them. Here trial n sees the results of trials up to
n - `parallel`, and the trials after those as running. What is drawn and when it is pruned then depends only on the trial
number. (With `parallel: null`, a trial sees all finished trials, as in Optuna.)
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from subnet_search.search.spec.samplers import make_pruner, make_sampler
from subnet_search.search.spec.study_spec import StudySpec
from subnet_search.search.storage.records import TrialRecord


class _MemoryStorage(InMemoryStorage):
    """Storage that drops study attributes written by samplers: they would depend on the order of trials."""

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        pass

    def strip(self, trial_id: int) -> None:
        """Remove everything but the parameters from a running trial."""
        trial = copy.copy(self._get_trial(trial_id))
        trial.intermediate_values, trial.system_attrs = {}, {}
        self._set_trial(trial_id, trial)


class History:
    """The history that is visible to a trial."""

    def __init__(self, spec: StudySpec) -> None:
        self.spec = spec
        self.own: int | None = None  # the trial drawn last, which also reports its values here
        self._reset()

    def draw(
        self, number: int, trials: Sequence[FrozenTrial], fixed: Mapping[str, Any], sampler: BaseSampler | None = None
    ) -> tuple[optuna.Trial, dict[str, Any]]:
        """Draw trial `number`, with the given `fixed` parameters; returns it with a value for every searched key.

        sampler: default: a new one of the spec, seeded by the number
        """
        self._update(number, trials)
        self.study.sampler = sampler or make_sampler(self.spec, number)
        if fixed:
            self.study.enqueue_trial(dict(fixed))
        trial = self.study.ask()
        self.ids.append(trial._trial_id)
        return trial, self.spec.searched.suggest(trial)

    def _update(self, number: int, trials: Sequence[FrozenTrial]) -> None:
        """Update the in-memory study to what trial `number` can see."""
        if not self.spec.uses_history:
            return
        if number < len(self.ids):  # an earlier trial, resumed
            self._reset()
        if self.own is not None and self.own not in self.ended:  # result not available yet
            self.memory.strip(self.ids[self.own])
        self.own = number
        for trial in trials[:number]:
            if trial.number == len(self.ids):
                parameters = create_trial(state=TrialState.RUNNING, params=trial.params, distributions=trial.distributions)
                self.ids.append(self.memory.create_new_trial(self.study._study_id, parameters))
            if trial.number not in self.ended and sees_end(self.spec, number, trial):
                self._add_result(trial)

    def _reset(self) -> None:
        self.memory = _MemoryStorage()
        self.study = optuna.create_study(
            study_name=self.spec.name, storage=self.memory, directions=self.spec.directions, pruner=make_pruner(self.spec)
        )
        self.ids: list[int] = []
        self.ended: set[int] = set()
        self.own = None

    def _add_result(self, trial: FrozenTrial) -> None:
        here = self.ids[trial.number]
        for step, value in trial.intermediate_values.items():
            self.memory.set_trial_intermediate_value(here, step, value)
        for key, value in trial.system_attrs.items():
            self.memory.set_trial_system_attr(here, key, value)
        self.memory.set_trial_state_values(here, trial.state, trial.values)
        self.ended.add(trial.number)


def sees_end(spec: StudySpec, number: int, other: FrozenTrial) -> bool:
    """Whether the result of `other` is visible to trial `number`."""
    if spec.parallel is None or TrialRecord(other).imported_from is not None:
        return other.state.is_finished()
    return other.number <= number - spec.parallel
