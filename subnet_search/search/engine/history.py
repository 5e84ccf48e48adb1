"""What a trial may know of the others, as an Optuna study in memory that its sampler and its pruner look at.

A trial knows how those ended that began at least `parallel` places before it, and that those in between are under way.
So what is drawn, and when it is stopped, is a function of a trial's place: the same with one worker, with eight, and
with eight of which five were killed. (With `parallel: null` it knows whatever is finished by now, as usual in Optuna.)

Optuna's samplers and pruners, given the stored study itself, look at all that is finished at that moment, so the order in
which workers finish would decide what is drawn. Optuna has no option that hides trials from them.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from subnet_search.search.spec.samplers import make_pruner, make_sampler
from subnet_search.search.spec.study_spec import StudySpec
from subnet_search.search.storage.records import TrialRecord


class _Memory(InMemoryStorage):
    """Samplers may note things about the whole study. Nothing is kept: a note would depend on who made it, and when."""

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        pass

    def strip(self, trial_id: int) -> None:
        """Leave nothing of a trial that is under way but its parameters."""
        trial = copy.copy(self._get_trial(trial_id))
        trial.intermediate_values, trial.system_attrs = {}, {}
        self._set_trial(trial_id, trial)


class History:
    """The trials up to a place, as the trial at that place may see them."""

    def __init__(self, spec: StudySpec) -> None:
        self.spec = spec
        self.own: int | None = None  # the trial that was drawn last, which notes its reports here too
        self._forget()

    def draw(self, number: int, trials: Sequence[FrozenTrial], fixed: Mapping[str, Any]) -> tuple[optuna.Trial, dict[str, Any]]:
        """A trial at place `number`, whose `fixed` parameters are set already, and a value for every key it searches."""
        self._look(number, trials)
        self.study.sampler = make_sampler(self.spec, number)
        if fixed:
            self.study.enqueue_trial(dict(fixed))
        trial = self.study.ask()
        self.ids.append(trial._trial_id)
        return trial, self.spec.searched.suggest(trial)

    def _look(self, number: int, trials: Sequence[FrozenTrial]) -> None:
        """Bring the memory up to what the trial at place `number` may know."""
        if not self.spec.looks_back:
            return
        if number < len(self.ids):  # an earlier trial, taken up again
            self._forget()
        if self.own is not None and self.own not in self.ended:  # result not available yet
            self.memory.strip(self.ids[self.own])
        self.own = number
        for trial in trials[:number]:
            if trial.number == len(self.ids):
                self.ids.append(self.memory.create_new_trial(self.study._study_id, _under_way(trial)))
            if trial.number not in self.ended and sees_end(self.spec, number, trial):
                self._end(trial)

    def _forget(self) -> None:
        self.memory = _Memory()
        self.study = optuna.create_study(
            study_name=self.spec.name, storage=self.memory, directions=self.spec.directions, pruner=make_pruner(self.spec)
        )
        self.ids: list[int] = []
        self.ended: set[int] = set()
        self.own = None

    def _end(self, trial: FrozenTrial) -> None:
        here = self.ids[trial.number]
        for step, value in trial.intermediate_values.items():
            self.memory.set_trial_intermediate_value(here, step, value)
        for key, value in trial.system_attrs.items():
            self.memory.set_trial_system_attr(here, key, value)
        self.memory.set_trial_state_values(here, trial.state, trial.values)
        self.ended.add(trial.number)


def sees_end(spec: StudySpec, number: int, other: FrozenTrial) -> bool:
    """Whether the trial at place `number` may know how another ended."""
    if spec.parallel is None or TrialRecord(other).imported_from is not None:
        return other.state.is_finished()
    return other.number <= number - spec.parallel


def _under_way(trial: FrozenTrial) -> FrozenTrial:
    """A trial under way, with its parameters alone."""
    return optuna.trial.create_trial(state=TrialState.RUNNING, params=trial.params, distributions=trial.distributions)
