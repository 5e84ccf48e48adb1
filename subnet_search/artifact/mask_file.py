"""Masks in a file of their own or in a subnetwork file, packed to one bit for each weight."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from subnet_search.core.errors import UserError
from subnet_search.core.tensor_files import load_tensors, save_tensors
from subnet_search.topology.masks import Masks, pack, unpack


def save_masks(path: Path, masks: Masks) -> None:
    """Write masks to a safetensors file, atomically."""
    shapes = {name: list(mask.shape) for name, mask in masks.items()}
    save_tensors(path, {name: pack(mask) for name, mask in masks.items()}, {"format": 2, "shapes": shapes})


def load_masks(path: Path) -> Masks:
    """The masks in a file of `save_masks` or `Subnetwork.save`. Raises UserError when it is missing or damaged."""
    tensors, header = load_tensors(path, "mask file")
    if "shapes" not in header:
        raise UserError(f"{path} is no file of a subnetwork or of masks")
    return Masks(unpack_masks(path, tensors, header, "mask." if "origin" in header else ""))


def unpack_masks(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    """Unpack the masks in a file's tensors to the shapes in its header. Raises UserError when these do not match.

    prefix: of the masks' names in the file. path: for the error message.
    """
    try:
        shapes = {name: tuple(shape) for name, shape in header["shapes"].items()}
        for name, shape in shapes.items():
            if not all(type(size) is int and size >= 0 for size in shape):
                raise ValueError(f"the shape of {name} is {list(shape)}")
            if -(-math.prod(shape) // 8) != tensors[prefix + name].numel():  # before memory is allocated
                raise ValueError(f"{tensors[prefix + name].numel()} bytes do not hold a mask of shape {shape}")
        return {name: unpack(tensors[prefix + name], shape) for name, shape in shapes.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} contains no valid masks: {error}") from error
