"""Training: the supernet that holds a topology, the recipe, and the only loop."""

from subnet_search.training.loop import Epoch, Outcome, train
from subnet_search.training.recipe import Recipe
from subnet_search.training.supernet import Supernet

__all__ = ["Epoch", "Outcome", "Recipe", "Supernet", "train"]
