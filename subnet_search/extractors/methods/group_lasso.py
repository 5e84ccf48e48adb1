"""SSL: structured sparsity learning, a group lasso that shrinks whole filters to zero.

Equations 1 and 2, with the same factor for every group, whatever its size. Fine-tuning is without the penalty.

Where we differ: the groups are filters, taken together where layers are coupled. The authors also have groups for input
channels (here they go with the filters that they read), filter shapes and whole layers, and drop what is below a threshold.
"""

import torch
from torch import Tensor

from subnet_search.extractors import author as ss
from subnet_search.extractors.methods._channel_ranking import FilterRanking, channels


@ss.register("group_lasso")
class GroupLasso(FilterRanking):
    """Penalise filter norms, drop the smallest.

    Train with a penalty on the norm of every filter, drop the filters of smallest norm, and fine-tune.
    """

    paper = ss.Paper(
        "Wen, Wu, Wang, Chen & Li",
        2016,
        "1608.03665",
        "Learning Structured Sparsity in Deep Neural Networks",
        "L + lambda sum ||w_f||_2; keep the filters of highest ||w_f||_2",
    )
    paradigm = ss.Paradigm("by filter norm, after training", "trained", "in one or more steps", True, ("channel",))
    published = ss.Published(
        "wenwei202/caffe examples/cifar10/template_resnet_solver.prototxt (CIFAR-10, ResNet-20)",
        {"lr": 0.1, "weight_decay": 1e-4, "schedule": "step", "milestones": (0.5, 0.75)},
        note="64,000 steps. The small convolutional network: lr 0.001 without decay (template_group_solver.prototxt), then "
        "fine-tuning.",
    )

    strength: ss.Strength = 5e-4
    scope: ss.Scope = "global"
    normalise: ss.Normalise = "layer"

    def penalty(self, net: ss.Network, clock: ss.Clock) -> Tensor | None:
        if clock.step >= self.prunings(clock)[-1]:
            return None
        return self.strength * torch.stack([norms.sum() for norms in self.scores(net, clock).values()]).sum()

    def scores(self, net: ss.Network, clock: ss.Clock) -> ss.Tensors:
        return ss.filter_norms(channels(net).filters(net.weights), 2)
