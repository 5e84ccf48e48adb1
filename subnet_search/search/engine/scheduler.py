"""Choose the next trial of a worker, under the study's lock.

A trial is written with its parameters and configuration in one transaction, so that a killed worker leaves no partial
trial. A trial that lost its worker is queued again, and the next worker resumes it from its checkpoint under the same
number.
"""

import hashlib
import json
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from subnet_search.core.errors import RunError, UserError
from subnet_search.core.rng import derive
from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.passed import config_like
from subnet_search.extraction.provenance import versions
from subnet_search.search.engine.history import History, sees_end
from subnet_search.search.engine.trial_lease import TrialLease, requeue
from subnet_search.search.spec.study_spec import StudySpec
from subnet_search.search.storage.connect import database_of
from subnet_search.search.storage.leases import Leases, this_process
from subnet_search.search.storage.locks import exclusive
from subnet_search.search.storage.ranking import promising
from subnet_search.search.storage.read import Reader, study_attributes
from subnet_search.search.storage.records import REPEATS, STOPPED, Cell, TrialRecord, steps_spent
from subnet_search.search.storage.retry import patiently
from subnet_search.search.storage.study_folder import folder_of
from subnet_search.search.storage.trust import check_imports, imports_of
from subnet_search.search.storage.write import insert_trials, queued_again, set_attrs

MAX_INVALID = 20  # invalid configurations in a row after which the worker gives up


