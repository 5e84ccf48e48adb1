"""Drop and grow: one topology change of dynamic sparse training, as a function of scores."""

import math

from subnet_search.topology.masks import Masks, Tensors, alive
from subnet_search.topology.select import top_k


def regrow(masks: Masks, keep: Tensors, grow_by: Tensors, fraction: float) -> Masks:
    """Every layer drops `fraction` of its alive weights, the lowest by |keep|, and grows as many, the highest by |grow_by|.

    The number dropped is ceil(fraction * alive); each layer's count stays the same. All dead weights may grow, also those
    just dropped, which then keep their value and optimizer state (Evci et al. 2020, arXiv:1911.11134, algorithm 1, and
    their code). So a dense layer stays dense. keep, grow_by: tensors of the masks' names and shapes.
    """
    return grow(drop(masks, keep, fraction), grow_by, masks)


def drop(masks: Masks, keep: Tensors, fraction: float) -> Masks:
    """Masks in which every layer of `masks` drops ceil(fraction * alive) units, the lowest by |keep|.

    fraction: 0 to 1. keep: tensors of the masks' names and shapes. Raises NotANumber, a ValueError, for NaN in `keep`.
    """
    kept = {}
    for name, mask in masks.items():
        living = alive(mask)
        dropped = math.ceil(fraction * living - 1e-9)
        kept[name] = top_k(keep[name], living - dropped, among=mask, magnitude=True)
    return Masks(kept)


def grow(masks: Masks, by: Tensors, like: Masks) -> Masks:
    """Masks in which every layer of `masks` grows dead units, the highest by |by|, up to its count in `like`.

    by: tensors of the masks' names and shapes. Raises NotANumber, a ValueError, for NaN in `by`, and ValueError when `like`
    keeps fewer units.
    """
    grown = {}
    for name, mask in masks.items():
        missing = alive(like[name]) - alive(mask)
        grown[name] = mask | top_k(by[name], missing, among=~mask, magnitude=True) if missing else mask
    return Masks(grown)
