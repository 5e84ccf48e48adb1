"""SNIP: keep the weights that the loss is most sensitive to, before training.

Equation 6. The authors divide by the sum of all s, which changes no rank. At low densities whole layers can be dropped: that is
reported, not corrected.
"""

from subnet_search.extractors import author as ss


@ss.register("snip")
class Snip(ss.Extractor):
    """Keep the weights that the loss is most sensitive to.

    Keep the weights that the loss is most sensitive to, by one batch before training.
    """

    paper = ss.Paper(
        "Lee, Ajanthan & Torr",
        2019,
        "1810.02340",
        "SNIP: Single-Shot Network Pruning Based on Connection Sensitivity",
        "s = |g * w|, g = dL/dw on one batch; the highest of all layers",
    )
    paradigm = ss.Paradigm("from gradients, before training", "trained", "fixed", True, ss.EVERY_KIND)
    published = ss.Published(
        "the comparison with SNIP of Wang et al. 2020, arXiv:2002.07376 (alecwangcq/GraSP configs/cifar10/vgg19 and "
        "main_prune_non_imagenet.py: CIFAR-10, VGG-19)",
        {"lr": 0.1, "weight_decay": 5e-4, "schedule": "step", "milestones": (0.5, 0.75)},
        epochs=160,
        note="mil-ad/snip train.py, a re-implementation of the paper: the same rate and decay, divided by 10 every 30,000 "
        "steps, 250 epochs.",
    )

    density: ss.Density = 0.1
    images: ss.Images = None
    scope: ss.PlainScope = "global"
    invert: ss.Invert = False

    def begin(self, net: ss.Network, clock: ss.Clock, probe: ss.Probe) -> ss.Change:
        scores = ss.saliency(net.weights, probe.gradients(net.weights, images=self.images))
        return ss.Change(
            net.units.keep(net.units.pool(ss.inverted(scores) if self.invert else scores), self.density, self.scope)
        )
