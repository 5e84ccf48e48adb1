"""Which trial a worker runs next. All that begins, hands over or ends a trial is here, and happens one at a time.

A trial enters the storage complete, with its parameters and configuration, in one write: there is no moment at which a
killed worker could leave half a trial. One whose worker is gone waits again, and whoever takes it goes on from its
checkpoint. So trials are numbered by their place in the study, and no death changes what is at a place.
"""

import hashlib
import json
import uuid
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from subnet_search.core.errors import RunError, UserError
from subnet_search.core.rng import derive
from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.config_file import check
from subnet_search.extraction.provenance import versions
from subnet_search.search.engine.history import History, sees_end
from subnet_search.search.engine.trial_lease import TrialLease, let_wait
from subnet_search.search.spec.study_spec import StudySpec
from subnet_search.search.storage.connect import rdb
from subnet_search.search.storage.leases import Leases, this_process
from subnet_search.search.storage.locks import exclusive
from subnet_search.search.storage.ranking import promising
from subnet_search.search.storage.read import Reader, study_attributes
from subnet_search.search.storage.records import REPEATS, STOPPED, Cell, TrialRecord, steps_spent
from subnet_search.search.storage.retry import patiently
from subnet_search.search.storage.study_folder import folder_of
from subnet_search.search.storage.trust import check_imports, imports_of
from subnet_search.search.storage.write import insert_trials, set_attrs

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
REFUSALS = 20  # in a row, after which a space is held to have no valid run
TAKEN_OVER = ("density", "val_accuracy", "test_accuracy", "sha256")  # by a trial that is the same as an earlier one


