"""Normalisation of inputs, as a description and as a module in front of the network."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

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
    """The mean and std of a run's images. Raises UserError when inputs were not normalised."""
    if origin.mean is None or origin.std is None:
        raise UserError("normalise: the inputs of this run were not normalised")
    return origin.mean, origin.std


def normalised(network: nn.Module, origin: Origin) -> Normalised:
    """The network with the normalisation of its run in front. Raises UserError when inputs were not normalised."""
    return Normalised(network, *statistics(origin))


def how_to_prepare(origin: Origin, built_in: bool) -> str:
    """One line on how to prepare an input. built_in: the network includes the normalisation."""
    kind = f"float32 (N, {', '.join(map(str, origin.shape))})"
    if ((origin.data or {}).get("encoding") or {}).get("columns"):
        return f"{kind}: the columns of a table, encoded as in the run; predict reads them from a csv or Parquet file"
    if origin.mean is None or origin.std is None:
        return f"{kind}: values as in the data, not normalised"
    mean, std = (f"({', '.join(map(str, values))})" for values in (origin.mean, origin.std))
    if built_in:
        return f"{kind}: pixels / 255; the network itself subtracts mean {mean} and divides by std {std}"
    return f"{kind}: pixels / 255, minus mean {mean}, divided by std {std}, for each channel"
