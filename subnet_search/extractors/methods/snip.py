"""SNIP: keep the connections that the loss is most sensitive to, before any training.

Lee, Ajanthan & Torr 2019, "SNIP: Single-Shot Network Pruning Based on Connection Sensitivity", arXiv:1810.02340,
equation 6. One batch through the untrained network; s = |g * w| for the gradient g of the loss; the highest over all
layers live, and the network is then trained. The authors divide by the sum of all s, which changes no rank. At low
densities whole layers can go: that is reported, never mended.
"""

from typing import Annotated

from annotated_types import Ge

from subnet_search.core.search_domains import Real
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
from subnet_search.topology.scores import inverted, saliency
from subnet_search.topology.units import EVERY_KIND, Units


@register("snip")
class Snip(Extractor):
    """Keep the weights whose loss is most sensitive to them, from one batch before training."""

    paper = Paper(
        "Lee, Ajanthan & Torr",
        2019,
        "1810.02340",
        "SNIP: Single-Shot Network Pruning Based on Connection Sensitivity",
        "s = |g * w|, g = dL/dw on one batch; the highest of all layers",
    )
    paradigm = Paradigm("from gradients, before training", "trained", "fixed", True, EVERY_KIND)
    published = Published(
        "the comparison with SNIP of Wang et al. 2020, arXiv:2002.07376 (alecwangcq/GraSP configs/cifar10/vgg19 and "
        "main_prune_non_imagenet.py: CIFAR-10, VGG-19)",
        {"lr": 0.1, "weight_decay": 5e-4, "schedule": "step", "milestones": (0.5, 0.75)},
        epochs=160,
        note="mil-ad/snip train.py, a re-implementation of the paper: the same rate and decay, divided by 10 every 30,000 "
        "steps, 250 epochs.",
    )

    density: Annotated[Density, Real(0.01, 0.5, log=True)] = 0.1
    """Fraction of prunable weights kept."""
    images: Annotated[int, Ge(1)] | None = None
    """Training images in the batch. None: as many as in a training step."""
    scope: PlainScope = "global"
    """Whether weights compete over all layers, or each layer gets its share."""
    invert: bool = False
    """Keep the lowest scores instead: a sanity check."""

    def check(self, units: Units, clock: Clock) -> None:
        units.check(self.density, self.scope)

    def begin(self, net: Network, clock: Clock, probe: Probe) -> Change:
        scores = saliency(net.weights, probe.gradients(net.weights, images=self.images))
        return Change(net.units.keep(net.units.pool(inverted(scores) if self.invert else scores), self.density, self.scope))
