"""MEST: memory-economic sparse training with elastic mutation.

Section 3.1. The fraction that is moved falls over the run (elastic mutation). The gradient tells which small weights are still
growing. All that grow begin at zero, also those dropped in the same change.

Where we differ from the authors' code (boone891214/MEST): the fraction falls in a straight line, theirs in three levels (20,
10 and 0 % of the alive weights, with a change every 5 of 160 epochs); their scripts run with lambda 0, the paper with its sum;
a weight that grows has fresh momentum, theirs has what it had before it was dropped; the soft memory bound, which holds more
weights for a while, is left out.
"""

from typing import Annotated

from subnet_search.extractors import author as ss
from subnet_search.extractors.methods._drop_and_grow import DropAndGrow, growth


@ss.register("mest")
class MEST(DropAndGrow):
    """Drop small weights with small gradients, grow at random.

    Drop weights that are small and have small gradients, grow others at random, fewer at each change.
    """

    paper = ss.Paper(
        "Yuan, Ma, Niu, Li, Kong, Liu, Gong, Zhan, He, Jin, Wang, Qin, Ren, Wang, Liu & Lin",
        2021,
        "2110.14032",
        "MEST: Accurate and Fast Memory-Economic Sparse Training Framework on the Edge",
        "each layer: drop the lowest |w| + lambda |dL/dw|, grow as many at random",
    )
    paradigm = ss.Paradigm("drop and grow, during training", "trained", "fixed", True, ss.EVERY_KIND)
    published = ss.Published(
        "boone891214/MEST scripts/resnet32/EM/run_mag_prune_irr_sp_EM.sh and main_sparse_train.py (CIFAR-10, ResNet-32)",
        {"lr": 0.1, "batch_size": 64, "weight_decay": 1e-4, "schedule": "cosine"},
        epochs=160,
    )

    allocation: ss.Allocation = "uniform"
    drop_fraction: ss.DropFraction = 0.3
    """Fraction of each layer's weights that is moved at first; it falls to 0 in a straight line."""
    gradient_weight: Annotated[float, ss.Ge(0), ss.Real(0.001, 1, log=True)] = 0.01
    """Weight of gradients beside magnitudes (lambda)."""

    def step(self, net: ss.Network, clock: ss.Clock) -> ss.Change | None:
        if not clock.due(self.every, self.until):
            return None
        fraction = ss.linear(self.drop_fraction, 0.0, clock.step / clock.steps(self.until))
        keep = net.units.pool(ss.magnitude_and_gradient(net.weights, net.gradients, self.gradient_weight))
        kept = ss.drop(net.masks, keep, fraction)
        return ss.Change(net.units.grow(kept, growth(net, clock, "random"), net.masks), survivors=kept)
