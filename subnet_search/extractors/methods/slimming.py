"""Network slimming: an L1 penalty on the scales of batch norms decides which channels are dropped.

Equation 1; fine-tuning is without the penalty. The authors take lambda 1e-4 for VGG, 1e-5 for residual and densely connected
networks on CIFAR. Where we differ: a channel with several batch norms, as along a residual stream, is ranked by their mean
|gamma|; the authors put a selection layer there. Channels without a batch norm are kept.
"""

from torch import Tensor

from subnet_search.extractors import author as ss
from subnet_search.extractors.methods._batch_norm_scale import NormRanking, norm_penalty


@ss.register("slimming")
class Slimming(NormRanking):
    """Penalise batch-norm scales, drop the smallest.

    Train with a penalty on batch-norm scales, drop the channels of smallest scale, and fine-tune.
    """

    paper = ss.Paper(
        "Liu, Li, Shen, Huang, Yan & Zhang",
        2017,
        "1708.06519",
        "Learning Efficient Convolutional Networks through Network Slimming",
        "L + lambda sum |gamma|; keep the channels of highest |gamma|",
    )
    paradigm = ss.Paradigm("by batch-norm scale, after training", "trained", "in one or more steps", True, ("channel",))
    published = ss.Published(
        "Eric-mingjie/network-slimming main.py (CIFAR)",
        {"lr": 0.1, "batch_size": 64, "weight_decay": 1e-4, "schedule": "step", "milestones": (0.5, 0.75)},
        epochs=160,
        note="The length is that of one training; fine-tuning after pruning is a second one with the same settings.",
    )

    strength: ss.Strength = 1e-4

    def penalty(self, net: ss.Network, clock: ss.Clock) -> Tensor | None:
        return self.strength * norm_penalty(net) if clock.step < self.prunings(clock)[-1] else None
