"""Masks: a topology as one bool tensor for each prunable weight tensor, by parameter name."""

from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

Tensors: TypeAlias = Mapping[str, Tensor]


def alive(mask: Tensor) -> int:
    """The number of True elements; on the CPU by numpy, which counts three times as fast."""
    return int(np.count_nonzero(mask.numpy()) if mask.device.type == "cpu" else mask.count_nonzero())


class Masks(Mapping[str, Tensor]):
    """An immutable mapping from parameter name to a bool tensor of the parameter's shape: True means alive.

    masks: such tensors by name. Raises TypeError for a tensor that is not bool: a float mask could scale weights.
    Masks of the same names can be combined by `|` and `&`; others raise ValueError.
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        for name, mask in masks.items():
            if mask.dtype != torch.bool:
                raise TypeError(f"the mask of {name} must be bool, got {mask.dtype}")
        self._masks = dict(masks)

    @classmethod
    def ones(cls, weights: Mapping[str, Tensor]) -> "Masks":
        """Masks of the weights' shapes with everything alive."""
        return cls({name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()})

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __repr__(self) -> str:
        return f"Masks({len(self)} tensors, {self.kept} of {self.numel} kept, density {self.density:.4g})"

    @property
    def numel(self) -> int:
        """Number of units, dead and alive."""
        return sum(mask.numel() for mask in self.values())

    @property
    def kept(self) -> int:
        """Number of units alive."""
        return sum(alive(mask) for mask in self.values())

    @property
    def density(self) -> float:
        """Fraction alive, over all tensors together."""
        return self.kept / self.numel

    def layer_density(self) -> dict[str, float]:
        """Fraction alive in each tensor."""
        return {name: alive(mask) / mask.numel() for name, mask in self.items()}

    def __or__(self, other: "Masks") -> "Masks":
        return self._with(other, torch.logical_or)

    def __and__(self, other: "Masks") -> "Masks":
        return self._with(other, torch.logical_and)

    def overlap(self, other: "Masks") -> float:
        """Jaccard index with `other`: units alive in both over units alive in either (1 when both are empty).

        Raises ValueError when `other` has other names.
        """
        either = (self | other).kept
        return (self & other).kept / either if either else 1.0

    def same(self, other: "Masks") -> bool:
        """Whether these masks and `other` have the same names and keep exactly the same units."""
        return self.keys() == other.keys() and all(torch.equal(mask, other[name]) for name, mask in self.items())

    def to(self, device: torch.device | str) -> "Masks":
        """The same masks on `device`."""
        return Masks({name: mask.to(device) for name, mask in self.items()})

    def _with(self, other: "Masks", combine: Callable[[Tensor, Tensor], Tensor]) -> "Masks":
        if self.keys() != other.keys():
            raise ValueError(f"masks of different networks: {sorted(self.keys() ^ other.keys())} are in one only")
        return Masks({name: combine(mask, other[name]) for name, mask in self.items()})


def pack(mask: Tensor) -> Tensor:
    """The mask as bits, eight to a byte, in row-major order: uint8, (ceil(numel / 8),)."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))


def unpack(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The bool tensor of `shape` that `pack` turned into `bits`. Raises ValueError when the length does not fit."""
    count = int(np.prod(shape))
    if bits.numel() != -(-count // 8):
        raise ValueError(f"{bits.numel()} bytes do not hold a mask of shape {shape}")
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=count).astype(bool)).reshape(shape)
