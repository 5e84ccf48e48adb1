"""The trials of a study, or the runs of a comparison, as a pandas DataFrame."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial

from subnet_search.core.errors import UserError
from subnet_search.core.parameter_names import by_key, key_and_condition
from subnet_search.search.queries.trial_table import Row, columns_of, flat_rows
from subnet_search.search.storage.ranking import objectives
from subnet_search.search.storage.read import Snapshot
from subnet_search.search.storage.records import TrialRecord, plain_spec

if TYPE_CHECKING:
    import pandas

FIRST = ("number", "state", "method", "density", "seed")
LAST = ("feasible", "imported", "interruptions", "sha256", "reason", "started", "completed")
LEFT_OUT = ("arm", "trial", "beat", "key", "last", "reported", "worker", "folder")
OWN = "extractor."  # the keys of a method's hyperparameters begin with it


def to_dataframe(study: optuna.Study | Mapping[str, Any]) -> "pandas.DataFrame":
    """The trials of a study as a pandas DataFrame, one row each.

    study   any Optuna study, one of a comparison included, or what `compare` returned

    Columns: number, state (text), method, density (the one that was asked for) and seed; then the parameters that were
    searched, the objectives, metrics and other numbers that the runs recorded (val_accuracy, achieved_density, steps,
    seconds, ...), started and completed (times). A hyperparameter is one column for all methods that have it, such as
    drop_fraction; if they search it in domains of different kinds (numbers, whole numbers, choices), or if another column
    has the name, it is one column for each: rigl.every, set.every. Other parameters are named by their key: recipe.lr.

    Raises UserError if pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise UserError("to_dataframe needs pandas: pip install 'subnet-search[pandas]'") from error
    first, left_out = list(FIRST), set(LEFT_OUT)
    if isinstance(study, optuna.Study):
        seen = Snapshot(study, without=("log", "traceback"))
        named = _named(seen)
        rows = flat_rows(seen, named)
        if not plain_spec(seen):  # its trials need not have these
            first = [key for key in FIRST if key in ("number", "state") or key in columns_of(rows)]
            left_out.add("interruptions")
        first += [*columns_of(map(named, seen.get_trials())), *objectives(seen)]
    else:
        rows = [{"number": cell["trial"], "method": cell.get("arm"), **cell} for cell in study["cells"]]
    present = columns_of(rows)
    ordered = [*first, *(key for key in present if key not in LAST), *(key for key in LAST if key in present)]
    found = pandas.DataFrame(rows, columns=[key for key in dict.fromkeys(ordered) if key not in left_out])
    for column in found.columns.intersection(["started", "completed"]):
        found[column] = pandas.to_datetime(found[column])
    return found


def _named(study: Snapshot) -> Callable[[FrozenTrial], Row]:
    """A function that returns the method, density, seed and parameters of a trial by their columns."""
    trials = study.get_trials()
    taken = {*FIRST, *objectives(study), *(key for trial in trials for key in trial.user_attrs)}
    taken |= {"achieved_density", "started", "completed"}
    shared = _without_conflict(trials, taken)

    def columns(trial: FrozenTrial) -> Row:
        record, params = TrialRecord(trial), by_key(trial.params)
        run = (record.config or {}).get("extractor") or {}
        cell = record.cell
        method = cell.method if cell else params.get("extractor", params.get("method", run.get("name")))
        density = cell.density if cell else params.get(f"{OWN}density", params.get("density", run.get("density")))
        found = {"method": method, "density": density, "seed": params.get("seed", record.seed)}
        for key, value in params.items():
            name = key.removeprefix(OWN)
            if key in ("extractor", f"{OWN}density", "method", "density", "seed"):
                continue
            if name != key:
                found[name if name in shared else f"{method}.{name}"] = value
            else:
                found[f"params_{key}" if key in taken else key] = value
        return {**found, "achieved_density": trial.user_attrs.get("density")}

    return columns


def _without_conflict(trials: Iterable[FrozenTrial], taken: set[str]) -> set[str]:
    """The hyperparameters of methods that have domains of one kind, and whose name is not that of another column."""
    kinds: dict[str, set[type]] = {}
    others = set(taken)
    for trial in trials:
        for parameter, domain in trial.distributions.items():
            key, _ = key_and_condition(parameter)
            if key.startswith(OWN):
                kinds.setdefault(key.removeprefix(OWN), set()).add(type(domain))
            else:
                others.add(key)
    return {name for name, found in kinds.items() if len(found) == 1 and name not in others}
