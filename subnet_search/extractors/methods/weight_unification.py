"""Weight unification: blocks of weights that share one magnitude, zero included, found by ADMM.

Z is the projection of the weights, and U is 0 at first. Known to us from the abstract, summaries and these formulas; the
schedule is ours. Where we differ: the paper unifies selected blocks, here all kept blocks. After `end` a block is trained as
one magnitude with fixed signs: each weight gets the mean of sign(w) * gradient over its block. The optimizer's state is reset
there, as earlier momentum would move the weights apart.
"""

from typing import Annotated

import torch
from torch import Tensor

from subnet_search.extractors import author as ss


@ss.register("weight_unification")
class WeightUnification(ss.Extractor):
    """Bring each block of weights to one magnitude.

    Bring blocks of weights to one magnitude each, and the smallest to zero, by ADMM; then train the magnitudes.
    """

    paper = ss.Paper(
        "Lin, Jiang, Wang, Xu, Wang, Liu & Li",
        2021,
        "2106.08301",
        "Efficient Micro-Structured Weight Unification and Pruning for Neural Network Compression",
        "L + rho / 2 ||W - Z + U||^2; Z = sign(w) mean |w| of each block of W + U, lowest blocks 0; U += W - Z",
    )
    paradigm = ss.Paradigm("by block magnitude, after ADMM", "trained, one magnitude a block", "in one step", True, ("block",))
    published = ss.Published.none("the paper's training settings were not verified")

    density: Annotated[ss.Density, ss.Real(0.05, 0.9, log=True)] = 0.5
    """Fraction of blocks kept."""
    rho: Annotated[float, ss.Gt(0), ss.Real(1e-4, 1e-1, log=True)] = 1e-2
    """How strongly weights are pulled towards their projection."""
    start: Annotated[ss.Span, ss.Real(0, 0.4)] = 0.2
    """When ADMM begins: steps, or a fraction of the run."""
    end: Annotated[ss.Span, ss.PhaseEnd("start"), ss.Real(0.5, 0.9)] = 0.7
    """When it ends and the weights become their projection."""
    every: ss.Every = 0.02
    """Interval between two updates of Z and U: steps, or a fraction of the run."""
    scope: ss.Scope = "global"

    def penalty(self, net: ss.Network, clock: ss.Clock) -> Tensor | None:
        first, last = self._phase(clock)
        if not first <= clock.step < last:
            return None
        apart = [(w - net.memory[f"z.{name}"] + net.memory[f"u.{name}"]).square().sum() for name, w in net.weights.items()]
        return self.rho / 2 * torch.stack(apart).sum()

    def step(self, net: ss.Network, clock: ss.Clock) -> ss.Change | None:
        first, last = self._phase(clock)
        if clock.step == last:
            masks, unified = self._projection(net, net.weights)
            over = {name: kept.new_zeros(0) for name, kept in net.memory.items()}
            return ss.Change(masks, weights=unified, memory=over, reset_optimizer=True)
        if clock.step == first:
            zeros = {f"u.{name}": torch.zeros_like(w) for name, w in net.weights.items()}
            return ss.Change(memory={f"z.{n}": z for n, z in self._projection(net, net.weights)[1].items()} | zeros)
        if not first < clock.step < last or (clock.step - first) % clock.interval(self.every):
            return None
        moved = {name: w + net.memory[f"u.{name}"] for name, w in net.weights.items()}
        z = self._projection(net, moved)[1]
        return ss.Change(memory={f"z.{n}": z[n] for n in z} | {f"u.{n}": moved[n] - z[n] for n in z})

    def adjust(self, net: ss.Network, clock: ss.Clock) -> None:
        if clock.step < self._phase(clock)[1]:
            return
        gradients, signs = net.gradients, {name: w.sign() for name, w in net.weights.items()}
        means = net.units.expand(net.units.pool({name: g * signs[name] for name, g in gradients.items()}))
        for name, gradient in gradients.items():
            gradient.copy_(signs[name] * means[name])

    def _projection(self, net: ss.Network, weights: ss.Tensors) -> tuple[ss.Masks, dict[str, Tensor]]:
        """The nearest weights whose blocks share a magnitude or are zero, and the blocks that are not."""
        sizes = net.units.pool_magnitude(weights)
        masks = net.units.keep(sizes, self.density, self.scope)
        shared = net.units.expand({name: size * masks[name] for name, size in sizes.items()})
        return masks, {name: w.sign() * shared[name] for name, w in weights.items()}

    def _phase(self, clock: ss.Clock) -> tuple[int, int]:
        """The steps at which ADMM begins and ends."""
        return clock.steps(self.start), clock.point(self.end)
