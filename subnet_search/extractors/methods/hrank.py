"""HRank: drop the channels whose feature maps have the lowest rank.

Lin, Ji, Wang, Zhang, Zhang, Tian & Shao 2020, "HRank: Filter Pruning using High-Rank Feature Map", arXiv:2002.10179: the
information in a channel is the mean over images of Rank(o_j), of the feature map o_j as a matrix; a few hundred images are
enough, since that mean hardly depends on them. The lowest of each layer go. The authors choose a rate for each layer by hand
(relative densities by layer) and fine-tune layer after layer; here all layers are pruned at once. They measure in evaluation
mode, here it is in training steps. A map is what the next layer reads, so after activation and pooling; where it is one
number, as for hidden neurons, its rank is 1 unless it is zero.
"""

import math

from torch import Tensor

from subnet_search.core.errors import UserError
from subnet_search.extractors.base import Network, Paper, Paradigm, Published, Tensors
from subnet_search.extractors.methods._channel_ranking import FeatureRanking, channels
from subnet_search.extractors.registry import register
from subnet_search.topology.channels import Channels
from subnet_search.topology.scores import map_ranks
from subnet_search.topology.select import layer_name


@register("hrank")
class HRank(FeatureRanking):
    """Train, drop the channels whose feature maps have the lowest rank, and fine-tune."""

    paper = Paper(
        "Lin, Ji, Wang, Zhang, Zhang, Tian & Shao",
        2020,
        "2002.10179",
        "HRank: Filter Pruning using High-Rank Feature Map",
        "s_j = mean over images of Rank(o_j); keep the highest of each layer",
    )
    paradigm = Paradigm("by the rank of feature maps, after training", "trained", "in one or more steps", True, ("channel",))
    published = Published.none(
        "the authors fine-tune a trained network after each layer, which no recipe of a whole run says",
        note="After each layer: lr 0.01, weight decay 5e-4, batch 128, divided by 10 at epochs 5 and 10 of 30 (lmbxmu/HRank "
        "README.md and main.py).",
    )

    def measured(self, net: Network) -> Tensors:
        units = channels(net)
        return {name: map_ranks(_maps(units, name, values)) for name, values in net.features.items()}


def _maps(units: Channels, name: str, values: Tensor) -> Tensor:
    """(images, channels, numbers) as (images, channels, maps, side, side): channels that are one have a map each."""
    source = next(piece for piece in units.slices[name] if not piece.reads)
    maps = source.index.shape[1]
    size = values.shape[2] // maps
    side = math.isqrt(size)
    if side * side != size or len(units.weights[source.tensor]) not in (2, 4):
        raise UserError(f"hrank needs square feature maps, and those of {layer_name(name)} are not: {size} numbers each")
    return values.view(*values.shape[:2], maps, side, side)
