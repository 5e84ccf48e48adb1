"""APoZ: drop the channels whose activations are zero most often (section 3).

Where we differ: the paper prunes a few layers at a time, we prune all layers in each round. The authors count on validation
images, we on training images, as validation data is for evaluation only. Zeros are counted in what the next layer reads, so
after pooling and, before a linear layer, after dropout, which adds as many zeros to every channel. Channels without a ReLU
are never zero; among equal scores the first channels are kept.
"""

from subnet_search.extractors import author as ss
from subnet_search.extractors.methods._channel_ranking import FeatureRanking


@ss.register("apoz")
class APoZ(FeatureRanking):
    """Drop the channels that are zero most often.

    Train, drop the channels whose activations are zero most often, and fine-tune.
    """

    paper = ss.Paper(
        "Hu, Peng, Tai & Tang",
        2016,
        "1607.03250",
        "Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep Architectures",
        "APoZ_c = mean over images and positions of 1[O_c = 0]; keep the lowest of each layer",
    )
    paradigm = ss.Paradigm("by zero activations, after training", "trained", "in one or more steps", True, ("channel",))
    published = ss.Published.none("the paper's training settings were not verified")

    def measured(self, net: ss.Network) -> ss.Tensors:
        found = ss.activity(net.features)
        if all(bool((share == 1).all()) for share in found.values()):
            raise ss.UserError("apoz counts activations that are zero, and in this network none ever is: it needs ReLUs")
        return found
