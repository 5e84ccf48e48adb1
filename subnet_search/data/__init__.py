"""Data sets in memory as tensors, and batches as a function of (seed, step)."""

from subnet_search.data.batches import AUGMENTATIONS, Batches
from subnet_search.data.catalogue import catalogue, describe
from subnet_search.data.given import from_user
from subnet_search.data.normalisation import prepare
from subnet_search.data.sources import Data, DataSpec, InputRange, Split, load

__all__ = [
    "AUGMENTATIONS",
    "Batches",
    "Data",
    "DataSpec",
    "InputRange",
    "Split",
    "catalogue",
    "describe",
    "from_user",
    "load",
    "prepare",
]
