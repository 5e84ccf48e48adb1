"""Training: the supernet that holds a topology, the recipe, and the only loop."""

from subnet_search.training.checkpoint import Epoch
from subnet_search.training.loop import Outcome, train
from subnet_search.training.recipe import Recipe
from subnet_search.training.supernet import Supernet

__all__ = ["Epoch", "Outcome", "Recipe", "Supernet", "train"]
