"""SSL: structured sparsity learning, a group lasso that draws whole filters to zero.

Wen, Wu, Wang, Chen & Li 2016, "Learning Structured Sparsity in Deep Neural Networks", arXiv:1608.03665, equations 1 and 2:
L + lambda * sum over filters of ||w_f||_2, all groups with the same factor, whatever their size. Train with it, drop the
filters of lowest norm over all layers at once or in rounds, and fine-tune without it.

Where we differ: the groups are filters, taken together where layers are coupled. The authors add groups for input channels
(ours go with the filters that they read), for filter shapes and for whole layers; and they drop what fell below a threshold.
"""

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from subnet_search.core.search_domains import Real
from subnet_search.extractors.base import Clock, Network, Normalise, Paper, Paradigm, Published, Scope, Tensors
from subnet_search.extractors.methods._channel_ranking import FilterRanking, channels
from subnet_search.extractors.registry import register
from subnet_search.topology.scores import filter_norms


@register("group_lasso")
class GroupLasso(FilterRanking):
    """Train with a penalty on the norm of every filter, drop the filters of smallest norm, and fine-tune."""

    paper = Paper(
        "Wen, Wu, Wang, Chen & Li",
        2016,
        "1608.03665",
        "Learning Structured Sparsity in Deep Neural Networks",
        "L + lambda sum ||w_f||_2; keep the filters of highest ||w_f||_2",
    )
    paradigm = Paradigm("by filter norm, after training", "trained", "in one or more steps", True, ("channel",))
    published = Published(
        "wenwei202/caffe examples/cifar10/template_resnet_solver.prototxt (CIFAR-10, ResNet-20)",
        {"lr": 0.1, "weight_decay": 1e-4, "schedule": "step", "milestones": (0.5, 0.75)},
        note="64,000 steps. The small convolutional network: lr 0.001 without decay (template_group_solver.prototxt), then "
        "fine-tuning.",
    )

    strength: Annotated[float, Ge(0), Real(1e-5, 1e-2, log=True)] = 5e-4
    """Of the penalty (lambda)."""
    scope: Scope = "global"
    """Whether channels compete over all layers, or each layer gets its share."""
    normalise: Normalise = "layer"

    def penalty(self, net: Network, clock: Clock) -> Tensor | None:
        if clock.step >= self.prunings(clock)[-1]:
            return None
        return self.strength * torch.stack([norms.sum() for norms in self.scores(net, clock).values()]).sum()

    def scores(self, net: Network, clock: Clock) -> Tensors:
        return filter_norms(channels(net).filters(net.weights), 2)
