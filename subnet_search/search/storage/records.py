"""Typed access to the user attributes of studies and trials. Imports no torch.

An attribute of an unexpected type, in a file from elsewhere, counts as missing.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import optuna
from optuna.trial import FrozenTrial, TrialState
from pydantic import AliasChoices, Field, TypeAdapter, ValidationError

from subnet_search.core.redaction import scrub
from subnet_search.core.task_metrics import TaskMetrics
from subnet_search.search.storage.study_folder import rebased

IMPORTED = "known"  # source of an imported result; the stored name is older than the term
REPEATS = "repeats"  # number of the trial that this one repeats with a new seed
RETRIES = "retries"  # number of the failed trial that this one retries
WITHDRAWN = "withdrawn"  # whether a queued trial is not to be run
PASSED = "passed"  # of a study: hashes of the Python objects that were passed to it
TASK = "task"  # of a study: the metrics of its task; absent for classification
STOPPED = "stopped"  # whether the workers of a study start no more trials
NOW = "now"  # value of STOPPED that also interrupts running trials
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
LOG_LINES = 20  # last lines of a log that are shown, and stored with a failed trial

Value = TypeVar("Value")


@dataclass(frozen=True)
class Worker:
    """The process that runs a trial, or ran it last. All fields are None if there is none."""

    host: str | None = None
    pid: int | None = None
    token: str | None = None  # unique to the worker
    started: str | None = None  # start time of the process, in clock ticks since boot
    boot: str | None = None  # boot id of the machine
    namespace: int | None = None  # of the process ids

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" if self.pid else "an unknown worker"


@dataclass(frozen=True)
class Interruption:
    """How a trial lost its worker."""

    why: str = ""
    host: str | None = None
    pid: int | None = None
    died: bool = False


@dataclass(frozen=True)
class Cell:
    """The cell of a comparison that a trial runs."""

    method: Annotated[str, Field(validation_alias=AliasChoices("method", "arm"))]  # `arm` before 0.1.0
    density: float
    seed: int
    values: dict[str, Any]  # keys of the run that it changes, including the seed


class _Stored(Generic[Value]):
    """A user attribute of a trial, as a property of its record; None if it is missing or has another type."""

    def __init__(self, key: str, kind: type[Value]) -> None:
        self.key, self.kind = key, kind

    def __get__(self, record: "TrialRecord", _: type["TrialRecord"]) -> Value | None:
        return record.get(self.key, self.kind)


class TrialRecord:
    """The user attributes of a trial."""

    __slots__ = ("attrs", "trial")

    imported_from = _Stored(IMPORTED, str)  # the study or file that the result was imported from
    repeats = _Stored(REPEATS, int)  # the number of the trial that this one repeats on another seed
    retries = _Stored(RETRIES, int)  # the number of the failed trial that this one runs again
    beat = _Stored("beat", int)  # heartbeat counter of the worker
    config = _Stored[dict[str, Any]]("config", dict)  # the complete configuration of the run, as plain values
    seed = _Stored("seed", int)
    reason = _Stored("reason", str)  # why the trial failed or was pruned
    sha256 = _Stored("sha256", str)  # hash of the subnetwork's effective weights
    key = _Stored("key", str)  # hash of the configuration, for finding duplicates

    def __init__(self, trial: FrozenTrial) -> None:
        self.trial, self.attrs = trial, trial.user_attrs

    def get(self, key: str, kind: type[Value]) -> Value | None:
        """An attribute if it has the type, else None. A bool is not a number; an int is also a float."""
        value = self.attrs.get(key)
        if isinstance(value, bool) and kind is not bool:
            return None
        if kind is float and isinstance(value, int):
            return float(value)  # type: ignore[return-value]
        return value if isinstance(value, kind) else None

    @property
    def is_drawn(self) -> bool:
        """Whether the search itself drew the trial: neither imported nor a repeat."""
        return not self.attrs.keys() & {IMPORTED, REPEATS}

    @property
    def withdrawn(self) -> bool:
        """Whether the trial is queued but not to be run."""
        return self.trial.state == TrialState.WAITING and bool(self.attrs.get(WITHDRAWN))

    @property
    def queued(self) -> bool:
        """Whether the trial waits to be run."""
        return self.trial.state == TrialState.WAITING and not self.withdrawn

    @property
    def counts(self) -> bool:
        """Whether the trial counts in the budget of trials: finished, running or queued."""
        return self.trial.state != TrialState.FAIL and self.is_drawn and not self.withdrawn

    @property
    def began(self) -> bool:
        """Whether the trial ever had a worker."""
        return "worker" in self.attrs

    @property
    def worker(self) -> Worker:
        """The worker that runs the trial, or ran it last; an empty record if there is none."""
        return _record(Worker, self.attrs.get("worker")) or Worker()

    @property
    def interruptions(self) -> list[Interruption]:
        """When and why the trial lost its worker, oldest first."""
        return [_record(Interruption, one) or Interruption() for one in self.get("interruptions", list) or []]

    def interrupted(self, why: str, died: bool = False) -> dict[str, Any]:
        """The attributes to store when the trial loses its worker."""
        last = Interruption(why, self.worker.host, self.worker.pid, died)
        return {"worker": {}, "interruptions": [asdict(one) for one in (*self.interruptions, last)]}

    @property
    def cell(self) -> Cell | None:
        """The cell of a comparison that the trial runs. None: the study is not a comparison."""
        return _record(Cell, self.attrs.get("cell"))

    @property
    def seeds(self) -> list[Any]:
        """Results per seed, for the Wilcoxon pruner."""
        return self.get("seeds", list) or []

    @property
    def folder(self) -> Path:
        """The run folder."""
        return rebased(self.attrs.get("folder", ""))

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the packages that ran the trial."""
        return self.get("versions", dict) or {}

    @property
    def steps(self) -> int:
        """Training steps."""
        return self.get("steps", int) or 0

    @property
    def seconds(self) -> float:
        """Duration of the training in seconds."""
        return self.get("seconds", float) or 0.0

    @property
    def last_value(self) -> float | None:
        """The intermediate value that was reported last."""
        return None if self.trial.last_step is None else self.trial.intermediate_values[self.trial.last_step]

    def log_tail(self) -> list[str]:
        """The last lines of the log: from the run folder if this machine has it, else as stored when the trial failed."""
        try:
            return last_lines(self.folder / "log.txt")
        except OSError:
            return list(map(str, self.get("log", list) or ()))


