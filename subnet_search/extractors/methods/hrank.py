"""HRank: drop the channels whose feature maps have the lowest rank.

A few hundred images are enough, as the mean rank hardly depends on them.

Where we differ: the authors choose a rate for each layer by hand (here: relative densities by layer) and fine-tune layer after
layer; we prune all layers at once. They measure in evaluation mode, we in training steps. A map is what the next layer reads,
so after activation and pooling; where it is one number, as for hidden neurons, its rank is 1, or 0 when the number is zero.
"""

import math

from torch import Tensor

from subnet_search.extractors import author as ss
from subnet_search.extractors.methods._channel_ranking import FeatureRanking, channels


@ss.register("hrank")
class HRank(FeatureRanking):
    """Drop the channels of lowest feature-map rank.

    Train, drop the channels whose feature maps have the lowest rank, and fine-tune.
    """

    paper = ss.Paper(
        "Lin, Ji, Wang, Zhang, Zhang, Tian & Shao",
        2020,
        "2002.10179",
        "HRank: Filter Pruning using High-Rank Feature Map",
        "s_j = mean over images of Rank(o_j); keep the highest of each layer",
    )
    paradigm = ss.Paradigm("by the rank of feature maps, after training", "trained", "in one or more steps", True, ("channel",))
    published = ss.Published.none(
        "the authors fine-tune a trained network after each layer, which no recipe of a whole run says",
        note="After each layer: lr 0.01, weight decay 5e-4, batch 128, divided by 10 at epochs 5 and 10 of 30 (lmbxmu/HRank "
        "README.md and main.py).",
    )

    def measured(self, net: ss.Network) -> ss.Tensors:
        units = channels(net)
        return {name: ss.map_ranks(_maps(units, name, values)) for name, values in net.features.items()}


def _maps(units: ss.Channels, name: str, values: Tensor) -> Tensor:
    """(images, channels, numbers) as (images, channels, maps, side, side): coupled channels have a map each."""
    slices = units.slices[name]
    source = next((one for one in slices if not one.reads), slices[0])  # none computes behind a frozen layer
    maps = source.index.shape[1]
    size = values.shape[2] // maps
    side = math.isqrt(size)
    if side * side != size or len(units.weights[source.tensor]) not in (2, 4):
        raise ss.UserError(f"hrank needs square feature maps, and those of {ss.layer_name(name)} are not: {size} numbers each")
    return values.view(*values.shape[:2], maps, side, side)
