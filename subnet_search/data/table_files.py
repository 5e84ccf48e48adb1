"""Read the columns of a csv or Parquet file."""

import csv
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from subnet_search.core.errors import UserError, cut, guarded, shown

MISSING = {"", "na", "n/a", "nan", "null", "?"}
DELIMITERS = ",;\t"
MOST_TEXTS = 1000  # different values of a text column
MOST_MIXED = 50  # and of one in which some values are numbers: with more, the others are taken for mistakes


@dataclass(frozen=True)
class Column:
    """The values of a column: numbers float64 (N,), or texts."""

    numbers: np.ndarray | None
    texts: tuple[str, ...] = ()

    @property
    def first_text(self) -> int:
        """The first row (from 0) that is no number."""
        return next(row for row, text in enumerate(self.texts) if _number(text) is None)


Table = Mapping[str, Column]


def read_table(path: Path, kind: str | None = None) -> Table:
    """The columns of a csv or Parquet file. Raises UserError for missing values, with row (from 1) and column.

    kind: "csv" or "parquet"; default: the ending of the name.
    """
    if not path.is_file():
        raise UserError(f"no such data file: {path}")
    with guarded(f"{path} is not a readable table"):
        found = _parquet(path) if (kind or path.suffix[1:]) == "parquet" else _csv(path)
    if not found or not all(len(column.texts) or column.numbers is not None for column in found.values()):
        raise UserError(f"{path} has no rows")
    return found


def _csv(path: Path) -> Table:
    with open(path, encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        file.seek(0)
        rows = csv.reader(file, delimiter=max(DELIMITERS, key=header.count))
        names = [name.strip() for name in next(rows, [])]
        if not any(names):
            raise UserError(f"{path} is empty")
        _check_names(path, names)
        filled = [row for row in rows if row]
    for number, row in enumerate(filled, 1):
        if len(row) != len(names):
            raise UserError(f"{path}: row {number} has {len(row)} values, and the header {len(names)} columns")
    columns = zip(*filled, strict=True) if filled else itertools.repeat((), len(names))
    return {name: _column(path, name, [text.strip() for text in texts]) for name, texts in zip(names, columns, strict=True)}


def _column(path: Path, name: str, texts: list[str]) -> Column:
    """A column of texts, as numbers if all of them are."""
    for row, text in enumerate(texts, 1):
        if text.lower() in MISSING:
            raise UserError(
                f"{path}: row {row}, column {name!r}: a missing value ({shown(text)}): fill it in or remove the row"
            )
    values = [_number(text) for text in texts]
    if texts and None not in values:
        return Column(np.array(values, np.float64))
    distinct, mixed = len(set(texts)), any(value is not None for value in values)
    if distinct > (MOST_MIXED if mixed else MOST_TEXTS):
        row = next(row for row, value in enumerate(values, 1) if value is None)
        why = f"is {shown(texts[row - 1])}, and other rows hold numbers" if mixed else f"{distinct:,} different texts"
        at = f"row {row}, column {name!r}" if mixed else f"the column {name!r} has"
        raise UserError(f"{path}: {at} {why}: correct it or remove the column")
    return Column(None, tuple(texts))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _check_names(path: Path, names: Sequence[str]) -> None:
    for name in names:
        if not name or names.count(name) > 1:
            raise UserError(f"{path}: the header has {'a column without a name' if not name else f'{name!r} more than once'}")


def _parquet(path: Path) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("parquet:FILE needs the package pyarrow: pip install 'subnet-search[tables]'") from error
    read = pyarrow.parquet.read_table(path)
    _check_names(path, read.column_names)
    found = {}
    for name in read.column_names:
        values = read[name].combine_chunks()
        if values.null_count:
            row = values.is_null().to_pylist().index(True) + 1
            raise UserError(f"{path}: row {row}, column {name!r}: a missing value: fill it in or remove the row")
        kind = values.type
        if pyarrow.types.is_boolean(kind) or pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind):
            numbers = values.to_numpy(zero_copy_only=False).astype(np.float64)
            if np.isnan(numbers).any():
                row = int(np.isnan(numbers).argmax()) + 1
                raise UserError(f"{path}: row {row}, column {name!r}: a missing value (nan): fill it in or remove the row")
            found[name] = Column(numbers) if len(numbers) else Column(None)
            continue
        if pyarrow.types.is_dictionary(kind):
            values = values.dictionary_decode()
        if not (pyarrow.types.is_string(values.type) or pyarrow.types.is_large_string(values.type)):
            raise UserError(f"{path}: the column {name!r} is {cut(str(kind))}, which is neither numbers nor text")
        texts = values.to_pylist()
        if len(set(texts)) > MOST_TEXTS:
            raise UserError(f"{path}: the column {name!r} has {len(set(texts)):,} different texts: remove the column")
        found[name] = Column(None, tuple(texts))
    return found
