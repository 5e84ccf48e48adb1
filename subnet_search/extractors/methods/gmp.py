"""GMP: gradual magnitude pruning along a cubic curve.

Equation 1, on densities. Dropped weights do not grow back. The paper prunes every layer to the same density (`scope: uniform`);
later papers compare with the variant over all layers together.

Where we differ: the last move falls on `end`, so the density is met exactly; common code stops one move early, at
d_f + (d_i - d_f) / n^3.
"""

from typing import Annotated

from subnet_search.extractors import author as ss


@ss.register("gmp")
class GMP(ss.Extractor):
    """Drop the smallest weights gradually while training.

    Drop the smallest weights a little at a time while the network trains.
    """

    paper = ss.Paper(
        "Zhu & Gupta",
        2018,
        "1710.01878",
        "To Prune, or Not to Prune: Exploring the Efficacy of Pruning for Model Compression",
        "d_t = d_f + (d_i - d_f) (1 - (t - t_0) / n)^3; keep the highest |w|",
    )
    paradigm = ss.Paradigm("by magnitude, during training", "trained", "falling, cubic", True, ss.EVERY_KIND)
    published = ss.Published(
        "google-research/rigl rigl/cifar_resnet/resnet_train_eval.py, training method prune (a later comparison: "
        "CIFAR-10, wide ResNet)",
        {
            "lr": 0.1,
            "nesterov": True,
            "weight_decay": 5e-4,
            "schedule": "step",
            "milestones": (0.307, 0.614, 0.922),
            "gamma": 0.2,
        },
        epochs=250,
        note="The settings of the paper's own networks were not verified. ImageNet, ResNet-50 in RAIVNLab/STR "
        "configs/largescale/resnet50-gmp.yaml: lr 0.256, momentum 0.875, weight decay 3.05e-5, cosine, label smoothing 0.1.",
    )

    density: ss.Density = 0.1
    """Fraction of prunable weights kept at the end."""
    start: Annotated[ss.Span, ss.Real(0, 0.3)] = 0.1
    """When dropping begins: steps, or a fraction of the run."""
    end: Annotated[ss.Span, ss.PhaseEnd("start"), ss.Real(0.4, 0.9)] = 0.7
    """When it ends."""
    every: ss.Every = 0.01
    scope: ss.Scope = "global"
    normalise: ss.Normalise = "layer"

    def step(self, net: ss.Network, clock: ss.Clock) -> ss.Change | None:
        done = clock.ramp(self.every, self.start, self.end)
        if done is None:
            return None
        scores = net.units.pool(ss.magnitude(net.weights))
        return ss.Change(net.units.keep(scores, ss.cubic(1.0, self.density, done), self.scope, net.masks, self.normalise))
