"""GMP: gradual magnitude pruning along a cubic curve.

Equation 1, on densities: d_t = d_f + (d_i - d_f) (1 - (t - t_0) / n)^3. Dropped weights do not grow back. The paper prunes
every layer to the same density (`scope: uniform`); later papers compare with the variant over all layers together.

Where we differ: the last move falls on `end`, so the density is met exactly; common code stops one move early, at
d_f + (d_i - d_f) / n^3.
"""

from typing import Annotated

from subnet_search.extractors.author import (
    EVERY_KIND,
    Change,
    Clock,
    Density,
    Every,
    Extractor,
    Network,
    Normalise,
    Paper,
    Paradigm,
    PhaseEnd,
    Published,
    Real,
    Scope,
    Span,
    cubic,
    magnitude,
    register,
)


@register("gmp")
class GMP(Extractor):
    """Drop the smallest weights a little at a time while the network trains."""

    paper = Paper(
        "Zhu & Gupta",
        2018,
        "1710.01878",
        "To Prune, or Not to Prune: Exploring the Efficacy of Pruning for Model Compression",
        "d_t = d_f + (d_i - d_f) (1 - (t - t_0) / n)^3; keep the highest |w|",
    )
    paradigm = Paradigm("by magnitude, during training", "trained", "falling, cubic", True, EVERY_KIND)
    published = Published(
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

    density: Density = 0.1
    """Fraction of prunable weights kept at the end."""
    start: Annotated[Span, Real(0, 0.3)] = 0.1
    """When dropping begins: steps, or a fraction of the run."""
    end: Annotated[Span, PhaseEnd("start"), Real(0.4, 0.9)] = 0.7
    """When it ends."""
    every: Every = 0.01
    scope: Scope = "global"
    normalise: Normalise = "layer"

    def step(self, net: Network, clock: Clock) -> Change | None:
        done = clock.ramp(self.every, self.start, self.end)
        if done is None:
            return None
        scores = net.units.pool(magnitude(net.weights))
        return Change(net.units.keep(scores, cubic(1.0, self.density, done), self.scope, net.masks, self.normalise))
