"""Nested inputs of a network in plain values, random inputs like them, and a file of a few of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from subnet_search.core.errors import UserError, shown
from subnet_search.core.nested import length_of, tensors_in
from subnet_search.core.tensor_files import load_tensors, save_tensors

Spec = dict[str, Any] | list[Any]
"""Of a tensor: `shape` of one item, `dtype`, `low` and `high`; of a mask also the values of one item, `mask`. Of a mapping:
{"keys": {name: spec}}; of a tuple: a list; of anything else, the same for all items: {"value": value}."""

LARGEST_MASK = 4096  # values of one item


def check_rows(inputs: Any, name: str) -> None:
    """Raise UserError unless every tensor has one row for each item, and everything else is a plain value.

    name: of the network, for the message.
    """
    rows = length_of(inputs)
    if not any(True for _ in tensors_in(inputs)):
        raise UserError(f"{name} is called with no tensors, but with {_kinds(inputs)}: pass tensors, nested or not")
    for path, tensor in tensors_in(inputs):
        if not tensor.dim() or len(tensor) != rows:
            raise UserError(
                f"{name} is called with a tensor {path} of shape {tuple(tensor.shape)} for {rows} items: every tensor needs "
                "one row for each item; make others in the forward pass, or store them as buffers of the network"
            )
    spec_of(inputs)


def _kinds(inputs: Any) -> str:
    values = inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, tuple | list) else [inputs]
    return ", ".join(type(value).__name__ for value in values) or "nothing"


def spec_of(inputs: Any) -> Spec:
    """The spec of inputs, with the range of their values. Raises UserError for what can be no input."""
    if isinstance(inputs, Tensor):
        dtype = str(inputs.dtype).removeprefix("torch.")
        low, high = (float(inputs.min()), float(inputs.max())) if inputs.numel() else (0.0, 0.0)
        spec = {"shape": list(inputs.shape[1:]), "dtype": dtype, "low": low, "high": high}
        return {**spec, "mask": inputs[0].int().tolist()} if _is_mask(inputs, low, high) else spec
    if isinstance(inputs, Mapping):
        return {"keys": {str(name): spec_of(value) for name, value in inputs.items()}}
    if isinstance(inputs, tuple | list):
        return [spec_of(value) for value in inputs]
    if inputs is None or isinstance(inputs, bool | int | float | str):
        return {"value": inputs}
    raise UserError(f"an input of a network must be a tensor, a number or a text, nested or not, got {shown(inputs)}")


def _is_mask(inputs: Tensor, low: float, high: float) -> bool:
    """Whether all values are 0 or 1: random ones could mask all of an item."""
    return not inputs.is_floating_point() and low >= 0 and high <= 1 and 0 < inputs[0].numel() <= LARGEST_MASK


def random_inputs(spec: Spec, batch: int, rng: torch.Generator) -> Any:
    """Inputs of `batch` items like a spec, uniform over the range; a mask is the same for all of them."""
    if isinstance(spec, list):
        return tuple(random_inputs(one, batch, rng) for one in spec)
    if "keys" in spec:
        return {name: random_inputs(one, batch, rng) for name, one in spec["keys"].items()}
    if "value" in spec:
        return spec["value"]
    shape, dtype = (batch, *spec["shape"]), getattr(torch, spec["dtype"])
    if "mask" in spec:
        return torch.tensor(spec["mask"]).to(dtype).expand(shape).clone()
    return uniform(shape, dtype, spec["low"], spec["high"], rng)


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
    if "value" in spec:
        return spec["value"]
    found = tensors[name]
    if not len(found) or list(found.shape[1:]) != spec["shape"] or found.dtype != getattr(torch, spec["dtype"]):
        raise KeyError(name)
    return found
