"""What we store about studies and trials: their user attributes, by name and type.

Light: whoever only looks at a study imports no torch. An attribute of a type that no version of ours stores, in a file from
elsewhere, counts as absent.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.trial import FrozenTrial, TrialState
from pydantic import TypeAdapter, ValidationError

from subnet_search.search.storage.study_folder import rebased

IMPORTED = "known"  # of a result that was imported: its source. Known to the sampler from the start, and no part of the budget
REPEATS = "repeats"  # of a trial that repeats another on a fresh seed: the number of that one
RETRIES = "retries"  # of a trial that runs a failed one again: the number of that one
WITHDRAWN = "withdrawn"  # of a trial that waits, and is not to be run
STOPPED = "stopped"  # of a study whose workers are to begin no more trials: true, or
NOW = "now"  # when they are to interrupt those under way too
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)

Value = TypeVar("Value")


@dataclass(frozen=True)
class Worker:
    """The process that runs a trial, or ran it last. All is None for a trial that has none."""

    host: str | None = None
    pid: int | None = None
    token: str | None = None  # no other worker, of any process, has it
    started: str | None = None  # when the process began, in ticks since the machine did
    boot: str | None = None  # of the machine, from one start to the next
    namespace: int | None = None  # of the process numbers

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
    """The place of a trial in a comparison."""

    arm: str
    density: float
    seed: int
    values: dict[str, Any]  # keys of the run that it changes, its seed among them


class TrialRecord:
    """The user attributes of a trial."""

    __slots__ = ("attrs", "trial")

    def __init__(self, trial: FrozenTrial) -> None:
        self.trial, self.attrs = trial, trial.user_attrs

    def get(self, key: str, kind: type[Value]) -> Value | None:
        """An attribute, if it is there and of a type. A bool is no number, and every other number is a float."""
        value = self.attrs.get(key)
        if isinstance(value, bool) and kind is not bool:
            return None
        if kind is float and isinstance(value, int):
            return float(value)  # type: ignore[return-value]
        return value if isinstance(value, kind) else None

    @property
    def imported_from(self) -> str | None:
        """The study or file that the result was imported from."""
        return self.get(IMPORTED, str)

    @property
    def repeats(self) -> int | None:
        """The number of the trial that this one repeats on another seed."""
        return self.get(REPEATS, int)

    @property
    def retries(self) -> int | None:
        """The number of the failed trial that this one runs again."""
        return self.get(RETRIES, int)

    @property
    def is_drawn(self) -> bool:
        """Whether the search itself drew the trial: it is not imported, and repeats no other."""
        return not self.attrs.keys() & {IMPORTED, REPEATS}

    @property
    def withdrawn(self) -> bool:
        """Whether the trial waits, and is not to be run."""
        return self.trial.state == TrialState.WAITING and bool(self.attrs.get(WITHDRAWN))

    @property
    def counts(self) -> bool:
        """Whether the trial counts in the budget of trials: finished, or still to be."""
        return self.trial.state != TrialState.FAIL and self.is_drawn and not self.withdrawn

    @property
    def began(self) -> bool:
        """Whether the trial ever had a worker."""
        return "worker" in self.attrs

    @property
    def worker(self) -> Worker:
        return _made(Worker, self.attrs.get("worker")) or Worker()

    @property
    def beat(self) -> int | None:
        """Counted up by the worker as a sign of life."""
        return self.get("beat", int)

    @property
    def interruptions(self) -> list[Interruption]:
        found = self.get("interruptions", list) or []
        return [_made(Interruption, one) or Interruption() for one in found]

    def interrupted(self, why: str, died: bool = False) -> dict[str, Any]:
        """What is stored of the trial once its worker has lost it."""
        last = Interruption(why, self.worker.host, self.worker.pid, died)
        return {"worker": {}, "interruptions": [asdict(one) for one in (*self.interruptions, last)]}

    @property
    def config(self) -> dict[str, Any] | None:
        """The complete configuration of the run, as plain values."""
        return self.get("config", dict)

    @property
    def cell(self) -> Cell | None:
        return _made(Cell, self.attrs.get("cell"))

    @property
    def seed(self) -> int | None:
        return self.get("seed", int)

    @property
    def seeds(self) -> list[Any]:
        """What each seed came to, of a trial that a pruner compares by its seeds."""
        return self.get("seeds", list) or []

    @property
    def folder(self) -> Path:
        """The run folder."""
        return rebased(self.attrs.get("folder", ""))

    @property
    def versions(self) -> dict[str, str]:
        """Of the packages that ran the trial."""
        return self.get("versions", dict) or {}

    @property
    def reason(self) -> str | None:
        """Why the trial failed or was pruned."""
        return self.get("reason", str)

    @property
    def sha256(self) -> str | None:
        """The hash of the subnetwork's effective weights."""
        return self.get("sha256", str)

    @property
    def key(self) -> str | None:
        """What stands for the configuration, when duplicates are looked for."""
        return self.get("key", str)

    @property
    def steps(self) -> int:
        """Training steps."""
        return self.get("steps", int) or 0

    @property
    def seconds(self) -> float:
        return self.get("seconds", float) or 0.0


def _made(kind: type[Value], values: Any) -> Value | None:
    """A record out of stored values; None when one is missing or of another type. Values that it does not know are left out."""
    if not isinstance(values, dict):
        return None
    known = {field.name: values[field.name] for field in fields(kind) if field.name in values}  # type: ignore[arg-type]
    try:
        return _adapter(kind).validate_python(known)  # type: ignore[no-any-return, arg-type]
    except ValidationError:
        return None


@cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def plain_spec(study: optuna.Study) -> dict[str, Any]:
    """The specification that a study was made with, as plain values; empty for a study that is none of ours."""
    try:
        found = json.loads(study.user_attrs.get("spec", "{}"))
    except (ValueError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def searched_trials(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that the search itself drew: no repeats, and nothing imported."""
    return [trial for trial in trials if TrialRecord(trial).is_drawn]


def steps_spent(trials: Iterable[FrozenTrial]) -> int:
    """Training steps of all trials but those that were imported: what counts in a study's budget of steps."""
    return sum(record.steps for record in map(TrialRecord, trials) if record.imported_from is None)
