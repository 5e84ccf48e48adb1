"""Classes of different sizes: balanced class weights in the loss, and balanced accuracy as the objective of a study.

cd examples
subnet-search extract -s network=imbalanced:Perceptron -s data=imbalanced:make -s task.class_weights=balanced
"""

import torch
from torch import Tensor, nn


def make(count: int = 900) -> tuple[Tensor, Tensor]:
    """Points of three classes, of which 6 %, 14 % and 80 % of the items are."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.multinomial(torch.tensor([0.06, 0.14, 0.80]), count, replacement=True, generator=rng)
    centres = torch.randn(3, 8, generator=rng)
    return centres[labels] + torch.randn(count, 8, generator=rng), labels


class Perceptron(nn.Sequential):
    """Points (batch, 8) to logits (batch, num_classes)."""

    def __init__(self, num_classes: int = 3, width: int = 48) -> None:
        super().__init__(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, num_classes))
