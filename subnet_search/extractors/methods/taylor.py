"""Taylor: drop the channels whose removal changes the loss least, to first order.

Section 3, the joint importance of a set S of weights: I_S = (sum over S of g_s w_s)^2, g = dL/dw. Squares are averaged over
batches, as a mean gradient would vanish towards the end of training, and compared over all layers. S holds the weights that
read a channel: their sum is the derivative by a gate on the channel, the paper's gate after batch norm. Over a filter before
a batch norm the sum is zero, since the loss does not depend on the filter's scale.

Where we differ: the paper drops a few channels at a time between batches of training; here it is in rounds, and nothing is
trained in the steps that measure. With no epochs the batches come before training.
"""

import torch

from subnet_search.extractors import author as ss
from subnet_search.extractors.methods._channel_ranking import MeasuredRanking, channels


@ss.register("taylor")
class Taylor(MeasuredRanking):
    """Drop the channels that change the loss least.

    Train, drop the channels whose removal changes the loss least to first order, and fine-tune.
    """

    paper = ss.Paper(
        "Molchanov, Mallya, Tyree, Frosio & Kautz",
        2019,
        "1906.10771",
        "Importance Estimation for Neural Network Pruning",
        "I = (sum g_s w_s)^2 over the weights that read a channel, averaged over batches; keep the highest",
    )
    paradigm = ss.Paradigm("from gradients, after training", "trained", "in one or more steps", True, ("channel",))
    published = ss.Published.none(
        "the authors prune and fine-tune a trained network; a rate of 0.001 does not train one from the start",
        note="ImageNet, ResNet-50: lr 0.001, divided by 10 every 10 of 25 epochs, no weight decay, batch 256 "
        "(NVlabs/Taylor_pruning README.md).",
    )

    scope: ss.Scope = "global"

    def begin(self, net: ss.Network, clock: ss.Clock, probe: ss.Probe) -> ss.Change:
        if clock.total:
            return ss.Change()
        found = [importance(net, probe.gradients(net.weights, index)) for index in range(self.batches)]
        scores = {name: sum((one[name] for one in found[1:]), found[0][name]) for name in found[0]}
        return self._change(net, net.units.keep(scores, self.density, self.scope, normalise=self.normalise))

    def measured(self, net: ss.Network) -> ss.Tensors:
        return importance(net, net.gradients)


def importance(net: ss.Network, gradients: ss.Tensors) -> ss.Tensors:
    """I of every channel, by these gradients of one batch."""
    found = {}
    for name, slices in channels(net).slices.items():
        sums = [one.sums(net.weights[one.tensor] * gradients[one.tensor]) for one in slices if one.reads]
        found[name] = torch.stack(sums).sum(0).square()
    return found
