"""What the built-in networks can be built with: activation functions, normalisation layers, and a factor on the width."""

import math
from collections.abc import Callable
from typing import Literal, get_args

from torch import nn

from subnet_search.core.errors import UserError, unknown

Activation = Literal["relu", "leaky_relu", "gelu", "silu", "tanh"]
Norm = Literal["none", "batch", "group", "layer"]
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}
GROUPS = 8  # of a group norm; fewer where they do not divide the channels


def check_options(activation: str, norm: str, width: float) -> None:
    """Raise UserError for a value that no built-in network has."""
    if activation not in ACTIVATIONS:
        raise unknown("activation", str(activation), list(ACTIVATIONS))
    if norm not in get_args(Norm):
        raise unknown("norm", str(norm), list(get_args(Norm)))
    if isinstance(width, bool) or not isinstance(width, int | float) or not 0 < width < math.inf:
        raise UserError(f"width is a factor above 0, got {width!r}")


def widths(factor: float, *numbers: int) -> list[int]:
    """Channels or hidden units times a factor, rounded, and at least 1."""
    return [max(1, round(number * factor)) for number in numbers]


def norm_layer(norm: Norm, layer: nn.Conv2d | nn.Linear) -> list[nn.Module]:
    """The normalisation behind a layer, as a list of one module, or of none. `layer` is a group norm of one group."""
    images = isinstance(layer, nn.Conv2d)
    channels = layer.weight.shape[0]
    if norm == "batch":
        return [nn.BatchNorm2d(channels) if images else nn.BatchNorm1d(channels)]
    if norm == "none":
        return []
    return [nn.GroupNorm(math.gcd(channels, GROUPS) if norm == "group" else 1, channels)]
