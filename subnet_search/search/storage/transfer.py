"""A study as one JSON file, without pickle: out of one storage, into another, or for any other program to read.

The file holds all of a study but where it was stored: its name, directions and attributes (our spec among them), and
its trials. Numbers that JSON does not have stand as `{"non_finite": "nan"}`. A SHA-256 over the study tells a damaged file.
"""

import hashlib
import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from pydantic import Field, NonNegativeInt, TypeAdapter
from sqlalchemy import select
from typing_extensions import TypedDict

from subnet_search.core.documents import read_json
from subnet_search.core.errors import UserError, reading
from subnet_search.core.tensor_files import write_atomically
from subnet_search.search.storage.connect import rdb
from subnet_search.search.storage.locks import exclusive
from subnet_search.search.storage.optuna_private import METRIC_NAMES, models
from subnet_search.search.storage.read import read_trials
from subnet_search.search.storage.records import TrialRecord
from subnet_search.search.storage.retry import guarded, patiently
from subnet_search.search.storage.study_folder import new_folder
from subnet_search.search.storage.write import attributes, write_rows, write_trials

FORMAT, VERSION = "subnet-search study", 1
NOTE = re.compile(r"(?<=^dashboard:)\d+(?=:)")  # a dashboard's note on a trial is the study's, under the trial's id
ELSEWHERE = "its study was imported, and its worker is elsewhere"

log = logging.getLogger(__name__)


class _Trial(TypedDict):
    """A trial as it stands in a file."""

    number: int
    state: str
    values: list[float] | None
    params: dict[str, Any]
    distributions: dict[str, NonNegativeInt]
    user_attrs: dict[str, Any]
    system_attrs: dict[str, Any]
    intermediate_values: dict[str, float]
    datetime_start: str | None
    datetime_complete: str | None


class _Study(TypedDict):
    """A study as it stands in a file."""

    name: Annotated[str, Field(min_length=1, max_length=512)]  # so many letters has Optuna's column
    directions: Annotated[list[Literal["minimize", "maximize"]], Field(min_length=1)]
    metric_names: list[str] | None
    user_attrs: dict[str, Any]
    system_attrs: dict[str, Any]
    trials: list[_Trial]
    distributions: list[dict[str, Any]]


def export_study(study: optuna.Study) -> dict[str, Any]:
    """A study as plain values that JSON can hold."""
    trials, system = read_trials(study), study._storage.get_study_system_attrs(study._study_id)
    numbers = {str(trial._trial_id): str(trial.number) for trial in trials}
    seen: dict[BaseDistribution, int] = {}
    content = {
        "name": study.study_name,
        "directions": [direction.name.lower() for direction in study.directions],
        "metric_names": system.pop(METRIC_NAMES, None),
        "user_attrs": study.user_attrs,
        "system_attrs": {NOTE.sub(lambda id: numbers.get(id[0], id[0]), key): value for key, value in system.items()},
        "trials": [_plain(trial, seen) for trial in trials],
        "distributions": [json.loads(distribution_to_json(distribution)) for distribution in seen],
    }
    try:
        digest = _sha256(content)
    except ValueError:
        content = _finite(content)
        digest = _sha256(content)
    return {"format": FORMAT, "version": VERSION, "sha256": digest, "study": content}


def write_export(study: optuna.Study, path: str | Path) -> None:
    """Write a study to a file that `import_study` reads. Raises RunError when it cannot be written."""
    write_atomically(Path(path), _text(export_study(study)).encode())


def import_study(path: str | Path, storage: BaseStorage, name: str | None = None) -> optuna.Study:
    """A new study out of a file: whole, or not at all. Under its own name, or another.

    Trials that were under way wait for a worker here, and new run folders are its own. Raises UserError when the storage
    has a study of the name, or the file is missing, damaged or newer than this program.
    """
    content = _read(path)
    if (database := rdb(storage)) is None:
        raise UserError("a study can only be imported into a database")
    with guarded(str(path)):
        patiently(_store, database, name or content["name"], content)
        return optuna.load_study(study_name=name or content["name"], storage=storage)


def study_in(path: str | Path) -> optuna.Study:
    """The study in a file, in memory, exactly as it was. Raises UserError as `import_study` does."""
    content, storage = _read(path), InMemoryStorage()
    with guarded(str(path)):
        study = optuna.create_study(study_name=content["name"], storage=storage, directions=content["directions"])
        for key, value in content["user_attrs"].items():
            study.set_user_attr(key, value)
        for key, value in {METRIC_NAMES: content["metric_names"], **content["system_attrs"]}.items():
            storage.set_study_system_attr(study._study_id, key, value)
        for trial in content["trials"]:
            storage.create_new_trial(study._study_id, trial)
        return study


def _plain(trial: FrozenTrial, seen: dict[BaseDistribution, int]) -> dict[str, Any]:
    """A trial without its id; its distributions are places in the list of all that were `seen`."""
    return {
        "number": trial.number,
        "state": trial.state.name,
        "values": trial.values,
        "params": trial.params,
        "distributions": {name: seen.setdefault(one, len(seen)) for name, one in trial.distributions.items()},
        "user_attrs": trial.user_attrs,
        "system_attrs": trial.system_attrs,
        "intermediate_values": {str(step): value for step, value in trial.intermediate_values.items()},
        **{key: moment and moment.astimezone(UTC).isoformat() for key, moment in _times(trial).items()},
    }


