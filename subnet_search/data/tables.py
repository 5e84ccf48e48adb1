"""Tables: numbers are inputs, text is one-hot, and one or more columns are the labels."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from subnet_search.core.errors import UserError, shown, unknown
from subnet_search.data.batch import Labels
from subnet_search.data.given import first_copies
from subnet_search.data.items import Items
from subnet_search.data.parts import files_of
from subnet_search.data.sources import Data, DataSpec, Encoding, assemble, reads
from subnet_search.data.split import Split
from subnet_search.data.table_files import Column, Table, read_table

Columns = Mapping[str, tuple[Any, ...]]
"""As `Encoding.columns`."""


@reads("csv", "parquet")
def table(spec: DataSpec, labels: Labels, all_is_test: bool) -> Data:
    """A table, or the tables train, val and test in a folder. How it is encoded is stored in the spec of the data."""
    train, val, test = files_of(spec.path, str(spec.kind))
    found = read_table(train, spec.kind)
    if spec.encoding:
        found = _matched(train, found, spec.encoding.columns)
    targets = _targets(spec, train, found)
    inputs = {name: column for name, column in found.items() if name not in targets}
    if not inputs:
        raise UserError(f"{train} has no columns for the inputs, only {', '.join(targets)}")
    known = spec.encoding or Encoding(labels=_classes(found, targets) if labels.classes else None)

    def read(path: Path, found: Table | None = None) -> Split:
        found = read_table(path, spec.kind) if found is None else found
        return Split(_raw(path, found, inputs), _labels(path, found, targets, known.labels, labels))

    raw = read(train, found)
    whole = all_is_test and val is None and test is None
    data = assemble(
        spec,
        raw,
        raw if whole else None if val is None else read(val),
        lambda: raw if whole else None if test is None else read(test),
        known.labels,
        kind=labels,
        groups=first_copies(raw.inputs),
    )
    if not spec.encoding:
        assert isinstance(data.train, Split)
        known = known.model_copy(update={"columns": _fit(inputs, data.train.inputs, spec.standardize)})

    def encoded(split: Split | Items | None) -> Split:
        assert isinstance(split, Split)
        return replace(split, inputs=_encoded(split.inputs, inputs, known.columns))

    fitted = spec.model_copy(update={"encoding": known, "target": targets})
    last = lambda: None if (split := data.test()) is None else encoded(split)  # noqa: E731
    return replace(data, train=encoded(data.train), val=encoded(data.val), spec=fitted, _test=last)


def encode(path: Path, columns: Columns) -> Tensor:
    """The inputs (N, columns) float32 of a table, encoded as in a run. Its other columns are not used."""
    found = _matched(path, read_table(path), columns)
    inputs = {name: found[name] for name in columns}
    return _encoded(_raw(path, inputs, inputs), inputs, columns)


def _targets(spec: DataSpec, path: Path, found: Table) -> tuple[str, ...]:
    """The columns of the labels. Raises UserError for a column that is not there."""
    targets = (list(found)[-1],) if spec.target is None else (spec.target,) if isinstance(spec.target, str) else spec.target
    for target in targets:
        if target not in found:
            raise unknown("column", target, found, f"data.target, in {path}")
    return targets


def _classes(found: Table, targets: tuple[str, ...]) -> tuple[str, ...] | None:
    """The classes of labels that are text, sorted; None where labels are numbers."""
    if len(targets) != 1 or found[targets[0]].numbers is not None:
        return None
    return tuple(sorted(set(found[targets[0]].texts)))


def _labels(path: Path, found: Table, targets: tuple[str, ...], classes: Sequence[str] | None, kind: Labels) -> Tensor:
    """Class indices (N,), or other labels (N,) or (N, targets) float32."""
    for target in targets:
        if target not in found:
            raise unknown("column", target, found, str(path))
    if classes is not None:
        [target] = targets
        places = {text: index for index, text in enumerate(classes)}
        for row, text in enumerate(_texts(found[target]), 1):
            if text not in places:
                raise UserError(f"{path}: row {row}, column {target!r}: {shown(text)} is no class of the training items")
        return torch.tensor([places[text] for text in _texts(found[target])])
    numbers = [found[target].numbers for target in targets]
    if None in [None if column is None else 0 for column in numbers]:
        text = next(target for target in targets if found[target].numbers is None)
        raise UserError(f"{path}: the column {text!r} is text, and the labels of this task are numbers")
    values = torch.from_numpy(np.stack([column for column in numbers if column is not None], 1))
    values = values[:, 0] if len(targets) == 1 else values
    if kind.classes and not values.equal(values.round()):
        raise UserError(f"{path}: the column {targets[0]!r} is not whole numbers (class indices): set task, such as regression")
    return values.long() if kind.classes else values.float()


def _raw(path: Path, found: Table, like: Table) -> Tensor:
    """The columns of `like` as float64 (N, columns); of a text the index in those of `like`, sorted, and -1 for others."""
    columns = []
    for name, expected in like.items():
        if name not in found:
            raise unknown("column", name, found, str(path))
        numbers = found[name].numbers
        if expected.numbers is None:
            places = {text: index for index, text in enumerate(sorted(set(expected.texts)))}
            numbers = np.array([places.get(text, -1) for text in _texts(found[name])], np.float64)
        elif numbers is None:
            raise _holds_text(path, name, found[name])
        columns.append(torch.from_numpy(numbers))
    return torch.stack(columns, 1)


def _fit(inputs: Table, raw: Tensor, standardize: bool) -> dict[str, tuple[float, float] | tuple[str, ...]]:
    """How to encode each column, from the training items: raw (N, columns) float64."""
    columns: dict[str, tuple[float, float] | tuple[str, ...]] = {}
    for values, (name, column) in zip(raw.unbind(1), inputs.items(), strict=True):
        if column.numbers is None:
            texts = sorted(set(column.texts))
            columns[name] = tuple(texts[int(index)] for index in values.unique().tolist())
        else:
            std = float(values.std(correction=0))
            columns[name] = (float(values.mean()), std if std > 0 else 1.0) if standardize else (0.0, 1.0)
    return columns


def _encoded(raw: Tensor, inputs: Table, columns: Columns) -> Tensor:
    """float32 (N, encoded columns) from `_raw` of `inputs`."""
    found, places = [], list(inputs)
    for name, known in columns.items():
        values = raw[:, places.index(name)]
        if isinstance(known[0], str):
            texts = sorted(set(inputs[name].texts))
            index = torch.tensor([known.index(text) if text in known else -1 for text in texts] + [-1])  # the last: of -1
            found.append(index[values.long()][:, None] == torch.arange(len(known)))
        else:
            mean, std = known
            found.append(((values - mean) / std)[:, None])
    return torch.cat([part.float() for part in found], 1)


def _matched(path: Path, found: Table, columns: Columns) -> Table:
    """A table whose columns are texts or numbers as in training. Raises UserError where they cannot be, or are not there."""
    texts = {}
    for name, known in columns.items():
        if name not in found:
            raise unknown("column", name, found, str(path))
        if isinstance(known[0], str):
            texts[name] = Column(None, _texts(found[name]))
        elif found[name].numbers is None:
            raise _holds_text(path, name, found[name])
    return {**found, **texts}


def _texts(column: Column) -> tuple[str, ...]:
    return column.texts if column.numbers is None else tuple(f"{value:.15g}" for value in column.numbers.tolist())


def _holds_text(path: Path, name: str, column: Column) -> UserError:
    text = column.texts[column.first_text]
    return UserError(f"{path}: row {column.first_text + 1}, column {name!r}: {shown(text)} is no number, as in training")