class Scheduler:
    """Chooses the trials of one worker of a study."""

    def __init__(self, study: optuna.Study, spec: StudySpec, budget: int, allow_imports: Collection[str] = ()) -> None:
        self.study, self.spec, self.budget, self.allowed = study, spec, budget, allow_imports
        self.storage = database_of(study)  # without Optuna's cache, which can be out of date
        self.stored, self.folder = study.user_attrs.get("folder", ""), folder_of(study)
        self.reader = Reader(study)
        self.token = uuid.uuid4().hex  # unique to this worker
        self.history, self.leases = History(spec), Leases(spec.heartbeat, self.token)
        self.invalid: list[str] = []  # reasons of the last invalid configurations in a row

    def next(self, start_new: bool = True) -> TrialLease | Literal["wait", "done"]:
        """The next trial to run. "wait": try again later; "done": the study is finished or stopped.

        start_new   False: only resume trials that were started before
        """
        while (found := patiently(self._next, start_new)) is None:
            pass
        return found

    def release_lost_trials(self) -> list[int]:
        """Requeue the running trials that lost their worker; returns their numbers."""
        with exclusive(self.storage, self.study.study_name):
            return self._release_lost(self.reader.trials())

    def _next(self, start_new: bool) -> TrialLease | Literal["wait", "done"] | None:
        with exclusive(self.storage, self.study.study_name):  # no other worker starts or ends a trial meanwhile
            stopped = self._is_stopped()
            trials = self.reader.trials()
            if self._release_lost(trials):
                trials = self.reader.trials()
            running = [trial for trial in trials if trial.state == TrialState.RUNNING]
            if stopped:
                return "done"
            counting = [trial for trial in trials if TrialRecord(trial).counts]
            below_budget = self.spec.compares or sum(trial.state != TrialState.WAITING for trial in counting) < self.budget
            waiting = [trial for trial in trials if TrialRecord(trial).queued]
            for trial in waiting:
                record = TrialRecord(trial)
                allowed = (below_budget or record.repeats is not None) and (start_new or record.began)
                if allowed and self._history_complete(trials, trial.number):
                    return self._start_queued(trial, trials)
            full = self.spec.compares or len(counting) >= self.budget or self._steps_spent(trials)
            if not full and start_new:
                return self._draw_trial(trials) if self._history_complete(trials, len(trials)) else "wait"
            if running or (waiting and below_budget and start_new):
                return "wait"
            return None if start_new and self._repeat_best(trials) else "done"

    def _is_stopped(self) -> bool:
        """Whether the study was stopped. Raises RunError if it was deleted; SQLite may have reused its id for another study."""
        attrs = study_attributes(self.study, "folder", STOPPED)
        if attrs.get("folder", "") != self.stored:
            raise RunError(f"the study {self.study.study_name!r} was deleted")
        return bool(attrs.get(STOPPED))

    def _release_lost(self, trials: Sequence[FrozenTrial]) -> list[int]:
        lost = self.leases.lost(trials)
        # Trials leased by this worker, which runs none now: the reply of the storage was lost.
        running = (trial for trial in trials if trial.state == TrialState.RUNNING)
        orphans = [trial for trial in running if TrialRecord(trial).worker.token == self.token]
        for trial in lost:
            worker = TrialRecord(trial).worker
            requeue(self.storage, trial, f"its worker (process {worker.pid} on {worker.host}) stopped responding", died=True)
        for trial in orphans:
            requeue(self.storage, trial, "the storage was unavailable")
        return [trial.number for trial in (*lost, *orphans)]

    def _history_complete(self, trials: Sequence[FrozenTrial], number: int) -> bool:
        """Whether all results that trial `number` depends on are available."""
        if not self.spec.uses_history or self.spec.parallel is None:
            return True
        return all(trial.state.is_finished() for trial in trials[: max(0, number - self.spec.parallel + 1)])

    def _steps_spent(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether the visible trials have used up the study's budget of steps."""
        if self.spec.steps is None:
            return False
        return steps_spent(trial for trial in trials if sees_end(self.spec, len(trials), trial)) >= self.spec.steps

    def _draw_trial(self, trials: Sequence[FrozenTrial]) -> TrialLease | None:
        """Draw and store the next trial. None if it does not need a worker."""
        number = len(trials)
        in_memory, values = self.history.draw(number, trials, {})
        try:
            config = self._config(number, values)
        except UserError as error:
            self._insert(number, in_memory, TrialState.FAIL, {"reason": str(error)})
            self.invalid.append(str(error))
            if len(self.invalid) >= MAX_INVALID:
                raise RunError(f"{MAX_INVALID} trials in a row had an invalid configuration, the last: {error}") from error
            return None
        attrs = self._start_attributes(self._run_folder(number), config)
        if self.spec.duplicates != "rerun" and (twin := self._duplicate(attrs["key"], trials, number)):
            if self.spec.duplicates == "reuse":
                metrics = self.spec.task_metrics
                taken = {key: twin.user_attrs.get(key) for key in ("density", metrics.val, metrics.test, "sha256")}
                self._insert(number, in_memory, TrialState.COMPLETE, {**attrs, **taken, "reuses": twin.number}, twin.values)
            else:
                self._insert(number, in_memory, TrialState.PRUNED, {**attrs, "reason": f"the same as trial {twin.number}"})
            return None
        self.invalid.clear()
        if (trial_id := self._insert(number, in_memory, TrialState.RUNNING, attrs)) is None:
            return None
        return TrialLease(self.study, self.token, number, trial_id, config, Path(attrs["folder"]), in_memory, attrs, {})

    def _start_queued(self, trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> TrialLease | None:
        """Resume a requeued trial, or start a queued one."""
        before = TrialRecord(trial)
        given = self.spec.run.given(), before.config, before.cell and before.cell.values
        check_imports(f"trial {trial.number} of the study {self.study.study_name!r}", imports_of(*given), self.allowed)
        # Without a configuration, the worker died while it wrote the parameters: draw the same ones again.
        fixed = trial.params if before.config else trial.system_attrs.get("fixed_params", trial.params)
        in_memory, values = self.history.draw(trial.number, trials, fixed)
        try:
            stored = before.config
            config = config_like(self.spec.run, stored) if stored else self._config(trial.number, values, before.cell)
        except UserError as error:
            set_attrs(self.storage, trial._trial_id, {"reason": str(error)})
            self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            return None
        for name, distribution in in_memory.distributions.items():
            if name not in trial.params:
                self.storage.set_trial_param(
                    trial._trial_id, name, distribution.to_internal_repr(in_memory.params[name]), distribution
                )
        folder = self._run_folder(trial.number, before)
        attrs = self._start_attributes(folder, config)
        if before.versions:  # of its checkpoint; `run_trial` compares them
            attrs["versions"] = before.versions
        set_attrs(self.storage, trial._trial_id, attrs)
        self.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
        attrs, reports = {**before.attrs, **attrs}, dict(trial.intermediate_values)
        return TrialLease(self.study, self.token, trial.number, trial._trial_id, config, folder, in_memory, attrs, reports)

    def _config(self, number: int, values: Mapping[str, Any], cell: Cell | None = None) -> RunConfig:
        """The resolved configuration of a trial: from its cell, or from the drawn values and a seed derived from its number."""
        if cell:
            return self.spec.config(cell.values).resolve()
        return self.spec.config({**values, "seed": derive(self.spec.seed, "trial", number) % 2**31}).resolve()

    def _run_folder(self, number: int, before: TrialRecord | None = None) -> Path:
        """The run folder: the one that the trial was started in, or a new one.

        If the folder of this trial number exists, it belongs to a copy of the study in another storage.
        """
        if before and before.began and before.folder.parent == self.folder:
            return before.folder
        folder = self.folder / f"{number:04d}"
        return self.folder / f"{number:04d}-{uuid.uuid4().hex[:8]}" if folder.exists() else folder

    def _start_attributes(self, folder: Path, config: RunConfig) -> dict[str, Any]:
        """User attributes of a trial that is started."""
        worker = asdict(this_process(self.token))
        attrs = {"worker": worker, "config": config.dump(), "seed": config.seed, "folder": str(folder)}
        key = {"key": configuration_key(config)} if self.spec.duplicates != "rerun" else {}
        return {**attrs, **key, "versions": versions()}

    def _insert(
        self,
        number: int,
        in_memory: optuna.Trial,
        state: TrialState,
        attrs: Mapping[str, Any],
        values: Sequence[float] | None = None,
    ) -> int | None:
        """Write a trial in one transaction and return its id; None if its number is taken (the lock was lost meanwhile)."""
        here = in_memory.study._storage.get_trial(in_memory._trial_id)
        template = create_trial(
            state=state,
            values=values,
            params=here.params,
            distributions=here.distributions,
            user_attrs=dict(attrs),
            system_attrs=here.system_attrs,
        )
        return insert_trials(self.storage, self.study._study_id, [template], number).get(number)

    def _duplicate(self, key: str, trials: Sequence[FrozenTrial], number: int) -> FrozenTrial | None:
        """The first complete trial with the same configuration that is visible to trial `number`."""
        visible = (t for t in trials if t.state == TrialState.COMPLETE and sees_end(self.spec, number, t))
        return next((trial for trial in visible if TrialRecord(trial).key == key), None)

    def _repeat_best(self, trials: Sequence[FrozenTrial]) -> bool:
        """Queue the missing repeats of the best trials; returns whether any were queued."""
        if self.spec.repeats == 1 or self.spec.compares or self.spec.pruner["name"] == "wilcoxon":
            return False
        there = {(record.repeats, record.seed) for record in map(TrialRecord, trials) if record.repeats is not None}
        queued = False
        for trial in promising(trials, self.study.directions, self.spec.promising):
            for index in range(1, self.spec.repeats):
                first = TrialRecord(trial)
                seed = repeat_seed(first.seed or 0, index)
                if (trial.number, seed) not in there:
                    attrs = {REPEATS: trial.number, "config": {**(first.config or {}), "seed": seed}, "seed": seed}
                    self.storage.create_new_trial(self.study._study_id, queued_again(trial, attrs))
                    queued = True
        return queued


def repeat_seed(seed: int, index: int) -> int:
    """The seed of the repeat, counted from 1, of a run with `seed`."""
    return derive(seed, "repeat", index) % 2**31


def configuration_key(config: RunConfig, with_seed: bool = False) -> str:
    """Hash of a complete configuration without device and threads, and without the seed unless it is asked for."""
    complete = config.dump() if with_seed else {**config.dump(), "seed": None}
    complete["recipe"] |= {"device": None, "threads": None}
    return hashlib.sha256(json.dumps(complete, sort_keys=True).encode()).hexdigest()[:16]
