"""Tensors in nested tuples, lists and mappings: what a DataLoader's batches and a network's inputs are made of."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from subnet_search.core.errors import shown


def map_tensors(change: Callable[[Tensor], Any], value: Any) -> Any:
    """A copy of `value` with every tensor replaced by `change(tensor)`. Mappings become dicts; other values stay."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(change, inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        parts = [map_tensors(change, inner) for inner in value]
        if hasattr(value, "_fields"):  # a named tuple
            return type(value)(*parts)
        return parts if isinstance(value, list) else tuple(parts)
    return value


def tensors_in(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in `value` with their paths, such as `0.mask`; the path of a bare tensor is empty."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping | tuple | list):
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from tensors_in(inner, f"{path}.{key}" if path else str(key))


def length_of(value: Any) -> int:
    """The length of the first dimension of the first tensor in `value`; 0 if there is none."""
    return next((len(tensor) for _, tensor in tensors_in(value) if tensor.dim()), 0)


def joined(values: Sequence[Any]) -> Any:
    """The batches in `values`, all of one structure, as one: tensors are concatenated, of other values the first is kept."""
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(list(values)) if first.dim() else first
    if isinstance(first, Mapping):
        return {key: joined([value[key] for value in values]) for key in first}
    if isinstance(first, tuple | list):
        parts = [joined(part) for part in zip(*values, strict=True)]
        return parts if isinstance(first, list) else tuple(parts)
    return first


def rows_of(value: Any, start: int, stop: int) -> Any:
    """The items from `start` to `stop` of a batch."""
    return map_tensors(lambda tensor: tensor[start:stop] if tensor.dim() else tensor, value)


def moved(value: Any, device: torch.device | str) -> Any:
    """`value` with every tensor on `device`."""
    return map_tensors(lambda tensor: tensor.to(device), value)


def shapes_in(value: Any) -> str:
    """The shapes and types of the tensors in `value`, for a message: `mask (2, 64) bool`."""
    found = [f"{path} {tuple(t.shape)} {_kind(t)}".strip() for path, t in tensors_in(value)]
    return ", ".join(found) or type(value).__name__


class Brief:
    """Base of dataclasses (with repr=False) whose repr is one line: tensors are shown by type and shape."""

    def __repr__(self) -> str:
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.repr}  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(f'{name}={_in_brief(value)}' for name, value in values.items())})"


def _in_brief(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{_kind(value)} {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return type(value).__name__ if len(value) > 4 else f"{{{', '.join(f'{k}: {_in_brief(v)}' for k, v in value.items())}}}"
    if isinstance(value, tuple | list) and any(True for _ in tensors_in(value)):
        return f"({', '.join(map(_in_brief, value))})"
    return " ".join(shown(value).split())


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