def last_lines(log: Path) -> list[str]:
    """The last lines of a log file, without passwords."""
    return scrub(log.read_text(errors="replace")).splitlines()[-LOG_LINES:]


def _record(kind: type[Value], values: Any) -> Value | None:
    """A record from stored values; None if one is missing or has another type. Unknown values are ignored."""
    if not isinstance(values, dict):
        return None
    try:
        return _adapter(kind).validate_python(values)  # type: ignore[no-any-return]
    except ValidationError:
        return None


_adapter: Any = cache(TypeAdapter)


def plain_spec(study: optuna.Study) -> dict[str, Any]:
    """The stored specification of a study as plain values; empty if subnet-search did not create it."""
    try:
        found = json.loads(study.user_attrs.get("spec", "{}"))
    except (ValueError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def task_metrics(study: optuna.Study) -> TaskMetrics:
    """The metrics of the task of a study's runs."""
    return TaskMetrics.read(study.user_attrs.get(TASK))


def searched_trials(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that the search drew: neither imported nor repeats."""
    return [trial for trial in trials if TrialRecord(trial).is_drawn]


def steps_spent(trials: Iterable[FrozenTrial]) -> int:
    """Training steps of all trials except imported ones, as counted in the study's budget of steps."""
    return sum(record.steps for record in map(TrialRecord, trials) if record.imported_from is None)
