"""L2 filters: drop the filters with the smallest Euclidean norm.

Section 3.2, filter selection, with p = 2 as in the paper's experiments; `soft_filter_pruning` is the paper's method.
"""

from subnet_search.extractors import author as ss
from subnet_search.extractors.methods._channel_ranking import FilterRanking, channels


@ss.register("l2_filters")
class L2Filters(FilterRanking):
    """Drop the filters of smallest Euclidean norm.

    Train, drop the filters with the smallest Euclidean norm, and fine-tune.
    """

    paper = ss.Paper(
        "He, Kang, Dong, Fu & Yang",
        2018,
        "1808.06866",
        "Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks",
        "s_j = ||F_j||_2; keep the highest of each layer (the criterion alone: dropped filters stay dropped)",
    )
    paradigm = ss.Paradigm("by the l2 norm of filters, after training", "trained", "in one or more steps", True, ("channel",))
    published = ss.Published(
        "he-y/soft-filter-pruning scripts/cifar10_resnet.sh and pruning_cifar10_resnet.py (CIFAR-10, ResNet-110)",
        {"lr": 0.1, "nesterov": True, "weight_decay": 5e-4, "schedule": "step", "milestones": (0.3, 0.6, 0.8), "gamma": 0.2},
        epochs=200,
        note="The settings of soft filter pruning, whose criterion this is.",
    )

    normalise: ss.Normalise = "layer"

    def scores(self, net: ss.Network, clock: ss.Clock) -> ss.Tensors:
        return ss.filter_norms(channels(net).filters(net.weights), 2)
