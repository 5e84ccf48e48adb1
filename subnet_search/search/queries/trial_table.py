"""The trials of a study as a table, with column lookup, filters and sorting."""

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from subnet_search.core.documents import read_text
from subnet_search.core.errors import UserError, unknown
from subnet_search.core.parameter_names import by_key
from subnet_search.search.queries.queries import moment
from subnet_search.search.storage.ranking import is_feasible, objectives, parameters
from subnet_search.search.storage.read import Snapshot
from subnet_search.search.storage.records import IMPORTED, TrialRecord

FILTER = re.compile(r"\s*([^<>=!~]+?)\s*(<=|>=|!=|==|=|<|>|~)\s*(.*?)\s*")
ORDERS: Mapping[str, Callable[[Any, Any], bool]] = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}

Row = dict[str, Any]


def _by_key(trial: FrozenTrial) -> Row:
    return by_key(parameters(trial))


def flat_rows(study: Snapshot, named: Callable[[FrozenTrial], Row] = _by_key) -> list[Row]:
    """One flat row per trial: number, state, values, scalar attributes, and parameters, by key or as `named` returns them."""
    names = objectives(study)
    return [_flat_row(trial, names, named(trial)) for trial in study.get_trials()]


def columns_of(rows: Iterable[Row]) -> list[str]:
    """The columns in which any row has a value."""
    return list(dict.fromkeys(key for row in rows for key, value in row.items() if value is not None))


def find_column(name: str, columns: Sequence[str]) -> str:
    """The column with this name, or the only one that ends with it (lr for recipe.lr). Raises UserError for none or several."""
    if name in columns:
        return name
    ending = [column for column in columns if column.endswith(f".{name}")]
    if len(ending) > 1:
        raise UserError(f"{name!r} is ambiguous: {' or '.join(ending)}")
    if not ending:
        raise unknown("column", name, columns)
    return ending[0]


def select(rows: Sequence[Row], conditions: Sequence[str], columns: Sequence[str]) -> list[Row]:
    """The rows that satisfy all conditions. Raises UserError for an invalid condition or an unknown column."""
    tests = [_condition(text, columns, rows) for text in conditions]
    return [row for row in rows if all(test(row) for test in tests)]


def arrange(rows: Sequence[Row], column: str, descending: bool = False) -> list[Row]:
    """The rows sorted by a column, those without a value last."""
    present = [row for row in rows if row.get(column) is not None]
    present.sort(key=lambda row: (isinstance(row[column], str), row[column]), reverse=descending)
    return [*present, *(row for row in rows if row.get(column) is None)]


def _flat_row(trial: FrozenTrial, names: Sequence[str], params: Row) -> Row:
    record, constraints = TrialRecord(trial), trial.constraints
    feasible = is_feasible(trial) if constraints else None
    worker = record.worker
    return {
        "number": trial.number,
        "state": trial.state.name,
        **dict(zip(names, trial.values or (), strict=False)),
        **{
            key: value
            for key, value in record.attrs.items()
            if isinstance(value, bool | int | float | str) and key not in (*names, IMPORTED)
        },
        **params,
        **({"achieved_density": record.get("density", float)} if record.cell else {}),
        "imported": record.imported_from,
        "interruptions": len(record.interruptions),
        "feasible": None if feasible and trial.state != TrialState.COMPLETE else feasible,  # not all are measured yet
        "last": record.last_value,
        "reported": trial.last_step,
        "worker": f"{worker.host} {worker.pid}" if worker.pid else None,
        "started": moment(trial.datetime_start),
        "completed": moment(trial.datetime_complete),
    }


def _condition(text: str, columns: Sequence[str], rows: Sequence[Row]) -> Callable[[Row], bool]:
    found = FILTER.fullmatch(text)
    if found is None:
        form = 'a column, one of <= < >= > = != ~ (contains), and a value, as in "density<=0.1"'
        raise UserError(f"a filter is {form}; got {text!r}")
    column, sign, wanted = find_column(found[1], columns), found[2], _parsed(found[3])
    if sign == "~":
        return lambda row: row.get(column) is not None and found[3].lower() in str(row[column]).lower()
    if sign in ("=", "==", "!="):
        return lambda row: _same(row.get(column), wanted, found[3]) == (sign != "!=")
    kind: Any = str if any(isinstance(row.get(column), str) for row in rows) else int | float
    if not isinstance(wanted, kind):
        wanted = found[3] if kind is str else None
    if wanted is None:
        raise UserError(f"the filter {text!r}: {column} is a number, got {found[3]!r}")
    return lambda row: isinstance(row.get(column), kind) and ORDERS[sign](row[column], wanted)


def _same(value: Any, wanted: Any, text: str) -> bool:
    if isinstance(value, str):  # texts are compared as texts: a hash can look like a number
        return value.lower() == text.lower()
    return bool(value == wanted)


def _parsed(text: str) -> Any:
    """The value of a text: a number, a bool, None, or the text itself."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        value = read_text(text, "the filter").values
    except UserError:
        return text
    return None if text == "none" else value if isinstance(value, bool) else text
