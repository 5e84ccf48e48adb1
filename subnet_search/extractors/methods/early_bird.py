"""Early-bird tickets: draw the mask of channels early in training, as soon as it stops changing.

Algorithm 1, with the threshold of the authors' code. Channels are ranked over all layers. Once the ticket is drawn, the other
channels are dropped, and training continues without the penalty.

Where we differ: without a ticket by `until`, the mask of that step is used. `every` replaces the epoch; the authors' runs
have 160. Channels without a batch norm are kept.
"""

from typing import Annotated

import torch
from torch import Tensor

from subnet_search.extractors import author as ss
from subnet_search.extractors.methods._batch_norm_scale import check_norms, norm_penalty, norm_scales


@ss.register("early_bird")
class EarlyBird(ss.Extractor):
    """Keep the channels of largest scale, once stable.

    Train with a penalty on batch-norm scales until the channels of largest scale stay the same, and keep those.
    """

    paper = ss.Paper(
        "You, Li, Xu, Fu, Wang, Chen, Baraniuk, Wang & Lin",
        2020,
        "1909.11957",
        "Drawing Early-Bird Tickets: Towards More Efficient Training of Deep Networks",
        "L + lambda sum |gamma|; draw m_t = top |gamma| when max over the last 5 of mean(m_t != m_s) < 0.1",
    )
    paradigm = ss.Paradigm(
        "by batch-norm scale, early in training", "trained", "in one step, when the mask is stable", True, ("channel",)
    )
    published = ss.Published(
        "GATECH-EIC/Early-Bird-Tickets README.md and main.py (CIFAR)",
        {"lr": 0.1, "batch_size": 256, "weight_decay": 1e-4, "schedule": "step", "milestones": (0.5, 0.75)},
        epochs=160,
    )

    density: ss.ChannelDensity = 0.5
    strength: ss.Strength = 1e-4
    threshold: Annotated[float, ss.Gt(0), ss.Le(1), ss.Real(0.02, 0.2)] = 0.1
    """The mask distance below which the ticket is drawn."""
    window: Annotated[int, ss.Ge(2)] = 5
    """How many of the last masks are compared."""
    every: ss.Every = 0.01
    """Interval between two masks: steps, or a fraction of the run."""
    until: Annotated[ss.Span, ss.PhaseEnd(1), ss.Real(0.2, 0.8)] = 0.5
    """When the ticket is drawn at the latest: steps, or a fraction of the run."""

    def check_network(self, net: ss.Network) -> None:
        check_norms(self.name, net, self.density)

    def penalty(self, net: ss.Network, clock: ss.Clock) -> Tensor | None:
        return None if "drawn" in net.memory else self.strength * norm_penalty(net)

    def step(self, net: ss.Network, clock: ss.Clock) -> ss.Change | None:
        last = clock.point(self.until)
        if "drawn" in net.memory or (clock.step != last and not clock.due(self.every)):
            return None
        ticket = net.units.keep(norm_scales(net), self.density)
        newest = torch.cat(list(ticket.values()))
        masks = torch.stack([*net.memory.get("masks", ()), newest])[-self.window :]  # (masks, channels)
        if clock.step == last or (len(masks) == self.window and distance(masks) < self.threshold):
            return ss.Change(ticket, memory={"masks": masks, "drawn": torch.tensor(clock.step, device=newest.device)})
        return ss.Change(memory={"masks": masks})


def distance(masks: Tensor) -> float:
    """The largest fraction of channels in which the last of `masks`, bool (masks, channels), differs from another."""
    return float((masks[:-1] != masks[-1]).float().mean(1).max())