def _trial(record: "_Trial", distributions: Sequence[BaseDistribution]) -> FrozenTrial:
    """Raises KeyError or ValueError for parameters that do not go with their distributions."""
    trial = FrozenTrial(
        trial_id=-1,
        number=record["number"],
        state=TrialState[record["state"]],
        value=None,
        values=record["values"],
        params=record["params"],
        distributions={name: distributions[place] for name, place in record["distributions"].items()},
        user_attrs=record["user_attrs"],
        system_attrs=record["system_attrs"],
        intermediate_values={int(step): value for step, value in record["intermediate_values"].items()},
        datetime_start=_local(record["datetime_start"]),
        datetime_complete=_local(record["datetime_complete"]),
    )
    for name in trial.params.keys() | trial.distributions.keys():
        trial.distributions[name].to_internal_repr(trial.params[name])
    return trial


def _local(moment: str | None) -> datetime | None:
    """Optuna shows naive local time."""
    return datetime.fromisoformat(moment).astimezone().replace(tzinfo=None) if moment else None


def _times(trial: FrozenTrial) -> dict[str, datetime | None]:
    return {"datetime_start": trial.datetime_start, "datetime_complete": trial.datetime_complete}


def _read(path: str | Path) -> dict[str, Any]:
    """The study in a file, with its trials as Optuna's."""
    with reading(path, "a study that `study export` wrote"):
        text = Path(path).read_text(encoding="utf-8")
        record = json.loads(text)
        if record["format"] != FORMAT:
            raise ValueError("another kind of file")
        if record["version"] > VERSION:
            raise UserError(f"{path} has format {record['version']}, made by a newer version: this one reads {VERSION}")
        if _sha256(record["study"]) != record["sha256"]:
            raise UserError(f"{path} is damaged: its content does not match its hash")
        if '"non_finite"' in text:
            record = json.loads(text, object_hook=_number)
        content = TypeAdapter(_Study).validate_python(record["study"])
        distributions = [json_to_distribution(json.dumps(one)) for one in content["distributions"]]
        if not isinstance(read_json(content["user_attrs"].get("spec", "{}"), "its specification"), dict):
            raise ValueError("its specification")
        trials = [_trial(trial, distributions) for trial in content["trials"]]
        for place, trial in enumerate(trials):
            count = 0 if trial.values is None else len(trial.values)
            if (
                trial.number != place
                or count not in (0, len(content["directions"]))
                or (trial.state.name == "COMPLETE") > count
            ):
                raise ValueError(f"the trial at place {place} is none of this study")
        return {**content, "trials": trials}


def _store(database: RDBStorage, name: str, content: Mapping[str, Any]) -> None:
    user, system = dict(content["user_attrs"]), dict(content["system_attrs"])
    if content["metric_names"] is not None:
        system[METRIC_NAMES] = content["metric_names"]
    if "spec" in user:
        user["spec"] = json.dumps(_rebased(json.loads(user["spec"]), name))
    if "folder" in user:  # two studies must never write to one
        user["folder"] = new_folder(name)
    with exclusive(database, name):
        if name in optuna.get_all_study_names(database):
            raise UserError(f"the storage has a study {name!r} already: give this one another name (--name)")
        with database.engine.begin() as connection:
            write_rows(connection, models.StudyModel, [{"study_name": name}])
            study_id = connection.scalars(select(models.StudyModel.study_id).filter_by(study_name=name)).one()
            added = write_trials(connection, study_id, [_waiting(trial) for trial in content["trials"]])
            ids = {str(number): str(id) for number, id in added.items()}
            system = {NOTE.sub(lambda number: ids.get(number[0], number[0]), key): value for key, value in system.items()}
            directions = [
                {"objective": place, "direction": StudyDirection[direction.upper()]}
                for place, direction in enumerate(content["directions"])
            ]
            for model, rows in (
                (models.StudyDirectionModel, directions),
                (models.StudyUserAttributeModel, attributes(user)),
                (models.StudySystemAttributeModel, attributes(system)),
            ):
                write_rows(connection, model, [{"study_id": study_id, **row} for row in rows])


def _rebased(spec: dict[str, Any], name: str) -> dict[str, Any]:
    """A specification under a name. A file does not decide on buckets, or folders elsewhere, that artifacts are written to."""
    kept = spec.get("artifacts")
    inside = isinstance(kept, str) and not Path(kept).expanduser().is_absolute() and ".." not in Path(kept).parts
    if kept is not None and not inside:
        where = kept if isinstance(kept, str) else "a bucket"
        log.warning("the study kept artifacts in %s, and here in no place, until `study run SPEC` gives it one", where)
        kept = None
    return {**spec, "name": name, "artifacts": kept}


def _waiting(trial: FrozenTrial) -> FrozenTrial:
    """A trial that was under way waits to go on; every other stays what it is, but that a result is no NaN."""
    if trial.state == TrialState.COMPLETE and any(map(math.isnan, trial.values)):
        trial.state, trial.values = TrialState.FAIL, None
        trial.user_attrs["reason"] = "its result is NaN: not a number that can be compared"
    if trial.state != TrialState.RUNNING:
        return trial
    trial.user_attrs |= TrialRecord(trial).interrupted(ELSEWHERE)
    trial.state = TrialState.WAITING
    return trial


def _text(value: Any) -> str:
    """JSON that every program reads, the same for equal values. Raises ValueError for numbers that JSON does not have."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _sha256(content: Any) -> str:
    """What tells a damaged file. Raises ValueError as `_text` does."""
    return hashlib.sha256(_text(content).encode()).hexdigest()


def _finite(value: Any) -> Any:
    match value:
        case float() if not math.isfinite(value):
            return {"non_finite": str(value)}
        case dict():
            return {key: _finite(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_finite(inner) for inner in value]
    return value


def _number(value: dict[str, Any]) -> Any:
    return float(value["non_finite"]) if value.keys() == {"non_finite"} else value
