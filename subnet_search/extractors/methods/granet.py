"""GraNet: gradual pruning with zero-cost neuroregeneration.

Algorithm 1 and equation 1. At every change (1) the smallest |w| over all layers are dropped, down to the density of a cubic
curve, and (2) every layer drops a further fraction p and grows as many weights where |gradient| is largest. p falls from 0.5
to 0.005 along a cosine over the whole run; (2) continues after (1) has ended. `initial_density` 1 is the paper's
dense-to-sparse, 0.5 from an ERK topology its sparse-to-sparse.

A weight that (2) drops and grows in one change keeps its value and momentum; one that (1) drops and (2) grows begins at zero.
Both are as in the authors' code (Shiweiliuiiiiiii/GraNet). Where we differ from it: the curve's last move falls on `end`, so
the density is met exactly (theirs stops one move early, and keeps one weight fewer at every move); ERK masks have exact
counts, theirs are Bernoulli draws.
"""

from typing import Annotated

from subnet_search.extractors import author as ss
from subnet_search.extractors.methods._drop_and_grow import chances, check_initial, first_scope, growth


@ss.register("granet")
class GraNet(ss.Extractor):
    """Drop the smallest gradually, regrow by the gradient.

    Drop the smallest weights gradually, and at each change swap a part of the rest for those with large gradients.
    """

    paper = ss.Paper(
        "Liu, Chen, Chen, Atashgahi, Yin, Kou, Shen, Pechenizkiy, Wang & Mocanu",
        2021,
        "2106.10404",
        "Sparse Training via Boosting Pruning Plasticity with Neuroregeneration",
        "d_t = d_f + (d_i - d_f) (1 - (t - t_0) / n)^3 by |w|; then each layer swaps p of |w| for as many by |dL/dw|",
    )
    paradigm = ss.Paradigm("gradual, with regrowth, during training", "trained", "falling, cubic", False, ss.EVERY_KIND)
    published = ss.Published(
        "Shiweiliuiiiiiii/GraNet CIFAR/scripts/script and CIFAR/main.py (CIFAR-10, VGG-19 and ResNet-50)",
        {"lr": 0.1, "nesterov": True, "weight_decay": 5e-4, "schedule": "step", "milestones": (0.5, 0.75)},
        epochs=160,
    )

    density: ss.Density = 0.1
    """Fraction of prunable weights kept at the end."""
    initial_density: Annotated[ss.Density, ss.OneOf(0.5, 1.0)] = 1.0
    """Fraction kept at first; at least the density."""
    start: ss.Span = 0
    """When the density begins to fall: steps, or a fraction of the run."""
    end: Annotated[ss.Span, ss.PhaseEnd("start"), ss.Real(0.3, 0.8)] = 0.5
    """When the density is reached."""
    every: ss.Every = 0.02
    drop_fraction: Annotated[ss.DropFraction, ss.Real(0.1, 0.6)] = 0.5
    """Fraction of each layer's weights that is swapped at first (p)."""
    final_drop_fraction: Annotated[float, ss.Gt(0), ss.Le(1)] = 0.005
    """That fraction at the last step."""
    grow: ss.Grow = "gradient"
    scope: ss.PlainScope = "global"
    """Whether weights compete over all layers, from an ERK topology, or each layer has its share, also at first."""
    normalise: ss.Normalise = "layer"

    def check(self, units: ss.Units, clock: ss.Clock) -> None:
        super().check(units, clock)
        check_initial(self.name, units, self.initial_density, self.density, self.scope)

    def begin(self, net: ss.Network, clock: ss.Clock, probe: ss.Probe) -> ss.Change:
        if self.initial_density == 1:
            return ss.Change()
        return ss.Change(net.units.keep(chances(net, clock), self.initial_density, first_scope(self.scope)))

    def step(self, net: ss.Network, clock: ss.Clock) -> ss.Change | None:
        ramp = clock.ramp(self.every, self.start, self.end)
        ramping = clock.steps(self.start) < clock.step < clock.steps(self.end)
        if ramp is None and (ramping or not clock.due(self.every)):
            return None
        kept = net.masks
        if ramp is not None:
            density = ss.cubic(self.initial_density, self.density, ramp)
            kept = net.units.keep(net.units.pool(ss.magnitude(net.weights)), density, self.scope, kept, self.normalise)
        fraction = ss.cosine(self.drop_fraction, self.final_drop_fraction, clock.step / clock.total)
        swapped = net.units.regrow(kept, net.units.pool_magnitude(net.weights), growth(net, clock, self.grow), fraction)
        return ss.Change(swapped, survivors=kept)
