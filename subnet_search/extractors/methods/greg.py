"""GReg-1: channels that will be dropped get a growing penalty first, which makes them small.

Algorithm 1. The filters that are not chosen keep their weight decay. The authors' filters: delta 1e-4 every 10 steps up to 1,
then thousands of steps at that. Our default delta reaches the ceiling at the last growth before `end`, however short the run.
"""

from typing import Annotated

import torch
from torch import Tensor

from subnet_search.extractors import author as ss
from subnet_search.extractors.methods._channel_ranking import channels


@ss.register("greg")
class GReg(ss.Extractor):
    """Shrink the filters of small L1 norm, drop them.

    Choose the channels of smallest L1 norm, shrink them by a growing penalty, drop them, and fine-tune.
    """

    paper = ss.Paper(
        "Wang, Qin, Zhang & Fu",
        2021,
        "2012.09243",
        "Neural Pruning via Growing Regularization",
        "chosen: lowest ||w_f||_1; L + lambda / 2 sum over chosen ||w_f||_2^2, lambda grows by delta every K steps",
    )
    paradigm = ss.Paradigm(
        "by filter norm, before they are shrunk", "trained", "in one step, after a penalty", True, ("channel",)
    )
    published = ss.Published(
        "MingSun-Tse/Regularization-Pruning README.md (the network that is pruned: CIFAR-10, ResNet-56)",
        {"lr": 0.1, "batch_size": 256, "weight_decay": 5e-4, "schedule": "step", "milestones": (0.5, 0.75)},
        epochs=200,
        note="Under the growing penalty the rate is 0.001; then 120 epochs at 0.01, divided by 10 at epochs 60 and 90 "
        "(train_params/1_IncReg_resnet56_cifar10.yaml).",
    )

    density: ss.ChannelDensity = 0.5
    start: Annotated[ss.Span, ss.Real(0.1, 0.5)] = 0.3
    """When channels are chosen: steps, or a fraction of the run."""
    end: Annotated[ss.Span, ss.PhaseEnd("start"), ss.Real(0.6, 0.9)] = 0.7
    """When they are dropped."""
    every: Annotated[ss.Span, ss.Real(0.001, 0.05, log=True)] = 0.01
    """Interval between two growths (K): steps, or a fraction of the run."""
    ceiling: Annotated[float, ss.Gt(0), ss.Real(0.1, 2, log=True)] = 1.0
    """The highest value of the penalty's factor lambda."""
    delta: Annotated[float, ss.Gt(0)] | None = None
    """What the factor grows by. None: as much as reaches the ceiling at the last growth."""
    scope: ss.Scope = "uniform"
    normalise: ss.Normalise = "layer"

    def check(self, units: ss.Units, clock: ss.Clock) -> None:
        super().check(units, clock)
        first, last, every = self._phase(clock)
        if last - first <= every:
            raise ss.UserError(f"greg.every: a penalty cannot grow every {every} steps between step {first} and step {last}")

    def penalty(self, net: ss.Network, clock: ss.Clock) -> Tensor | None:
        if not net.memory or clock.step >= self._phase(clock)[1]:
            return None
        filters = channels(net).filters(net.weights)
        squares = [(numbers.square().sum(1) * net.memory[name]).sum() for name, numbers in filters.items()]
        return self.factor(clock) / 2 * torch.stack(squares).sum()

    def factor(self, clock: ss.Clock) -> float:
        """The lambda of a step between `start` and `end`."""
        first, last, every = self._phase(clock)
        delta = self.delta or self.ceiling / ((last - first - 1) // every)
        return min(self.ceiling, delta * ((clock.step - first) // every))

    def step(self, net: ss.Network, clock: ss.Clock) -> ss.Change | None:
        first, last, _ = self._phase(clock)
        if clock.step == first:
            norms = ss.filter_norms(channels(net).filters(net.weights), 1)
            kept = net.units.keep(norms, self.density, self.scope, normalise=self.normalise)
            return ss.Change(memory={name: ~mask for name, mask in kept.items()})
        if clock.step == last:
            return ss.Change(ss.Masks({name: ~chosen for name, chosen in net.memory.items()}))
        return None

    def _phase(self, clock: ss.Clock) -> tuple[int, int, int]:
        """The steps at which channels are chosen and dropped, and how many lie between two growths."""
        return clock.steps(self.start), clock.point(self.end), max(1, clock.steps(self.every))
