"""RigL: drop the smallest weights, grow where the dense gradient is largest.

Algorithm 1, from a random ERK topology. Grown weights begin at zero. A change takes the place of the optimizer's step. A weight
that is dropped and grown in one change keeps its value and momentum, as in the authors' code (google-research/rigl). Their ERK
masks have exact counts, as ours.

Where we differ: the number dropped is rounded up, theirs down. With `grow: random` this is SET with a falling fraction, with
`momentum` a relative of sparse momentum (Dettmers & Zettlemoyer 2019, arXiv:1907.04840).
"""

from subnet_search.extractors import author as ss
from subnet_search.extractors.methods._drop_and_grow import DropAndGrow, growth


@ss.register("rigl")
class RigL(DropAndGrow):
    """Drop the smallest, grow where the gradient is largest.

    Drop the smallest weights and grow where the gradient is largest, while the network trains.
    """

    paper = ss.Paper(
        "Evci, Gale, Menick, Castro & Elsen",
        2020,
        "1911.11134",
        "Rigging the Lottery: Making All Tickets Winners",
        "each layer: drop the lowest alpha / 2 (1 + cos(pi t / T_end)) of |w|, grow as many by |dL/dw|",
    )
    paradigm = ss.Paradigm("drop and grow, during training", "trained", "fixed", True, ss.EVERY_KIND)
    published = ss.Published(
        "google-research/rigl rigl/cifar_resnet/resnet_train_eval.py (CIFAR-10, wide ResNet)",
        {
            "lr": 0.1,
            "nesterov": True,
            "weight_decay": 5e-4,
            "schedule": "step",
            "milestones": (0.307, 0.614, 0.922),
            "gamma": 0.2,
        },
        epochs=250,
        note="The authors divide by 5 at steps 30,000, 60,000 and 90,000 of 97,656.",
    )
    replaces_step = True

    until: ss.Until = 0.75
    """When changes stop (T_end): steps, or a fraction of the run."""
    drop_fraction: ss.DropFraction = 0.3
    """Fraction of each layer's weights that is moved at first (alpha); it falls to 0 along a cosine."""
    grow: ss.Grow = "gradient"

    def step(self, net: ss.Network, clock: ss.Clock) -> ss.Change | None:
        if not clock.due(self.every, self.until):
            return None
        fraction = ss.cosine(self.drop_fraction, 0.0, clock.step / clock.steps(self.until))
        return ss.Change(
            net.units.regrow(net.masks, net.units.pool_magnitude(net.weights), growth(net, clock, self.grow), fraction)
        )