class Scheduler:
    """Hands out the trials of a study, to one worker."""

    def __init__(self, study: optuna.Study, spec: StudySpec, budget: int, allow_imports: Collection[str] = ()) -> None:
        self.study, self.spec, self.budget, self.allowed = study, spec, budget, allow_imports
        database = rdb(study._storage)
        assert database is not None, "studies are made in databases"
        self.storage = database  # without Optuna's cache, which knows less
        self.stored, self.folder = study.user_attrs.get("folder", ""), folder_of(study)
        self.reader = Reader(study)
        self.token = uuid.uuid4().hex  # this worker, as no other ever was
        self.history, self.leases = History(spec), Leases(spec.heartbeat, self.token)
        self.refused: list[str] = []  # why configurations drawn one after the other could not be run

    def alone(self) -> AbstractContextManager[object]:
        """While it lasts, no other worker begins or ends a trial of the study."""
        return exclusive(self.storage, self.study.study_name)

    def next(self, begin: bool = True) -> TrialLease | Literal["wait", "done"]:
        """A trial to run. "wait": others are at work, and may leave some; "done": the study is finished, or stopped.

        Without `begin`, no trial is begun that was never begun before.
        """
        while (found := patiently(self._next, begin)) is None:
            pass
        return found

    def reap(self) -> list[int]:
        """Let the trials wait whose worker is gone; returns their numbers."""
        with self.alone():
            return self._reap(self.reader.trials())

    def _next(self, begin: bool) -> TrialLease | Literal["wait", "done"] | None:
        with self.alone():
            stopped = self._is_stopped()
            trials = self.reader.trials()
            if self._reap(trials):
                trials = self.reader.trials()
            running = [trial for trial in trials if trial.state == TrialState.RUNNING]
            if stopped:
                return "done"
            places = [trial for trial in trials if TrialRecord(trial).counts]
            room = self.spec.compares or sum(trial.state != TrialState.WAITING for trial in places) < self.budget
            waiting = [t for t in trials if t.state == TrialState.WAITING and not TrialRecord(t).withdrawn]
            for trial in waiting:
                record = TrialRecord(trial)
                allowed = (room or record.repeats is not None) and (begin or record.began)
                if allowed and self._sees(trials, trial.number):
                    return self._take(trial, trials)
            full = self.spec.compares or len(places) >= self.budget or self._spent(trials)
            if not full and begin:
                return self._new(trials) if self._sees(trials, len(trials)) else "wait"
            if running or (waiting and room and begin):
                return "wait"
            return None if begin and self._repeat_best(trials) else "done"

    def _is_stopped(self) -> bool:
        """Raises RunError when the study is not there any more; SQLite may have given its number to another."""
        attrs = study_attributes(self.study, "folder", STOPPED)
        if attrs.get("folder", "") != self.stored:
            raise RunError(f"the study {self.study.study_name!r} was deleted")
        return bool(attrs.get(STOPPED))

    def _reap(self, trials: Sequence[FrozenTrial]) -> list[int]:
        lost = self.leases.lost(trials)
        # Running under this worker, which runs none now: the answer to its lease was lost on the way.
        running = (trial for trial in trials if trial.state == TrialState.RUNNING)
        orphans = [trial for trial in running if TrialRecord(trial).worker.token == self.token]
        for trial in lost:
            worker = TrialRecord(trial).worker
            let_wait(self.storage, trial, f"its worker {worker.pid} on {worker.host} was gone", died=True)
        for trial in orphans:
            let_wait(self.storage, trial, "the storage was away")
        return [trial.number for trial in (*lost, *orphans)]

    def _sees(self, trials: Sequence[FrozenTrial], number: int) -> bool:
        """Whether all that a trial at place `number` may know has come about."""
        if not self.spec.looks_back or self.spec.parallel is None:
            return True
        return all(trial.state.is_finished() for trial in trials[: max(0, number - self.spec.parallel + 1)])

    def _spent(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether the steps of the trials that a new one may know of have used up the study's."""
        if self.spec.steps is None:
            return False
        return steps_spent(trial for trial in trials if sees_end(self.spec, len(trials), trial)) >= self.spec.steps

    def _new(self, trials: Sequence[FrozenTrial]) -> TrialLease | None:
        """Draw the next trial and store it. None for one that needs no worker."""
        number = len(trials)
        in_memory, values = self.history.draw(number, trials, {})
        try:
            config = self._config(number, values)
        except UserError as error:
            self._store(number, in_memory, TrialState.FAIL, {"reason": str(error)})
            self.refused.append(str(error))
            if len(self.refused) >= REFUSALS:
                raise RunError(f"{REFUSALS} trials in a row ask for no valid run, the last because: {error}") from error
            return None
        attrs = self._attrs(self._folder(number), config)
        if self.spec.duplicates != "rerun" and (twin := self._twin(attrs["key"], trials, number)):
            taken = {key: twin.user_attrs.get(key) for key in TAKEN_OVER}
            if self.spec.duplicates == "reuse":
                self._store(number, in_memory, TrialState.COMPLETE, {**attrs, **taken, "reuses": twin.number}, twin.values)
            else:
                self._store(number, in_memory, TrialState.PRUNED, {**attrs, "reason": f"the same as trial {twin.number}"})
            return None
        self.refused.clear()
        trial_id = self._store(number, in_memory, TrialState.RUNNING, attrs)
        return None if trial_id is None else self._lease(number, trial_id, config, in_memory, attrs, {})

    def _take(self, trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> TrialLease | None:
        """Go on with a trial that waits, or begin one that was queued."""
        before = TrialRecord(trial)
        given = self.spec.run.given(), before.config, before.cell and before.cell.values  # not of the spec alone
        check_imports(f"trial {trial.number} of the study {self.study.study_name!r}", imports_of(*given), self.allowed)
        # Without a configuration, its worker died while it wrote the parameters: they must be drawn as they were then.
        fixed = trial.params if before.config else trial.system_attrs.get("fixed_params", trial.params)
        in_memory, values = self.history.draw(trial.number, trials, fixed)
        try:
            config = check(RunConfig, before.config) if before.config else self._config(trial.number, values, before.cell)
        except UserError as error:
            set_attrs(self.storage, trial._trial_id, {"reason": str(error)})
            self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            return None
        for name, distribution in in_memory.distributions.items():
            if name not in trial.params:
                self.storage.set_trial_param(
                    trial._trial_id, name, distribution.to_internal_repr(in_memory.params[name]), distribution
                )
        attrs = self._attrs(self._folder(trial.number, before), config)
        if before.versions:  # of its checkpoint: whoever runs it sees to that
            attrs["versions"] = before.versions
        set_attrs(self.storage, trial._trial_id, attrs)
        self.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
        return self._lease(
            trial.number, trial._trial_id, config, in_memory, {**before.attrs, **attrs}, trial.intermediate_values
        )

    def _config(self, number: int, values: Mapping[str, Any], cell: Cell | None = None) -> RunConfig:
        """The trial's complete configuration: its cell's, or what was drawn, with the seed of the trial's number."""
        if cell:
            return self.spec.config(cell.values).resolve()
        return self.spec.config({**values, "seed": derive(self.spec.seed, "trial", number) % 2**31}).resolve()

    def _folder(self, number: int, before: TrialRecord | None = None) -> Path:
        """The run folder: the one that the trial began in, or a new one.

        A folder of the trial's number that is there already is another study's: a copy, under the same name, in another
        storage.
        """
        if before and before.began and before.folder.parent == self.folder:
            return before.folder
        folder = self.folder / f"{number:04d}"
        return self.folder / f"{number:04d}-{uuid.uuid4().hex[:8]}" if folder.exists() else folder

    def _attrs(self, folder: Path, config: RunConfig) -> dict[str, Any]:
        """What a running trial holds."""
        worker = asdict(this_process(self.token))
        attrs = {"worker": worker, "config": config.dump(), "seed": config.seed, "folder": str(folder)}
        key = {"key": configuration_key(config)} if self.spec.duplicates != "rerun" else {}
        return {**attrs, **key, "versions": versions()}

    def _store(
        self,
        number: int,
        in_memory: optuna.Trial,
        state: TrialState,
        attrs: Mapping[str, Any],
        values: Sequence[float] | None = None,
    ) -> int | None:
        """Write a trial, all of it at once, and return its id; None when its place is taken: the lock was lost on the way."""
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

    def _lease(
        self,
        number: int,
        trial_id: int,
        config: RunConfig,
        in_memory: optuna.Trial,
        attrs: dict[str, Any],
        reports: Mapping[int, float],
    ) -> TrialLease:
        folder = Path(attrs["folder"])
        return TrialLease(self.study, self.token, number, trial_id, config, folder, in_memory, dict(attrs), dict(reports))

    def _twin(self, key: str, trials: Sequence[FrozenTrial], number: int) -> FrozenTrial | None:
        """The first complete trial of the same configuration that the one at place `number` may know of."""
        visible = (t for t in trials if t.state == TrialState.COMPLETE and sees_end(self.spec, number, t))
        return next((trial for trial in visible if TrialRecord(trial).key == key), None)

    def _repeat_best(self, trials: Sequence[FrozenTrial]) -> bool:
        """Queue the repeats of the best trials that are missing; whether there were any."""
        if self.spec.repeats == 1 or self.spec.compares or self.spec.pruner["name"] == "wilcoxon":
            return False
        there = {(record.repeats, record.seed) for record in map(TrialRecord, trials) if record.repeats is not None}
        queued = False
        for trial in promising(trials, self.study.directions, self.spec.promising):
            for index in range(1, self.spec.repeats):
                first = TrialRecord(trial)
                seed = repeat_seed(first.seed or 0, index)
                if (trial.number, seed) not in there:
                    config = {**(first.config or {}), "seed": seed}
                    attrs = {REPEATS: trial.number, "config": config, "seed": seed}
                    template = create_trial(
                        state=TrialState.WAITING, params=trial.params, distributions=trial.distributions, user_attrs=attrs
                    )
                    self.storage.create_new_trial(self.study._study_id, template)
                    queued = True
        return queued


def repeat_seed(seed: int, index: int) -> int:
    """The seed of the repeat, counted from 1, of a run with `seed`."""
    return derive(seed, "repeat", index) % 2**31


def configuration_key(config: RunConfig) -> str:
    """What stands for a complete configuration, on whatever seed, device and threads."""
    complete = {**config.dump(), "seed": None}
    complete["recipe"] = {**complete["recipe"], "device": None, "threads": None}
    return hashlib.sha256(json.dumps(complete, sort_keys=True).encode()).hexdigest()[:16]
