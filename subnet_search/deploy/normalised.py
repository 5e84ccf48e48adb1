"""Normalisation of inputs, as a description and as a module in front of the network."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from subnet_search.artifact.input_spec import Spec
from subnet_search.artifact.subnetwork import Origin
from subnet_search.core.errors import UserError


class Normalised(nn.Module):
    """A network that first normalises its inputs: images (batch, channels, height, width) scaled to 0..1.

    mean, std: one number for each channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        device = next((parameter.device for parameter in network.parameters()), None)
        self.register_buffer("mean", torch.tensor(mean, device=device).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, device=device).view(-1, 1, 1))
        self.network = network
        self.train(network.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x - self.mean) / self.std)  # type: ignore[no-any-return]


def statistics(origin: Origin) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and std of a run's images. Raises UserError when inputs are not one tensor, or were not normalised."""
    if origin.input_spec is not None:
        raise UserError("normalise: this network does not take one tensor of images, so what is normalised is not known")
    if origin.mean is None or origin.std is None:
        raise UserError("normalise: the inputs of this run were not normalised")
    return origin.mean, origin.std


def normalised(network: nn.Module, origin: Origin) -> Normalised:
    """The network with the normalisation of its run in front. Raises UserError when inputs were not normalised."""
    return Normalised(network, *statistics(origin))


def how_to_prepare(origin: Origin, built_in: bool, names: Sequence[str] = ()) -> str:
    """One line on how to prepare an input. built_in: the network includes the normalisation.

    names: of the tensors of nested inputs, in order; default: their paths.
    """
    if origin.input_spec is not None:
        parts = list(_nested(origin.input_spec))
        known = iter(names if len(names) == sum("value" not in spec for _, spec in parts) else ())
        return ", ".join(_in_words(path if "value" in spec else next(known, path), spec) for path, spec in parts)
    kind = _tensor(origin.spec)
    if not _dtype(origin.spec).is_floating_point:
        low, high = origin.low, origin.high
        return kind if low is None or high is None else f"{kind}: indices, such as token ids, from {low:g} to {high:g}"
    if ((origin.data or {}).get("encoding") or {}).get("columns"):
        return f"{kind}: the columns of a table, encoded as in the run; predict reads them from a csv or Parquet file"
    if origin.mean is None or origin.std is None:
        return f"{kind}: values as in the data, not normalised"
    mean, std = (f"({', '.join(map(str, values))})" for values in (origin.mean, origin.std))
    if built_in:
        return f"{kind}: pixels / 255; the network itself subtracts mean {mean} and divides by std {std}"
    return f"{kind}: pixels / 255, minus mean {mean}, divided by std {std}, for each channel"


def _dtype(spec: Any) -> torch.dtype:
    return getattr(torch, spec["dtype"])  # type: ignore[no-any-return]


def _tensor(spec: Any) -> str:
    return f"{spec['dtype']} (N, {', '.join(map(str, spec['shape']))})" if spec["shape"] else f"{spec['dtype']} (N,)"


def _nested(spec: Spec, path: str = "") -> Iterator[tuple[str, Any]]:
    """The specs in a nested spec with their paths."""
    if isinstance(spec, dict) and "keys" not in spec:
        yield path, spec
        return
    for key, inner in spec["keys"].items() if isinstance(spec, dict) else enumerate(spec):
        yield from _nested(inner, f"{path}.{key}" if path else str(key))


def _in_words(name: str, spec: Any) -> str:
    """One of several inputs: its name, and the range of whole numbers."""
    if "value" in spec:
        return f"{name} = {spec['value']!r}"
    whole = not _dtype(spec).is_floating_point and spec["dtype"] != "bool"
    return f"{name} {_tensor(spec)}" + (f" from {spec['low']:g} to {spec['high']:g}" if whole else "")
