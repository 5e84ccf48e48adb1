"""L1 filters: drop the filters with the smallest sum of absolute weights.

Section 3.1. The authors rank within a layer and choose each layer's density by hand, from its sensitivity: `scope: uniform`
ranks as they do, with one density for every layer; relative densities by layer stand for their choice. In residual blocks they
rank by the shortcut's filters alone; here all filters that are added up count.
"""

from subnet_search.extractors import author as ss
from subnet_search.extractors.methods._channel_ranking import FilterRanking, channels


@ss.register("l1_filters")
class L1Filters(FilterRanking):
    """Drop the filters of smallest L1 norm.

    Train, drop the filters with the smallest sum of absolute weights, and fine-tune.
    """

    paper = ss.Paper(
        "Li, Kadav, Durdanovic, Samet & Graf",
        2017,
        "1608.08710",
        "Pruning Filters for Efficient ConvNets",
        "s_j = sum |F_j|; keep the highest of each layer",
    )
    paradigm = ss.Paradigm("by the l1 norm of filters, after training", "trained", "in one or more steps", True, ("channel",))
    published = ss.Published(
        "Eric-mingjie/rethinking-network-pruning cifar/l1-norm-pruning/main.py (a re-implementation: CIFAR-10)",
        {"lr": 0.1, "batch_size": 64, "weight_decay": 1e-4, "schedule": "step", "milestones": (0.5, 0.75)},
        epochs=160,
        note="The settings of the network before pruning; those of the paper itself were not verified.",
    )

    normalise: ss.Normalise = "layer"

    def scores(self, net: ss.Network, clock: ss.Clock) -> ss.Tensors:
        return ss.filter_norms(channels(net).filters(net.weights), 1)
