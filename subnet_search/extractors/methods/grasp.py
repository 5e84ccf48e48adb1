"""GraSP: keep the weights that preserve gradient flow, before training.

Equation 8; the paper's scores have the opposite sign, and their highest are dropped. Logits are divided by T = 200 as in the
authors' code, which the paper does not mention. They draw ten images a class, we take one batch.
"""

from typing import Annotated

from subnet_search.extractors import author as ss


@ss.register("grasp")
class Grasp(ss.Extractor):
    """Keep the weights that preserve the gradient's norm.

    Keep the weights that preserve the gradient's norm, from one batch before training.
    """

    paper = ss.Paper(
        "Wang, Zhang & Grosse",
        2020,
        "2002.07376",
        "Picking Winning Tickets Before Training by Preserving Gradient Flow",
        "s = w * (H g), logits / T; the highest of all layers",
    )
    paradigm = ss.Paradigm("from gradients, before training", "trained", "fixed", True, ss.EVERY_KIND)
    published = ss.Published(
        "alecwangcq/GraSP configs/cifar10/vgg19/GraSP_90.json and main_prune_non_imagenet.py (CIFAR-10, VGG-19)",
        {"lr": 0.1, "weight_decay": 5e-4, "schedule": "step", "milestones": (0.5, 0.75)},
        epochs=160,
        note="ResNet-32: weight decay 1e-4.",
    )

    density: ss.Density = 0.1
    temperature: Annotated[float, ss.Gt(0), ss.Real(1, 200, log=True)] = 200.0
    """What logits are divided by."""
    images: ss.Images = None
    scope: ss.PlainScope = "global"
    invert: ss.Invert = False

    def begin(self, net: ss.Network, clock: ss.Clock, probe: ss.Probe) -> ss.Change:
        scores = ss.gradient_flow(net.weights, probe.hessian_gradients(net.weights, self.temperature, images=self.images))
        return ss.Change(
            net.units.keep(net.units.pool(ss.inverted(scores) if self.invert else scores), self.density, self.scope)
        )
