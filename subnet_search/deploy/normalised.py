"""How inputs are prepared for a network: in words, and as a part of the network itself."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from subnet_search.artifact.subnetwork import Origin
from subnet_search.core.errors import UserError


class Normalised(nn.Module):
    """A network that normalises first: pixels scaled to 0..1, (batch, channels, height, width), to what it returns.

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
    """The mean and std of a run's images. Raises UserError when inputs were used as they are."""
    if origin.mean is None or origin.std is None:
        raise UserError("the inputs of this run were used as they are, so there is no normalisation to build in (normalise)")
    return origin.mean, origin.std


def normalised(network: nn.Module, origin: Origin) -> Normalised:
    """The network behind the normalisation of its run. Raises UserError when inputs were used as they are."""
    return Normalised(network, *statistics(origin))


def how_to_prepare(origin: Origin, built_in: bool) -> str:
    """What an input of the network is, in one line; `built_in`: the network normalises by itself."""
    kind = f"float32 (N, {', '.join(map(str, origin.shape))})"
    if origin.mean is None or origin.std is None:
        return f"{kind}: values as in the data, not normalised"
    mean, std = (f"({', '.join(map(str, values))})" for values in (origin.mean, origin.std))
    if built_in:
        return f"{kind}: pixels / 255; the network itself subtracts mean {mean} and divides by std {std}"
    return f"{kind}: pixels / 255, minus mean {mean}, divided by std {std}, for each channel"
