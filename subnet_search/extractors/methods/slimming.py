"""Network slimming: an L1 penalty on the scales of batch norms decides which channels go.

Liu, Li, Shen, Huang, Yan & Zhang 2017, "Learning Efficient Convolutional Networks through Network Slimming",
arXiv:1708.06519, equation 1: L + lambda * sum |gamma|. Train with it, drop the channels of lowest |gamma| over all layers
at once or in rounds, and fine-tune without it. The authors take lambda 1e-4 for VGG and 1e-5 for residual and densely
connected networks on CIFAR.

Where we differ: a channel that several batch norms follow, as along a residual stream, is ranked by their mean |gamma|;
the authors put a selection layer there. Channels without a batch norm stay.
"""

from typing import Annotated

from annotated_types import Ge
from torch import Tensor

from subnet_search.core.search_domains import Real
from subnet_search.extractors.base import Change, Clock, Network, Paper, Paradigm, Probe, Published, Scope, Tensors
from subnet_search.extractors.methods._batch_norm_scale import check_norms, norm_penalty, norm_scales
from subnet_search.extractors.methods._channel_ranking import FilterRanking
from subnet_search.extractors.registry import register


@register("slimming")
class Slimming(FilterRanking):
    """Train with a penalty on batch-norm scales, drop the channels of smallest scale, and fine-tune."""

    paper = Paper(
        "Liu, Li, Shen, Huang, Yan & Zhang",
        2017,
        "1708.06519",
        "Learning Efficient Convolutional Networks through Network Slimming",
        "L + lambda sum |gamma|; keep the channels of highest |gamma|",
    )
    paradigm = Paradigm("by batch-norm scale, after training", "trained", "in one or more steps", True, ("channel",))
    published = Published(
        "Eric-mingjie/network-slimming main.py (CIFAR)",
        {"lr": 0.1, "batch_size": 64, "weight_decay": 1e-4, "schedule": "step", "milestones": (0.5, 0.75)},
        epochs=160,
        note="The length is that of one training; fine-tuning after pruning is a second one with the same settings.",
    )

    strength: Annotated[float, Ge(0), Real(1e-5, 1e-2, log=True)] = 1e-4
    """Of the penalty (lambda)."""
    scope: Scope = "global"
    """Whether channels compete over all layers, or each layer gets its share."""

    def begin(self, net: Network, clock: Clock, probe: Probe) -> Change:
        check_norms(self.name, net, self.density, self.scope)
        return super().begin(net, clock, probe)

    def penalty(self, net: Network, clock: Clock) -> Tensor | None:
        return self.strength * norm_penalty(net) if clock.step < self.prunings(clock)[-1] else None

    def scores(self, net: Network, clock: Clock) -> Tensors:
        return norm_scales(net)
