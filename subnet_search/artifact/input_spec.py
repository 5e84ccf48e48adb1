"""Nested inputs of a network in plain values, random inputs like them, and a file of a few of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from subnet_search.core.nested import tensors_in
from subnet_search.core.tensor_files import load_tensors, save_tensors

Spec = dict[str, Any] | list[Any]
"""Of a tensor: `shape` of one item, `dtype`, `low` and `high`. Of a mapping: {"keys": {name: spec}}; of a tuple: a list."""


def spec_of(inputs: Any) -> Spec:
    """The spec of inputs, with the range of their values."""
    if isinstance(inputs, Tensor):
        dtype = str(inputs.dtype).removeprefix("torch.")
        if inputs.dtype == torch.bool:  # of masks, most of which are the same
            low = high = float(inputs.float().mean() > 0.5)
        else:
            low, high = (float(inputs.min()), float(inputs.max())) if inputs.numel() else (0.0, 0.0)
        return {"shape": list(inputs.shape[1:]), "dtype": dtype, "low": low, "high": high}
    if isinstance(inputs, Mapping):
        return {"keys": {str(name): spec_of(value) for name, value in inputs.items()}}
    return [spec_of(value) for value in inputs]


def random_inputs(spec: Spec, batch: int, rng: torch.Generator) -> Any:
    """Inputs of `batch` items like a spec, uniform over the range."""
    if isinstance(spec, list):
        return tuple(random_inputs(one, batch, rng) for one in spec)
    if "keys" in spec:
        return {name: random_inputs(one, batch, rng) for name, one in spec["keys"].items()}
    return uniform((batch, *spec["shape"]), getattr(torch, spec["dtype"]), spec["low"], spec["high"], rng)


def uniform(shape: tuple[int, ...], dtype: torch.dtype, low: float, high: float, rng: torch.Generator) -> Tensor:
    """Values uniform over the range: numbers, or whole numbers."""
    if dtype.is_floating_point:
        return (low + (high - low) * torch.rand(shape, generator=rng)).to(dtype)
    return torch.randint(int(low), int(high) + 1, shape, generator=rng).to(dtype)


def save_examples(path: Path, inputs: Any) -> None:
    """Save a few inputs of a run, as passed to the network, for checking exports."""
    save_tensors(path, {f"inputs.{name}" if name else "inputs": tensor for name, tensor in tensors_in(inputs)}, {"format": 2})


def load_examples(path: Path, spec: Spec) -> Any:
    """The inputs in a file. Raises KeyError or UserError when it is missing or its inputs are not like the spec."""
    return _restored(spec, load_tensors(path, "file of inputs")[0], "inputs")


def _restored(spec: Spec, tensors: Mapping[str, Tensor], name: str) -> Any:
    if isinstance(spec, list):
        return tuple(_restored(one, tensors, f"{name}.{index}") for index, one in enumerate(spec))
    if "keys" in spec:
        return {key: _restored(one, tensors, f"{name}.{key}") for key, one in spec["keys"].items()}
    found = tensors[name]
    if not len(found) or list(found.shape[1:]) != spec["shape"] or found.dtype != getattr(torch, spec["dtype"]):
        raise KeyError(name)
    return found
