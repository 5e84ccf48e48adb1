"""Normalisation of images by the mean and standard deviation of each channel, given or of the training images."""

import logging
import math
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BeforeValidator
from torch import Tensor

from subnet_search.core.errors import UserError

log = logging.getLogger(__name__)

LOOKED_AT = 64  # items


def _list(value: Any) -> Any:
    """A tensor or array as a list; a single number (grey images) as a list of one."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else value


def _in_range(values: tuple[float, ...] | None) -> tuple[float, ...] | None:
    for value in values or ():
        if not 0 <= value <= 1:
            raise UserError(f"must be between 0 and 1, since pixels are scaled to 0..1, got {value}")
    return values


def _positive(values: tuple[float, ...] | None) -> tuple[float, ...] | None:
    for value in values or ():
        if not 0 < torch.tensor(value, dtype=torch.float32).item() < math.inf:
            raise UserError(f"must be a finite number above 0, got {value}")
    return values


INDICES = (torch.int32, torch.int64)
"""Types of inputs that are passed to the network as they are: token ids, say."""
Mean = Annotated[tuple[float, ...] | None, BeforeValidator(_list), AfterValidator(_in_range)]
Std = Annotated[tuple[float, ...] | None, BeforeValidator(_list), AfterValidator(_positive)]


def check_both(mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> None:
    """Raise UserError unless both are set, with the same length, or neither."""
    if mean is None and std is None:
        return
    if mean is None or std is None:
        raise UserError("std is set without mean: set both" if mean is None else "mean is set without std: set both")
    if len(mean) != len(std):
        raise UserError(f"mean and std need one value for each channel, got {len(mean)} and {len(std)}")


def normalisation(
    name: str, mean: tuple[float, ...] | None, std: tuple[float, ...] | None, inputs: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Mean and std of images scaled to 0..1, (channels,): those given, or computed. (None, None) for other inputs.

    inputs: uint8 images (N, channels, height, width), or anything else. Raises UserError when mean and std do not fit them.
    """
    images = inputs.dtype == torch.uint8 and inputs.dim() == 4
    if mean is None or std is None:
        _warn_of_pixels(name, inputs)
        return _statistics(inputs) if images else (None, None)
    if not images:
        raise UserError(
            f"data.mean and data.std need uint8 images (N, channels, height, width); the inputs of {name} are "
            f"{inputs.dtype} of shape {tuple(inputs.shape)}, which are not normalised"
        )
    if len(mean) != inputs.shape[1]:
        raise UserError(f"data.mean and data.std have length {len(mean)}; the images of {name} have {inputs.shape[1]} channels")
    return torch.tensor(mean), torch.tensor(std)


def _warn_of_pixels(name: str, inputs: Tensor) -> None:
    """Warn of pixels from 0 to 255 that are floats, since floats are taken as they are."""
    some = inputs[:LOOKED_AT]
    if not (inputs.is_floating_point() and inputs.dim() == 4 and some.numel()):
        return
    if some.min() >= 0 and 2 < some.max() <= 255 and torch.equal(some, some.round()):
        log.warning(
            "%s: the images are whole numbers from 0 to 255 as %s, and floats are not scaled: pass uint8, or scaled images",
            name,
            inputs.dtype,
        )


def prepare(inputs: Tensor, mean: Tensor | None, std: Tensor | None) -> Tensor:
    """uint8 images (N, C, H, W) as normalised float32; other inputs as float32, but indices as they are."""
    if mean is None or std is None:
        return inputs if inputs.dtype in INDICES else inputs.float()
    # x / 255 / std - mean / std, as one multiply-add
    scale = (1 / (255 * std)).view(-1, 1, 1)
    return torch.addcmul((-mean / std).view(-1, 1, 1), inputs.float(), scale)


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, of pixels scaled to 0..1, from exact integer counts."""
    counts = torch.stack([images[:, c].reshape(-1).bincount(minlength=256) for c in range(images.shape[1])]).double()
    values = torch.arange(256, dtype=torch.float64) / 255
    total = counts.sum(1)
    mean = counts @ values / total
    variance = counts @ values.square() / total - mean.square()
    return mean.float(), variance.clamp(min=1e-6).sqrt().float()
