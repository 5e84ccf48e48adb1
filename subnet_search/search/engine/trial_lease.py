"""A trial that one worker runs: what it may store, and whether the trial is still its own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from subnet_search.extraction.config import RunConfig
from subnet_search.search.storage.connect import rdb
from subnet_search.search.storage.locks import exclusive
from subnet_search.search.storage.records import TrialRecord
from subnet_search.search.storage.retry import patiently
from subnet_search.search.storage.write import end_trial, set_attrs

DEATHS = 5  # maximum worker deaths before a trial fails


class LeaseLost(Exception):
    """Another worker has taken the trial over, since this one gave no sign of life. What it finds is the same."""


@dataclass
class TrialLease:
    """A trial that this worker runs."""

    study: optuna.Study
    token: str  # of the worker
    number: int
    trial_id: int
    config: RunConfig
    folder: Path
    in_memory: optuna.Trial  # the trial in the visible history, which a pruner looks at
    attrs: dict[str, Any]  # what the storage held of it when it was taken
    reports: dict[int, float]  # values after steps, those of earlier workers included

    def mine(self) -> bool:
        """Whether the trial is still this worker's."""
        return patiently(self._mine)

    def report(self, step: int, value: float) -> None:
        """A value on the way, for people who look on and for the trials that come after."""
        self.reports[step] = value
        self._write(self.study._storage.set_trial_intermediate_value, self.trial_id, step, value)

    def note(self, **attrs: Any) -> None:
        """Store something about the trial."""
        self._write(set_attrs, self.study._storage, self.trial_id, attrs)

    def constrain(self, name: str, violation: float) -> None:
        """Store how far the trial is from keeping a constraint; 0 and below keeps it."""
        key = f"constraints:{name}"
        self._write(self.study._storage.set_trial_system_attr, self.trial_id, key, violation)
        self.in_memory.study._storage.set_trial_system_attr(self.in_memory._trial_id, key, violation)  # also a second time

    def end(self, state: TrialState, values: Sequence[float] | None, attrs: Mapping[str, Any]) -> None:
        """Store how the trial ended. Raises LeaseLost, and stores nothing, when it is another worker's by now."""
        patiently(self._end, state, values, attrs)

    def release(self, why: str) -> None:
        """Let the trial wait for a worker that goes on from its checkpoint."""
        patiently(self._release, why)

    def _write(self, call: Callable[..., None], *args: Any) -> None:
        """Raises LeaseLost, and writes nothing, when the trial is another worker's by now, or has ended."""
        if not self.mine():
            raise LeaseLost
        try:
            patiently(call, *args)
        except UpdateFinishedTrialError:  # in between
            raise LeaseLost from None

    def _mine(self) -> bool:
        try:
            trial = self.study._storage.get_trial(self.trial_id)
        except KeyError:  # the study was deleted
            return False
        return trial.state == TrialState.RUNNING and TrialRecord(trial).worker.token == self.token

    def _end(self, state: TrialState, values: Sequence[float] | None, attrs: Mapping[str, Any]) -> None:
        database = rdb(self.study._storage)
        assert database is not None, "studies are made in databases"
        noted = dict(self.in_memory.study._storage.get_trial(self.in_memory._trial_id).system_attrs)  # by the pruner
        noted.pop("fixed_params", None)
        with exclusive(self.study._storage, self.study.study_name):
            if not end_trial(database, self.trial_id, self.token, state, values, attrs, noted):
                raise LeaseLost

    def _release(self, why: str) -> None:
        with exclusive(self.study._storage, self.study.study_name):
            if self._mine():
                let_wait(self.study._storage, self.study._storage.get_trial(self.trial_id), why)


def let_wait(storage: BaseStorage, trial: FrozenTrial, why: str, died: bool = False) -> None:
    """Queue a trial that has lost its worker, to go on; after five deaths it fails."""
    record = TrialRecord(trial)
    changed = record.interrupted(why, died)
    deaths = died + sum(one.died for one in record.interruptions)
    if deaths >= DEATHS:
        reason = f"its worker died {deaths} times, the last on {record.worker.host}: was there enough memory?"
        set_attrs(storage, trial._trial_id, {"interruptions": changed["interruptions"], "reason": reason})
        storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        return
    storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)  # first: a death is not to be counted twice
    set_attrs(storage, trial._trial_id, changed)
