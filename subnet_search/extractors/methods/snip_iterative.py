"""Iterative SNIP, and FORCE: sensitivity measured again after each round of pruning.

Algorithm 1, with a new batch each round. Iterative SNIP never brings a weight back; with `revive` (their FORCE) every weight is
scored by its own value and the pruned network's gradient, so it may return. The authors use up to 300 rounds.
"""

from typing import Annotated

from subnet_search.extractors import author as ss


@ss.register("snip_iterative")
class IterativeSnip(ss.Extractor):
    """Prune by sensitivity in rounds, with new gradients.

    Prune by sensitivity in rounds before training, with new gradients in each.
    """

    paper = ss.Paper(
        "de Jorge, Sanyal, Behl, Torr, Rogez & Dokania",
        2021,
        "2006.09081",
        "Progressive Skeletonization: Trimming More Fat from a Network at Initialization",
        "round k keeps density^(k / rounds) by |g(m * w) * w|",
    )
    paradigm = ss.Paradigm("from gradients in rounds, before training", "trained", "fixed", True, ss.EVERY_KIND)
    published = ss.Published(
        "naver/force experiments/experiments.py (CIFAR)",
        {"lr": 0.1, "weight_decay": 5e-4, "schedule": "step", "milestones": (0.43, 0.71)},
        epochs=350,
        note="The authors divide at epochs 150 and 250 of 350. Tiny ImageNet: at 150 and 225 of 300.",
    )

    density: ss.Density = 0.1
    rounds: Annotated[ss.Rounds, ss.Int(5, 40, log=True)] = 10
    """Number of times that gradients are measured; each costs a training step."""
    revive: Annotated[bool, ss.OneOf(False, True)] = False
    """Let pruned weights come back (FORCE)."""
    images: ss.Images = None
    scope: ss.PlainScope = "global"
    invert: ss.Invert = False

    def begin(self, net: ss.Network, clock: ss.Clock, probe: ss.Probe) -> ss.Change:
        everything = masks = ss.Masks.ones(net.masks)
        for index in range(self.rounds):
            gates = net.units.gates(masks)
            pruned = {name: weight * gates[name] for name, weight in net.weights.items()}
            gradients = probe.gradients(pruned, index, self.images)
            scores = ss.saliency(net.weights, gradients)
            scores = ss.inverted(scores) if self.invert else scores
            density = ss.geometric(1.0, self.density, (index + 1) / self.rounds)
            masks = net.units.keep(net.units.pool(scores), density, self.scope, everything if self.revive else masks)
        return ss.Change(masks)
