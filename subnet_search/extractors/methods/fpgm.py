"""FPGM: drop the filters nearest to the geometric median of their layer, as the other filters can replace them.

Section 3. Filters dropped in an earlier round do not count in the distances.

Where we differ: the authors prune again after every epoch and keep training dropped filters; here they stay dropped.
"""

from subnet_search.extractors import author as ss
from subnet_search.extractors.methods._channel_ranking import FilterRanking, channels


@ss.register("fpgm")
class FPGM(FilterRanking):
    """Drop the filters nearest to the median filter.

    Train, drop the filters nearest to the geometric median of their layer, and fine-tune.
    """

    paper = ss.Paper(
        "He, Liu, Wang, Hu & Yang",
        2019,
        "1811.00250",
        "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration",
        "s_j = sum_k ||F_j - F_k||_2; keep the highest of each layer",
    )
    paradigm = ss.Paradigm(
        "by distances between filters, after training", "trained", "in one or more steps", True, ("channel",)
    )
    published = ss.Published(
        "he-y/filter-pruning-geometric-median scripts/pruning_cifar10.sh and pruning_cifar10.py "
        "(CIFAR-10, ResNet-56, from scratch)",
        {"lr": 0.1, "nesterov": True, "weight_decay": 5e-4, "schedule": "step", "milestones": (0.3, 0.6, 0.8), "gamma": 0.2},
        epochs=200,
        note="From a trained network: lr 0.01.",
    )

    normalise: ss.Normalise = "layer"

    def scores(self, net: ss.Network, clock: ss.Clock) -> ss.Tensors:
        filters = channels(net).filters(net.weights)
        return {name: ss.distances(filters[name], alive) for name, alive in net.masks.items()}
