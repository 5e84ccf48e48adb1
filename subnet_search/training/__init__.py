"""Training: the supernet (a network with its topology), the recipe, and the training loop."""

from subnet_search.training.checkpoint import Epoch
from subnet_search.training.loop import Outcome, train
from subnet_search.training.recipe import Distill, Recipe
from subnet_search.training.supernet import Supernet

__all__ = ["Distill", "Epoch", "Outcome", "Recipe", "Supernet", "train"]
