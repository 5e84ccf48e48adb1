"""SFP: soft filter pruning, where filters that were set to zero are still trained.

Algorithm 1 and equation 2. Filters that were set to zero may be among the larger ones next time.

Where we differ: at `end`, before the end of the run, the lowest filters are dropped for good and the others trained on: the
batch norm and biases of a dropped filter go with it, and the network has to adapt. In the paper nothing follows. `every`
replaces the epoch; the authors' runs have 200.
"""

from typing import Annotated

from torch import Tensor

from subnet_search.extractors import author as ss
from subnet_search.extractors.methods._channel_ranking import channels


@ss.register("soft_filter_pruning")
class SoftFilterPruning(ss.Extractor):
    """Set the smallest filters to zero repeatedly.

    Set the smallest filters to zero repeatedly while all are trained, and drop the smallest at the end.
    """

    paper = ss.Paper(
        "He, Kang, Dong, Fu & Yang",
        2018,
        "1808.06866",
        "Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks",
        "after every epoch w_f = 0 for the lowest ||w_f||_2 of each layer; all w are updated",
    )
    paradigm = ss.Paradigm("by filter norm, repeatedly during training", "trained", "soft, then one step", True, ("channel",))
    published = ss.Published(
        "he-y/soft-filter-pruning scripts/cifar10_resnet.sh and pruning_cifar10_resnet.py (CIFAR-10, ResNet-110)",
        {"lr": 0.1, "nesterov": True, "weight_decay": 5e-4, "schedule": "step", "milestones": (0.3, 0.6, 0.8), "gamma": 0.2},
        epochs=200,
        note="Left out: the first epoch is at lr 0.01.",
    )

    density: ss.ChannelDensity = 0.5
    every: ss.Every = 0.02
    """Interval at which filters are set to zero: steps, or a fraction of the run."""
    end: Annotated[ss.Span, ss.PhaseEnd(1), ss.Real(0.6, 1.0)] = 0.9
    """When the smallest are dropped: steps, or a fraction of the run."""
    scope: ss.Scope = "uniform"
    normalise: ss.Normalise = "layer"

    def step(self, net: ss.Network, clock: ss.Clock) -> ss.Change | None:
        last = clock.point(self.end)
        if clock.step != last and not (clock.step < last and clock.due(self.every)):
            return None
        norms = ss.filter_norms(channels(net).filters(net.weights), 2)
        masks = net.units.keep(norms, self.density, self.scope, normalise=self.normalise)
        return ss.Change(masks) if clock.step == last else ss.Change(weights=_without(net, masks))


def _without(net: ss.Network, masks: ss.Masks) -> dict[str, Tensor]:
    """The weights with dead channels' filters zero. The weights that read them stay, as they carry the filters' gradients."""
    weights = dict(net.weights)
    for name, slices in channels(net).slices.items():
        for one in slices:
            if not one.reads:
                weight = weights[one.tensor]
                dropped = one.index.to(weight.device)[~masks[name]].reshape(-1)
                weights[one.tensor] = weight.detach().index_fill(one.dim, dropped, 0)
    return weights
