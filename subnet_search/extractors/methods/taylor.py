"""Taylor: drop the channels whose removal changes the loss least, to first order.

Molchanov, Mallya, Tyree, Frosio & Kautz 2019, "Importance Estimation for Neural Network Pruning", arXiv:1906.10771, section
3, the joint importance of a set of weights: I_S = (sum over S of g_s w_s)^2, g = dL/dw, averaged over batches (of its
squares; a mean gradient would fade as training ends), and compared over all layers together. The set is that of the weights
that read a channel: the sum is then the derivative by a gate on what they read, the paper's gates after batch norms, of
its main results. Over a filter before a batch norm the sum is zero, since the loss does not depend on its scale. The paper
takes a few channels at a time between batches of training; here it is in rounds, and nothing is trained while it measures.
With no epochs the batches come before training.
"""

import torch

from subnet_search.extractors.base import Change, Clock, Network, Paper, Paradigm, Probe, Published, Scope, Tensors
from subnet_search.extractors.methods._channel_ranking import MeasuredRanking, channels
from subnet_search.extractors.registry import register


@register("taylor")
class Taylor(MeasuredRanking):
    """Train, drop the channels whose removal changes the loss least to first order, and fine-tune."""

    paper = Paper(
        "Molchanov, Mallya, Tyree, Frosio & Kautz",
        2019,
        "1906.10771",
        "Importance Estimation for Neural Network Pruning",
        "I = (sum g_s w_s)^2 over the weights that read a channel, averaged over batches; keep the highest",
    )
    paradigm = Paradigm("from gradients, after training", "trained", "in one or more steps", True, ("channel",))
    published = Published.none(
        "the authors prune and fine-tune a trained network; a rate of 0.001 does not train one from the start",
        note="ImageNet, ResNet-50: lr 0.001, divided by 10 every 10 of 25 epochs, no weight decay, batch 256 "
        "(NVlabs/Taylor_pruning README.md).",
    )

    scope: Scope = "global"
    """Whether channels compete over all layers, or each layer gets its share."""

    def begin(self, net: Network, clock: Clock, probe: Probe) -> Change:
        if clock.total:
            return Change()
        found = [importance(net, probe.gradients(net.weights, index)) for index in range(self.batches)]
        scores = {name: sum((one[name] for one in found[1:]), found[0][name]) for name in found[0]}
        return Change(net.units.keep(scores, self.density, self.scope, normalise=self.normalise))

    def measured(self, net: Network) -> Tensors:
        return importance(net, net.gradients)


def importance(net: Network, gradients: Tensors) -> Tensors:
    """I of every channel, by these gradients of one batch."""
    found = {}
    for name, slices in channels(net).slices.items():
        sums = []
        for piece in (piece for piece in slices if piece.reads):
            products = (net.weights[piece.tensor] * gradients[piece.tensor]).movedim(piece.dim, 0).flatten(1).sum(1)
            sums.append(products[piece.index.to(products.device)].sum(1))
        found[name] = torch.stack(sums).sum(0).square()
    return found
