"""SFP: soft filter pruning, where filters that were set to zero go on being trained.

He, Kang, Dong, Fu & Yang 2018, "Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks",
arXiv:1808.06866, algorithm 1 and equation 2. After every epoch the filters of lowest L2 norm, the same fraction of every
layer, are set to zero; as they are updated like all others, they may well be among the larger ones next time. In the end
the zero filters are removed.

Where we differ: at `end`, before the end of the run, the lowest filters are dropped for good and the others trained on. In
the paper nothing follows; but what batch norm and biases say of a zero filter goes with its removal, to which the network
has to get used. `every` stands for the epoch; the authors' runs have 200.
"""

from typing import Annotated

from torch import Tensor

from subnet_search.core.search_domains import Real
from subnet_search.extractors.base import (
    Change,
    Clock,
    Density,
    Every,
    Extractor,
    Network,
    Normalise,
    Paper,
    Paradigm,
    Published,
    Scope,
    Span,
)
from subnet_search.extractors.methods._channel_ranking import channels
from subnet_search.extractors.registry import register
from subnet_search.topology.masks import Masks
from subnet_search.topology.scores import filter_norms
from subnet_search.topology.units import Units


@register("soft_filter_pruning")
class SoftFilterPruning(Extractor):
    """Set the smallest filters to zero again and again while all are trained, and drop the smallest in the end."""

    paper = Paper(
        "He, Kang, Dong, Fu & Yang",
        2018,
        "1808.06866",
        "Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks",
        "after every epoch w_f = 0 for the lowest ||w_f||_2 of each layer; all w are updated",
    )
    paradigm = Paradigm("by filter norm, again and again during training", "trained", "soft, then one step", True, ("channel",))
    published = Published(
        "he-y/soft-filter-pruning scripts/cifar10_resnet.sh and pruning_cifar10_resnet.py (CIFAR-10, ResNet-110)",
        {"lr": 0.1, "nesterov": True, "weight_decay": 5e-4, "schedule": "step", "milestones": (0.3, 0.6, 0.8), "gamma": 0.2},
        epochs=200,
        note="Left out: the first epoch is at lr 0.01.",
    )

    density: Annotated[Density, Real(0.1, 0.9)] = 0.5
    """Fraction of channels kept."""
    every: Every = 0.02
    """Between two times that filters are set to zero: steps, or a fraction of the run."""
    end: Annotated[Span, Real(0.6, 1.0)] = 0.9
    """When the smallest are dropped: steps, or a fraction of the run."""
    scope: Scope = "uniform"
    """Whether channels compete over all layers, or each layer gets its share."""
    normalise: Normalise = "layer"

    def check(self, units: Units, clock: Clock) -> None:
        units.check(self.density, self.scope)
        clock.check_end("soft_filter_pruning.end", 1, self.end)
        clock.check_interval("soft_filter_pruning.every", self.every)

    def step(self, net: Network, clock: Clock) -> Change | None:
        last = min(clock.steps(self.end), clock.total - 1)
        if clock.step != last and not (clock.step < last and clock.due(self.every)):
            return None
        norms = filter_norms(channels(net).filters(net.weights), 2)
        masks = net.units.keep(norms, self.density, self.scope, normalise=self.normalise)
        return Change(masks) if clock.step == last else Change(weights=_without(net, masks))


def _without(net: Network, masks: Masks) -> dict[str, Tensor]:
    """The weights with dead channels' filters zero. What reads them stays: through it their gradients come."""
    weights = dict(net.weights)
    for name, slices in channels(net).slices.items():
        for piece in slices:
            if not piece.reads:
                weight = weights[piece.tensor]
                lost = piece.index.to(weight.device)[~masks[name]].reshape(-1)
                weights[piece.tensor] = weight.detach().index_fill(piece.dim, lost, 0)
    return weights
