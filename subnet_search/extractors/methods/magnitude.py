"""Magnitude pruning of a trained network, once or in rounds, and fine-tuning.

Han, Pool, Tran & Dally 2015, "Learning both Weights and Connections for Efficient Neural Networks", arXiv:1506.02626.
Train, drop the smallest |w|, train on. The rounds are changes on the run's one axis of steps, at equal distances between
`start` and `end`; round r leaves density^(r / rounds). The learning rate's schedule goes on as it is; `lottery` rewinds.
With no epochs nothing is trained and the weights as they are, such as a given state, are pruned at once.
"""

from subnet_search.extractors.base import Clock, Network, Normalise, Paper, Paradigm, Published, Tensors
from subnet_search.extractors.methods._iterative_pruning import InRounds
from subnet_search.extractors.registry import register
from subnet_search.topology.scores import magnitude
from subnet_search.topology.units import EVERY_KIND


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
