"""Estimate the progression of diabetes from a table (scikit-learn's data: 442 rows, 10 columns).

cd examples
subnet-search extract -s network=diabetes:Perceptron -s data=diabetes:make -s task=regression -s extractor=magnitude
"""

import numpy as np
from torch import nn


def make() -> tuple[np.ndarray, np.ndarray]:
    """The table and the progression after a year, both scaled to mean 0 and standard deviation 1."""
    from sklearn.datasets import load_diabetes

    table, progression = load_diabetes(return_X_y=True)
    return table / table.std(0), (progression - progression.mean()) / progression.std()


class Perceptron(nn.Sequential):
    """Rows (batch, 10) to numbers (batch, num_classes)."""

    def __init__(self, num_classes: int = 1, width: int = 64) -> None:
        super().__init__(nn.Linear(10, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, num_classes))
