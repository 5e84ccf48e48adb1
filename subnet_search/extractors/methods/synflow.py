"""SynFlow: keep the weights that carry synaptic flow, before training and without data.

Algorithm 1. R is the sum of the network's outputs on an input of ones with every parameter made positive. Batch norm is in
evaluation mode, as in the authors' code. The network is called with |w| in double precision, where deep products do not
overflow; its own weights are not changed.

Note: the theory is about rectifiers. An activation that saturates (ReLU6, sigmoid) passes no flow there, and at low densities
the layers behind it lose all their weights, which is reported by name.
"""

from typing import Annotated

from subnet_search.extractors import author as ss


@ss.register("synflow")
class SynFlow(ss.Extractor):
    """Keep the weights that conserve synaptic flow.

    Keep the weights that conserve synaptic flow, in rounds, without data.
    """

    paper = ss.Paper(
        "Tanaka, Kunin, Yamins & Ganguli",
        2020,
        "2006.05467",
        "Pruning Neural Networks Without Any Data by Iteratively Conserving Synaptic Flow",
        "R = 1^T (prod |W_l|) 1; s = |dR/dw * w|; round k keeps density^(k / rounds)",
    )
    paradigm = ss.Paradigm("from synaptic flow, before training, without data", "trained", "fixed", True, ss.EVERY_KIND)
    published = ss.Published(
        "ganguli-lab/Synaptic-Flow Results/data/singleshot/0630_2020_cifar10_lottery_vgg11_bn_run0/args.json and Utils/load.py "
        "(CIFAR-10, VGG-11)",
        {"lr": 0.1, "nesterov": True, "weight_decay": 1e-4, "schedule": "step", "milestones": (0.375, 0.75)},
        epochs=160,
    )

    density: ss.Density = 0.1
    rounds: Annotated[ss.Rounds, ss.Int(10, 200, log=True)] = 100
    """Number of times that the flow is measured, on one input each."""
    scope: ss.PlainScope = "global"
    invert: ss.Invert = False

    def begin(self, net: ss.Network, clock: ss.Clock, probe: ss.Probe) -> ss.Change:
        masks = net.masks
        for index in range(self.rounds):
            gates = net.units.gates(masks)
            pruned = {name: weight * gates[name] for name, weight in net.weights.items()}
            scores = ss.saliency(pruned, probe.flow_gradients(pruned))
            scores = ss.inverted(scores) if self.invert else scores
            density = ss.geometric(1.0, self.density, (index + 1) / self.rounds)
            masks = net.units.keep(net.units.pool(scores), density, self.scope, masks)
        return ss.Change(masks)
