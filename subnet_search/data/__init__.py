"""Data sets in memory or read item by item, and batches as a function of (seed, step)."""

from subnet_search.data import arrays, folders, imported, tables, text  # noqa: F401  (they register kinds of data)
from subnet_search.data.batch import Labels, split_batch
from subnet_search.data.batches import AUGMENTATIONS, Batches, in_order
from subnet_search.data.catalogue import catalogue, describe
from subnet_search.data.given import from_user
from subnet_search.data.items import Items
from subnet_search.data.normalisation import prepare
from subnet_search.data.sources import Data, DataSpec, InputRange, load
from subnet_search.data.split import Split
from subnet_search.data.values import Values

__all__ = [
    "AUGMENTATIONS",
    "Batches",
    "Data",
    "DataSpec",
    "InputRange",
    "Items",
    "Labels",
    "Split",
    "Values",
    "catalogue",
    "describe",
    "from_user",
    "in_order",
    "load",
    "prepare",
    "split_batch",
]
