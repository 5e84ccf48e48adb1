"""The lease of a running trial: only the worker that holds it can write to the trial."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from subnet_search.extraction.config import RunConfig
from subnet_search.search.storage.connect import database_of
from subnet_search.search.storage.locks import exclusive
from subnet_search.search.storage.records import TrialRecord
from subnet_search.search.storage.retry import patiently
from subnet_search.search.storage.write import end_trial, set_attrs

DEATHS = 5  # maximum worker deaths before a trial fails


class LeaseLost(Exception):
    """Another worker has taken over the trial, because this one missed its heartbeats."""


@dataclass
class TrialLease:
    """A trial that this worker runs."""

    study: optuna.Study
    token: str  # of the worker
    number: int
    trial_id: int
    config: RunConfig
    folder: Path
    in_memory: optuna.Trial  # the trial in the visible history, for the pruner
    attrs: dict[str, Any]  # user attributes when the lease was taken
    reports: dict[int, float]  # intermediate values by step, including those of earlier workers

    def is_mine(self) -> bool:
        """Whether this worker still holds the trial."""
        return patiently(self._is_mine)

    def report(self, step: int, value: float) -> None:
        """Store an intermediate value."""
        self.reports[step] = value
        self._write(self.study._storage.set_trial_intermediate_value, self.trial_id, step, value)

    def note(self, **attrs: Any) -> None:
        """Store user attributes of the trial."""
        self._write(set_attrs, self.study._storage, self.trial_id, attrs)

    def constrain(self, name: str, violation: float) -> None:
        """Store the violation of a constraint; 0 or below satisfies it."""
        key = f"constraints:{name}"
        self._write(self.study._storage.set_trial_system_attr, self.trial_id, key, violation)
        self.in_memory.study._storage.set_trial_system_attr(self.in_memory._trial_id, key, violation)

    def end(self, state: TrialState, values: Sequence[float] | None, attrs: Mapping[str, Any]) -> None:
        """Store the final state. Raises LeaseLost, and stores nothing, if another worker holds the trial."""
        patiently(self._end, state, values, attrs)

    def release(self, why: str) -> None:
        """Requeue the trial, to be resumed from its checkpoint."""
        patiently(self._release, why)

    def _write(self, call: Callable[..., None], *args: Any) -> None:
        """Raises LeaseLost, and writes nothing, if another worker holds the trial or it has ended."""
        if not self.is_mine():
            raise LeaseLost
        try:
            patiently(call, *args)
        except UpdateFinishedTrialError:  # ended meanwhile
            raise LeaseLost from None

    def _is_mine(self) -> bool:
        try:
            trial = self.study._storage.get_trial(self.trial_id)
        except KeyError:  # the study was deleted
            return False
        return trial.state == TrialState.RUNNING and TrialRecord(trial).worker.token == self.token

    def _end(self, state: TrialState, values: Sequence[float] | None, attrs: Mapping[str, Any]) -> None:
        noted = dict(self.in_memory.study._storage.get_trial(self.in_memory._trial_id).system_attrs)  # written by the pruner
        noted.pop("fixed_params", None)
        with exclusive(self.study._storage, self.study.study_name):
            if not end_trial(database_of(self.study), self.trial_id, self.token, state, values, attrs, noted):
                raise LeaseLost

    def _release(self, why: str) -> None:
        with exclusive(self.study._storage, self.study.study_name):
            if self._is_mine():
                requeue(self.study._storage, self.study._storage.get_trial(self.trial_id), why)


def requeue(storage: BaseStorage, trial: FrozenTrial, why: str, died: bool = False) -> None:
    """Queue a trial again to be resumed; it fails after five worker deaths."""
    record = TrialRecord(trial)
    changed = record.interrupted(why, died)
    deaths = died + sum(one.died for one in record.interruptions)
    if deaths >= DEATHS:
        reason = f"its worker died {deaths} times, the last on {record.worker.host}: possibly out of memory"
        set_attrs(storage, trial._trial_id, {"interruptions": changed["interruptions"], "reason": reason})
        storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        return
    storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)  # first, so that a death is not counted twice
    set_attrs(storage, trial._trial_id, changed)
