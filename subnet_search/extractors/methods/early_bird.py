"""Early-bird tickets: the channels that matter are known early, when the mask stops moving.

You, Li, Xu, Fu, Wang, Chen, Baraniuk, Wang & Lin 2020, "Drawing Early-Bird Tickets: Towards More Efficient Training of Deep
Networks", arXiv:1909.11957, algorithm 1. Train with network slimming's penalty, lambda * sum |gamma|. After every epoch the
mask of the channels of highest |gamma| over all layers is made, and its distance to those of the epochs before: the
fraction of channels in which two differ. When the largest among the last five masks (the newest with each other, as in
the authors' code) is below 0.1 the ticket is drawn: the other channels are dropped and training goes on without penalty.

Where we differ: when no ticket was found by `until`, the mask of that step is drawn. `every` stands for the epoch; the
authors' runs have 160. Channels without a batch norm stay.
"""

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from subnet_search.core.search_domains import Real
from subnet_search.extractors.base import (
    Change,
    Clock,
    Density,
    Every,
    Extractor,
    Network,
    Paper,
    Paradigm,
    Probe,
    Published,
    Span,
)
from subnet_search.extractors.methods._batch_norm_scale import check_norms, norm_penalty, norm_scales
from subnet_search.extractors.registry import register
from subnet_search.topology.units import Units


@register("early_bird")
class EarlyBird(Extractor):
    """Train with a penalty on batch-norm scales until the channels of largest scale stay the same, and keep those."""

    paper = Paper(
        "You, Li, Xu, Fu, Wang, Chen, Baraniuk, Wang & Lin",
        2020,
        "1909.11957",
        "Drawing Early-Bird Tickets: Towards More Efficient Training of Deep Networks",
        "L + lambda sum |gamma|; draw m_t = top |gamma| when max over the last 5 of mean(m_t != m_s) < 0.1",
    )
    paradigm = Paradigm(
        "by batch-norm scale, early in training", "trained", "in one step, when the mask is stable", True, ("channel",)
    )
    published = Published(
        "GATECH-EIC/Early-Bird-Tickets README.md and main.py (CIFAR)",
        {"lr": 0.1, "batch_size": 256, "weight_decay": 1e-4, "schedule": "step", "milestones": (0.5, 0.75)},
        epochs=160,
    )

    density: Annotated[Density, Real(0.1, 0.9)] = 0.5
    """Fraction of channels kept."""
    strength: Annotated[float, Ge(0), Real(1e-5, 1e-2, log=True)] = 1e-4
    """Of the penalty (lambda)."""
    threshold: Annotated[float, Gt(0), Le(1), Real(0.02, 0.2)] = 0.1
    """The mask distance below which the ticket is drawn."""
    window: Annotated[int, Ge(2)] = 5
    """Masks among which the distance is taken."""
    every: Every = 0.01
    """Between two masks: steps, or a fraction of the run."""
    until: Annotated[Span, Real(0.2, 0.8)] = 0.5
    """When a ticket is drawn at the latest: steps, or a fraction of the run."""

    def check(self, units: Units, clock: Clock) -> None:
        units.check(self.density)
        clock.check_end("early_bird.until", 1, self.until)
        clock.check_interval("early_bird.every", self.every)

    def begin(self, net: Network, clock: Clock, probe: Probe) -> Change:
        check_norms(self.name, net, self.density)
        return Change()

    def penalty(self, net: Network, clock: Clock) -> Tensor | None:
        return None if "drawn" in net.memory else self.strength * norm_penalty(net)

    def step(self, net: Network, clock: Clock) -> Change | None:
        last = min(clock.steps(self.until), clock.total - 1)
        if "drawn" in net.memory or (clock.step != last and not clock.due(self.every)):
            return None
        ticket = net.units.keep(norm_scales(net), self.density)
        newest = torch.cat(list(ticket.values()))
        masks = torch.stack([*net.memory.get("masks", ()), newest])[-self.window :]  # (masks, channels)
        if clock.step == last or (len(masks) == self.window and distance(masks) < self.threshold):
            return Change(ticket, memory={"masks": masks, "drawn": torch.tensor(clock.step, device=newest.device)})
        return Change(memory={"masks": masks})


def distance(masks: Tensor) -> float:
    """The largest fraction of channels in which the last of `masks`, bool (masks, channels), differs from another."""
    return float((masks[:-1] != masks[-1]).float().mean(1).max())
