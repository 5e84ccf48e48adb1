"""AC/DC: alternating compressed and decompressed training.

Peste, Iofinova, Vladu & Alistarh 2021, "AC/DC: Alternating Compressed/DeCompressed Training of Deep Neural Networks",
arXiv:2106.12379, algorithm 1. After a dense warm-up, phases alternate: a compressed one begins with the top |w| of all
layers and trains in them, a decompressed one lets every weight live again, from zero. Momentum begins anew at each
decompression, as in the authors' launch scripts (IST-DASLab/ACDC). The last phase is compressed and longer; the decompressed
phase before it goes on until it begins, since a compression so late would meet the same weights again. The authors' ImageNet
schedule of 100 epochs: dense for 10, phases of 5, the last two from 75 (decompressed) and 85 on (compressed), so 50 epochs
are dense. CIFAR's of 200: dense for 10, phases of 20, the last from 170 on (start 0.05, every 0.1).
"""

from typing import Annotated

from subnet_search.core.search_domains import Real
from subnet_search.extractors.base import (
    Change,
    Clock,
    Density,
    Extractor,
    Interval,
    Network,
    Normalise,
    Paper,
    Paradigm,
    Published,
    Scope,
    Span,
)
from subnet_search.extractors.registry import register
from subnet_search.topology.masks import Masks
from subnet_search.topology.scores import magnitude
from subnet_search.topology.units import EVERY_KIND, Units


@register("ac_dc")
class ACDC(Extractor):
    """Alternate between training the largest weights alone and training all of them."""

    paper = Paper(
        "Peste, Iofinova, Vladu & Alistarh",
        2021,
        "2106.12379",
        "AC/DC: Alternating Compressed/DeCompressed Training of Deep Neural Networks",
        "compressed: m = top k of |w|; decompressed: m = 1",
    )
    paradigm = Paradigm("by magnitude, again and again during training", "trained", "alternating with dense", True, EVERY_KIND)
    published = Published(
        "IST-DASLab/ACDC configs/neurips/iht_cifar10_resnet20_unstructured_insta_prune_freq20_90_constant.yaml and "
        "run_cifar10_randomlabels_iht_no_da.sh (CIFAR-10, ResNet-20)",
        {"lr": 0.1, "weight_decay": 5e-4, "schedule": "step", "milestones": (0.325, 0.625, 0.925)},
        epochs=200,
        note="CIFAR-100, wide ResNet: lr 0.08, Nesterov, warm-up, divided by 10 at epochs 75, 115 and 155 of 200. ImageNet: lr "
        "0.256, momentum 0.875, weight decay 3.05e-5, cosine, 5 epochs of warm-up, 100 epochs.",
    )

    density: Annotated[Density, Real(0.01, 0.5, log=True)] = 0.1
    """Fraction of prunable weights kept in compressed phases, and in the end."""
    start: Annotated[Span, Real(0.05, 0.3)] = 0.1
    """When the first compressed phase begins: steps, or a fraction of the run."""
    end: Annotated[Span, Real(0.6, 0.95)] = 0.85
    """When the last compressed phase begins."""
    every: Annotated[Span, Interval(), Real(0.02, 0.1, log=True)] = 0.05
    """The length of a phase."""
    scope: Scope = "global"
    """Whether weights compete over all layers, or each layer gets its share."""
    normalise: Normalise = "layer"

    def check(self, units: Units, clock: Clock) -> None:
        units.check(self.density, self.scope)
        clock.check_end("ac_dc.end", self.start, self.end)
        clock.check_interval("ac_dc.every", self.every)

    def step(self, net: Network, clock: Clock) -> Change | None:
        first, last = clock.steps(self.start), min(clock.steps(self.end), clock.total - 1)
        length = clock.interval(self.every)
        phase, since = divmod(clock.step - first, length)
        if clock.step != last:
            compressed = clock.step - phase % 2 * length  # when this pair of phases began
            if since or not first <= clock.step < last or compressed + 2 * length > last:
                return None  # amid a phase, or no room for a compressed and a decompressed one before the last
            if phase % 2:
                return Change(Masks.ones(net.masks), reset_optimizer=True)
        scores = net.units.pool(magnitude(net.weights))
        return Change(net.units.keep(scores, self.density, self.scope, net.masks, self.normalise))
