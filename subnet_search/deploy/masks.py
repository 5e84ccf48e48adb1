"""Masks alone in a file: one bit a weight."""

from pathlib import Path

from subnet_search.errors import UserError
from subnet_search.files import load_tensors, save_tensors
from subnet_search.topology.masks import Masks, pack, unpack


def save_masks(path: Path, masks: Masks) -> None:
    """Write masks to a safetensors file, atomically."""
    shapes = {name: list(mask.shape) for name, mask in masks.items()}
    save_tensors(path, {name: pack(mask) for name, mask in masks.items()}, {"format": 1, "shapes": shapes})


def load_masks(path: Path) -> Masks:
    """Read what `save_masks` wrote. Raises UserError when the file is missing or damaged."""
    tensors, header = load_tensors(path, "mask file")
    try:
        return Masks({name: unpack(tensors[name], tuple(shape)) for name, shape in header["shapes"].items()})
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} is not a mask file: {error}") from error
