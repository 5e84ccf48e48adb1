"""Masks in a file, alone or in a subnetwork's: one bit a weight."""

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
    """The masks in a file that `save_masks` or `Subnetwork.save` wrote. Raises UserError when it is missing or damaged."""
    tensors, header = load_tensors(path, "mask file")
    return Masks(unpacked(path, tensors, header, "mask." if "origin" in header else ""))


def unpacked(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    """The masks in a file that was read, by the shapes that its header claims. Raises UserError when they do not fit."""
    try:
        shapes = {name: tuple(shape) for name, shape in header["shapes"].items()}
        for name, shape in shapes.items():
            if not all(type(size) is int and size >= 0 for size in shape):
                raise ValueError(f"the shape of {name} is {list(shape)}")
            if -(-math.prod(shape) // 8) != tensors[prefix + name].numel():  # before room is made for it
                raise ValueError(f"{tensors[prefix + name].numel()} bytes do not hold a mask of shape {shape}")
        return {name: unpack(tensors[prefix + name], shape) for name, shape in shapes.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} holds no masks: {error}") from error
