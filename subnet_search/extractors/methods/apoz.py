"""APoZ: drop the channels whose activations are zero most often.

Hu, Peng, Tai & Tang 2016, "Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep Architectures",
arXiv:1607.03250, section 3, the average percentage of zeros of channel c:
APoZ_c = sum_k sum_j 1[O_c,j(x_k) = 0] / (N M), over N images and M positions. The highest go, a few layers at a time in the
paper, all layers in each round here. The authors count on validation images; here it is training images, since validation
data only ever judges. Counted is what the next layer reads, so after pooling and, in a linear layer, with dropout, whose
zeros meet all channels alike. Channels without a ReLU are never zero: among equals the first ones stay.
"""

from subnet_search.core.errors import UserError
from subnet_search.extractors.base import Network, Paper, Paradigm, Published, Tensors
from subnet_search.extractors.methods._channel_ranking import FeatureRanking
from subnet_search.extractors.registry import register
from subnet_search.topology.scores import activity


@register("apoz")
class APoZ(FeatureRanking):
    """Train, drop the channels whose activations are zero most often, and fine-tune."""

    paper = Paper(
        "Hu, Peng, Tai & Tang",
        2016,
        "1607.03250",
        "Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep Architectures",
        "APoZ_c = mean over images and positions of 1[O_c = 0]; keep the lowest of each layer",
    )
    paradigm = Paradigm("by zero activations, after training", "trained", "in one or more steps", True, ("channel",))
    published = Published.none("the paper's training settings were not verified")

    def measured(self, net: Network) -> Tensors:
        found = activity(net.features)
        if all(bool((share == 1).all()) for share in found.values()):
            raise UserError("apoz counts activations that are zero, and in this network none ever is: it needs ReLUs")
        return found
