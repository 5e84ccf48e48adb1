"""Magnitude pruning of a trained network, once or in rounds, and fine-tuning.

Train, drop the smallest |w|, train on. The learning rate's schedule goes on as it is; `lottery` rewinds it.
"""

from subnet_search.extractors.author import (
    EVERY_KIND,
    Clock,
    Network,
    Normalise,
    Paper,
    Paradigm,
    Published,
    Tensors,
    magnitude,
    register,
)
from subnet_search.extractors.methods._iterative_pruning import InRounds


@register("magnitude")
class Magnitude(InRounds):
    """Train, drop the smallest weights at once or in rounds, and fine-tune."""

    paper = Paper(
        "Han, Pool, Tran & Dally",
        2015,
        "1506.02626",
        "Learning both Weights and Connections for Efficient Neural Networks",
        "keep the highest |w|; round r keeps density^(r / rounds)",
    )
    paradigm = Paradigm("by magnitude, after training", "trained", "in one or more steps", True, EVERY_KIND)
    published = Published.none("the paper's training settings were not verified")

    normalise: Normalise = "layer"

    def scores(self, net: Network, clock: Clock) -> Tensors:
        return net.units.pool(magnitude(net.weights))
