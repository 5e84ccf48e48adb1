"""SET: sparse evolutionary training.

All that grow begin at zero with fresh momentum, also those dropped in the same change, as in the authors' code.

Where we differ: we rank by |w| over both signs; the authors drop the smallest positive and the largest negative weights
separately, which differs only for skewed layers. Their topology is a Bernoulli draw, ours has exact counts. They change it
once an epoch, with a constant zeta, and reset all optimizer state.
"""

from subnet_search.extractors import author as ss
from subnet_search.extractors.methods._drop_and_grow import DropAndGrow, growth


@ss.register("set")
class SET(DropAndGrow):
    """Drop the smallest weights, grow others at random.

    Drop the smallest weights and grow others at random, while the network trains.
    """

    paper = ss.Paper(
        "Mocanu, Mocanu, Stone, Nguyen, Gibescu & Liotta",
        2018,
        "1707.04780",
        "Scalable Training of Artificial Neural Networks with Adaptive Sparse Connectivity Inspired by Network Science",
        "each layer: drop the lowest zeta of |w|, grow as many at random",
    )
    paradigm = ss.Paradigm("drop and grow, during training", "trained", "fixed", False, ss.EVERY_KIND)
    published = ss.Published(
        "dcmocanu/sparse-evolutionary-artificial-neural-networks SET-MLP-Keras-Weights-Mask/set_mlp_keras_cifar10.py "
        "(CIFAR-10, MLP)",
        {"batch_size": 100, "lr": 0.01},
        epochs=1000,
        note="The authors make a new optimizer at every change, so momentum begins at 0 there.",
    )

    allocation: ss.Allocation = "er"
    until: ss.Until = 1.0
    drop_fraction: ss.DropFraction = 0.3
    """Fraction of each layer's weights that is moved at a change (zeta)."""

    def step(self, net: ss.Network, clock: ss.Clock) -> ss.Change | None:
        if not clock.due(self.every, self.until):
            return None
        kept = ss.drop(net.masks, net.units.pool_magnitude(net.weights), self.drop_fraction)
        return ss.Change(net.units.grow(kept, growth(net, clock, "random"), net.masks), survivors=kept)
