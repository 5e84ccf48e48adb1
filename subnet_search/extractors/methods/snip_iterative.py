"""Iterative SNIP, and FORCE: connection sensitivity measured again as weights go.

de Jorge, Sanyal, Behl, Torr, Rogez & Dokania 2021, "Progressive Skeletonization: Trimming More Fat from a Network at
Initialization", arXiv:2006.09081, algorithm 1. Densities fall geometrically, density^(k / rounds), with fresh gradients
of the network as pruned so far, on a fresh batch a round. Iterative SNIP never brings a weight back; with `revive` (their
FORCE) every weight is scored by its own value and the pruned network's gradient, so it may return. The authors use up
to 300 rounds; every round costs one training step of the run's budget.
"""

from typing import Annotated

from annotated_types import Ge

from subnet_search.core.search_domains import Int, OneOf, Real
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
from subnet_search.topology.masks import Masks
from subnet_search.topology.schedules import geometric
from subnet_search.topology.scores import inverted, saliency
from subnet_search.topology.units import EVERY_KIND, Units


@register("snip_iterative")
class IterativeSnip(Extractor):
    """Prune by sensitivity in rounds before training, looking at gradients again after each."""

    paper = Paper(
        "de Jorge, Sanyal, Behl, Torr, Rogez & Dokania",
        2021,
        "2006.09081",
        "Progressive Skeletonization: Trimming More Fat from a Network at Initialization",
        "round k keeps density^(k / rounds) by |g(m * w) * w|",
    )
    paradigm = Paradigm("from gradients in rounds, before training", "trained", "fixed", True, EVERY_KIND)
    published = Published(
        "naver/force experiments/experiments.py (CIFAR)",
        {"lr": 0.1, "weight_decay": 5e-4, "schedule": "step", "milestones": (0.43, 0.71)},
        epochs=350,
        note="The authors divide at epochs 150 and 250 of 350. Tiny ImageNet: at 150 and 225 of 300.",
    )

    density: Annotated[Density, Real(0.01, 0.5, log=True)] = 0.1
    """Fraction of prunable weights kept."""
    rounds: Annotated[int, Ge(1), Int(5, 40, log=True)] = 10
    """Times that gradients are measured; each costs a training step."""
    revive: Annotated[bool, OneOf(False, True)] = False
    """Let pruned weights come back (FORCE)."""
    images: Annotated[int, Ge(1)] | None = None
    """Training images in a round's batch. None: as many as in a training step."""
    scope: PlainScope = "global"
    """Whether weights compete over all layers, or each layer gets its share."""
    invert: bool = False
    """Keep the lowest scores instead: a sanity check."""

    def check(self, units: Units, clock: Clock) -> None:
        units.check(self.density, self.scope)

    def begin(self, net: Network, clock: Clock, probe: Probe) -> Change:
        everything = masks = Masks.ones(net.masks)
        for index in range(self.rounds):
            gates = net.units.gates(masks)
            pruned = {name: weight * gates[name] for name, weight in net.weights.items()}
            gradients = probe.gradients(pruned, index, self.images)
            scores = saliency(net.weights, gradients)
            scores = inverted(scores) if self.invert else scores
            density = geometric(1.0, self.density, (index + 1) / self.rounds)
            masks = net.units.keep(net.units.pool(scores), density, self.scope, everything if self.revive else masks)
        return Change(masks)
