"""Data sets held as tensors, and batches that are a function of (seed, step)."""

from subnet_search.data.batches import AUGMENTATIONS, Batches, prepare
from subnet_search.data.catalogue import catalogue, describe
from subnet_search.data.sources import Data, DataSpec, Split, from_user, load

__all__ = ["AUGMENTATIONS", "Batches", "Data", "DataSpec", "Split", "catalogue", "describe", "from_user", "load", "prepare"]
