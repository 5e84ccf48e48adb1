"""AC/DC: alternating compressed and decompressed training.

Algorithm 1. After dense training up to `start`, phases of length `every` alternate: a compressed phase keeps the largest |w|
and trains them; a decompressed phase trains all weights, the dropped ones from zero. The optimizer's state is reset at each
decompression, as in the authors' launch scripts (IST-DASLab/ACDC). The last phase, from `end` on, is compressed. The
decompressed phase before it is extended up to `end` where no full pair of phases fits.

The authors' ImageNet schedule of 100 epochs: dense for 10, phases of 5, the last two from 75 (decompressed) and 85
(compressed) on. CIFAR, 200 epochs: dense for 10, phases of 20, the last from 170 on (start 0.05, every 0.1).
"""

from typing import Annotated

from subnet_search.extractors import author as ss


@ss.register("ac_dc")
class ACDC(ss.Extractor):
    """Train the largest weights alone and all of them in turn.

    Alternate between training the largest weights alone and training all of them.
    """

    paper = ss.Paper(
        "Peste, Iofinova, Vladu & Alistarh",
        2021,
        "2106.12379",
        "AC/DC: Alternating Compressed/DeCompressed Training of Deep Neural Networks",
        "compressed: m = top k of |w|; decompressed: m = 1",
    )
    paradigm = ss.Paradigm("by magnitude, repeatedly during training", "trained", "alternating with dense", True, ss.EVERY_KIND)
    published = ss.Published(
        "IST-DASLab/ACDC configs/neurips/iht_cifar10_resnet20_unstructured_insta_prune_freq20_90_constant.yaml and "
        "run_cifar10_randomlabels_iht_no_da.sh (CIFAR-10, ResNet-20)",
        {"lr": 0.1, "weight_decay": 5e-4, "schedule": "step", "milestones": (0.325, 0.625, 0.925)},
        epochs=200,
        note="CIFAR-100, wide ResNet: lr 0.08, Nesterov, warm-up, divided by 10 at epochs 75, 115 and 155 of 200. ImageNet: lr "
        "0.256, momentum 0.875, weight decay 3.05e-5, cosine, 5 epochs of warm-up, 100 epochs.",
    )

    density: ss.Density = 0.1
    """Fraction of prunable weights kept in compressed phases, and at the end."""
    start: Annotated[ss.Span, ss.Real(0.05, 0.3)] = 0.1
    """When the first compressed phase begins: steps, or a fraction of the run."""
    end: Annotated[ss.Span, ss.PhaseEnd("start"), ss.Real(0.6, 0.95)] = 0.85
    """When the last compressed phase begins."""
    every: Annotated[ss.Every, ss.Real(0.02, 0.1, log=True)] = 0.05
    """The length of a phase."""
    scope: ss.Scope = "global"
    normalise: ss.Normalise = "layer"

    def step(self, net: ss.Network, clock: ss.Clock) -> ss.Change | None:
        first, last = clock.steps(self.start), clock.point(self.end)
        length = clock.interval(self.every)
        phase, since = divmod(clock.step - first, length)
        if clock.step != last:
            compressed = clock.step - phase % 2 * length  # when this pair of phases began
            if since or not first <= clock.step < last or compressed + 2 * length > last:
                return None  # within a phase, or no room for another pair of phases before the last
            if phase % 2:
                return ss.Change(ss.Masks.ones(net.masks), reset_optimizer=True)
        scores = net.units.pool(ss.magnitude(net.weights))
        return ss.Change(net.units.keep(scores, self.density, self.scope, net.masks, self.normalise))
