"""Drop and grow: one step of every method that moves its topology, as a function of scores."""

import math
from collections.abc import Mapping

from torch import Tensor

from subnet_search.topology.masks import Masks, alive
from subnet_search.topology.select import top_k

Tensors = Mapping[str, Tensor]


def regrow(masks: Masks, keep: Tensors, grow_by: Tensors, fraction: float) -> Masks:
    """Every layer drops `fraction` of its weights, the lowest by |keep|, and grows as many, the highest by |grow_by|.

    Each layer's count stays as it is. The number dropped is ceil(fraction * alive). Everything dead competes to grow, what
    was just dropped included, which keeps its value and state when it grows again (Evci et al. 2020, arXiv:1911.11134,
    algorithm 1; their code does the same). So a dense layer stays dense. keep, grow_by: tensors by the masks' names.
    """
    return grow(drop(masks, keep, fraction), grow_by, masks)


def drop(masks: Masks, keep: Tensors, fraction: float) -> Masks:
    """Every layer without `fraction` of its weights, ceil(fraction * alive) of them, the lowest by |keep|."""
    kept = {}
    for name, mask in masks.items():
        living = alive(mask)
        dropped = math.ceil(fraction * living - 1e-9)
        kept[name] = top_k(keep[name], living - dropped, among=mask, magnitude=True)
    return Masks(kept)


def grow(masks: Masks, by: Tensors, like: Masks) -> Masks:
    """Every layer with its dead weights of highest |by| alive too, as many as make up its count in `like`."""
    grown = {}
    for name, mask in masks.items():
        missing = alive(like[name]) - alive(mask)
        grown[name] = mask | top_k(by[name], missing, among=~mask, magnitude=True) if missing else mask
    return Masks(grown)
