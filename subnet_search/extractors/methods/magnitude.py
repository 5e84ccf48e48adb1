"""Magnitude pruning of a trained network. The learning rate's schedule continues after it; `lottery` rewinds it."""

from subnet_search.extractors import author as ss
from subnet_search.extractors.methods._iterative_pruning import InRounds


@ss.register("magnitude")
class Magnitude(InRounds):
    """Train, drop the smallest weights, fine-tune.

    Train, drop the smallest weights at once or in rounds, and fine-tune.
    """

    paper = ss.Paper(
        "Han, Pool, Tran & Dally",
        2015,
        "1506.02626",
        "Learning both Weights and Connections for Efficient Neural Networks",
        "keep the highest |w|; round r keeps density^(r / rounds)",
    )
    paradigm = ss.Paradigm("by magnitude, after training", "trained", "in one or more steps", True, ss.EVERY_KIND)
    published = ss.Published.none("the paper's training settings were not verified")

    normalise: ss.Normalise = "layer"

    def scores(self, net: ss.Network, clock: ss.Clock) -> ss.Tensors:
        return net.units.pool(ss.magnitude(net.weights))
