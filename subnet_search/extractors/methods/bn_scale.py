"""BN scale: drop the channels whose batch norms have the smallest scales.

This is `slimming` with strength 0, and "BN scale" in the comparison of Molchanov et al. 2019, arXiv:1906.10771. A channel
with several batch norms, as along a residual stream, is ranked by their mean |gamma|; a channel without one is kept.
"""

from subnet_search.extractors import author as ss
from subnet_search.extractors.methods._batch_norm_scale import NormRanking


@ss.register("bn_scale")
class BNScale(NormRanking):
    """Drop the channels of smallest batch-norm scale.

    Train, drop the channels whose batch norms have the smallest scales, and fine-tune.
    """

    paper = ss.Paper(
        "Liu, Li, Shen, Huang, Yan & Zhang",
        2017,
        "1708.06519",
        "Learning Efficient Convolutional Networks through Network Slimming",
        "s_j = |gamma_j|; keep the highest of all layers (the ranking alone, without the penalty)",
    )
    paradigm = ss.Paradigm("by batch-norm scale, after training", "trained", "in one or more steps", True, ("channel",))
    published = ss.Published(
        "Eric-mingjie/network-slimming main.py (CIFAR, without its penalty)",
        {"lr": 0.1, "batch_size": 64, "weight_decay": 1e-4, "schedule": "step", "milestones": (0.5, 0.75)},
        epochs=160,
        note="The length is that of one training; fine-tuning after pruning is a second one with the same settings.",
    )
