"""SynFlow: keep the weights that carry synaptic flow; no data, and no layer dies before it must.

Tanaka, Kunin, Yamins & Ganguli 2020, "Pruning Neural Networks Without Any Data by Iteratively Conserving Synaptic Flow",
arXiv:2006.05467, algorithm 1. R = 1^T (prod |W_l|) 1 is the network's output on an input of ones with every parameter
made positive; s = |dR/dw * w|. In `rounds` rounds the density falls geometrically, density^(k / rounds), and scores are
taken again. Batch norm is in evaluation mode, as in the authors' code; absolute values are passed through the network
instead of being written into it and taken back, and in double precision, where deep products do not overflow.

Trap: the theory is about rectifiers. An activation that saturates (ReLU6, sigmoid) passes no flow where it does, and at
low densities the layers behind it collapse, which is reported by name.
"""

from typing import Annotated

from annotated_types import Ge

from subnet_search.core.search_domains import Int, Real
from subnet_search.extractors.base import (
    Change,
    Clock,
    Density,
    Extractor,
    Network,
    Paper,
    Paradigm,
    PlainScope,
    Probe,
    Published,
)
from subnet_search.extractors.registry import register
from subnet_search.topology.schedules import geometric
from subnet_search.topology.scores import inverted, saliency
from subnet_search.topology.units import EVERY_KIND, Units


@register("synflow")
class SynFlow(Extractor):
    """Keep the weights that conserve synaptic flow, in rounds, without data."""

    paper = Paper(
        "Tanaka, Kunin, Yamins & Ganguli",
        2020,
        "2006.05467",
        "Pruning Neural Networks Without Any Data by Iteratively Conserving Synaptic Flow",
        "R = 1^T (prod |W_l|) 1; s = |dR/dw * w|; round k keeps density^(k / rounds)",
    )
    paradigm = Paradigm("from synaptic flow, before training, without data", "trained", "fixed", True, EVERY_KIND)
    published = Published(
        "ganguli-lab/Synaptic-Flow Results/data/singleshot/0630_2020_cifar10_lottery_vgg11_bn_run0/args.json and Utils/load.py "
        "(CIFAR-10, VGG-11)",
        {"lr": 0.1, "nesterov": True, "weight_decay": 1e-4, "schedule": "step", "milestones": (0.375, 0.75)},
        epochs=160,
    )

    density: Annotated[Density, Real(0.01, 0.5, log=True)] = 0.1
    """Fraction of prunable weights kept."""
    rounds: Annotated[int, Ge(1), Int(10, 200, log=True)] = 100
    """Times that the flow is measured, on one input each."""
    scope: PlainScope = "global"
    """Whether weights compete over all layers, or each layer gets its share."""
    invert: bool = False
    """Keep the lowest scores instead: a sanity check."""

    def check(self, units: Units, clock: Clock) -> None:
        units.check(self.density, self.scope)

    def begin(self, net: Network, clock: Clock, probe: Probe) -> Change:
        masks = net.masks
        for index in range(self.rounds):
            gates = net.units.gates(masks)
            pruned = {name: weight * gates[name] for name, weight in net.weights.items()}
            scores = saliency(pruned, probe.flow_gradients(pruned))
            scores = inverted(scores) if self.invert else scores
            density = geometric(1.0, self.density, (index + 1) / self.rounds)
            masks = net.units.keep(net.units.pool(scores), density, self.scope, masks)
        return Change(masks)
