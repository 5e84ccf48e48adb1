"""Gem-Miner: rare gems, found by learning which weights of an untrained network to freeze at zero, in rounds.

Sreenivasan et al. 2022, "Rare Gems: Finding Lottery Tickets at Initialization", arXiv:2202.12002. Scores
s in [0, 1] begin uniform; the network computes with w * 1[s > 1/2] inside the masks in force, the gradient passes
straight through to the scores of living weights, and scores are clamped to [0, 1]. At the end of each of `rounds` rounds
the lowest scores over all layers die for good, leaving density^(r / rounds). After the last, the weights that live, those
with s <= 1/2 among them (the authors' `unflag`), are trained from their initial values.

The authors prune every 5 of 150 epochs, which makes 30 rounds, then fine-tune for 150 with rate 0.01. Their penalty of
lambda * ||s||^2 has lambda 3e-5 where 3.72 % are kept and 1e-4 where 0.59 % are (the default here: its gradient is that of
a decay of 2 lambda). Search and training each go through the learning rate's whole schedule.
"""

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from subnet_search.core.errors import UserError
from subnet_search.core.search_domains import Int, Real
from subnet_search.extractors.base import (
    Change,
    Clock,
    Density,
    Network,
    Paper,
    Paradigm,
    PlainScope,
    Published,
    RelevanceLearner,
    Span,
)
from subnet_search.extractors.registry import register
from subnet_search.topology.masks import Masks
from subnet_search.topology.samplers import straight_through
from subnet_search.topology.schedules import geometric
from subnet_search.topology.units import Units


@register("gem_miner")
class GemMiner(RelevanceLearner):
    """Learn scores on an untrained network, drop the lowest in rounds, then train what is left."""

    paper = Paper(
        "Sreenivasan, Sohn, Yang, Grinde, Nagle, Wang, Xing, Lee & Papailiopoulos",
        2022,
        "2202.12002",
        "Rare Gems: Finding Lottery Tickets at Initialization",
        "z = q * 1[s > 1/2], s in [0, 1]; dL/ds = q * dL/dz; q_r = top density^(r / rounds) of s inside q_(r-1)",
    )
    paradigm = Paradigm("learned on frozen weights, in rounds", "initial, then trained", "in steps", True)
    published = Published(
        "ksreenivasan/pruning_is_enough configs/hypercube/resnet20/resnet20_sparsity_1_44_unflagT_real.yml and args_helper.py "
        "(CIFAR-10, ResNet-20)",
        {"lr": 0.01, "relevance_lr": 0.1, "relevance_decay": 2e-4, "weight_decay": 1e-4, "schedule": "cosine"},
        epochs=300,
        note="The search of 150 epochs follows a cosine; for the fine-tuning, as long again, the rate is divided by 10 at its "
        "epochs 80 and 120, here it follows the cosine again. The penalty on scores is the one of the sparsest networks.",
    )

    density: Annotated[Density, Real(0.01, 0.5, log=True)] = 0.1
    """Fraction of prunable weights kept."""
    rounds: Annotated[int, Ge(1), Int(1, 10)] = 5
    """Times that the lowest scores die."""
    until: Annotated[Span, Real(0.3, 0.8)] = 0.5
    """When the last round ends and training begins: steps, or a fraction of the run."""
    scope: PlainScope = "global"
    """Whether weights compete over all layers, or each layer gets its share."""

    def check(self, units: Units, clock: Clock) -> None:
        units.check(self.density, self.scope)
        clock.check_end("gem_miner.until", 0, self.until)
        if self.rounds > self._search(clock):
            raise UserError(f"gem_miner: {self.rounds} rounds do not fit into {self._search(clock)} steps")

    def schedule_steps(self, clock: Clock) -> int:
        return max(self._search(clock), clock.total - self._search(clock))

    def initial(self, weight: Tensor, rng: torch.Generator) -> Tensor:
        return torch.empty_like(weight).uniform_(generator=rng)

    def sample(self, net: Network, clock: Clock) -> dict[str, Tensor]:
        return {name: straight_through(s, s > 0.5) * net.masks[name] for name, s in net.relevance.items()}

    def step(self, net: Network, clock: Clock) -> Change | None:
        search = self._search(clock)
        ends = [search * index // self.rounds for index in range(1, self.rounds + 1)]
        if not net.relevance or clock.step not in ends:
            return None
        if clock.step == search:
            return Change(self.finish(net), learn="weights", rewind="schedule")
        density = geometric(1.0, self.density, (ends.index(clock.step) + 1) / self.rounds)
        return Change(net.units.keep(net.relevance, density, self.scope, net.masks))

    def adjust(self, net: Network, clock: Clock) -> None:
        for s in net.relevance.values():  # scores, not gradients: as early as the authors clamp them
            s.clamp_(0, 1)

    def finish(self, net: Network) -> Masks:
        return net.units.keep(net.relevance, self.density, self.scope, net.masks)

    def _search(self, clock: Clock) -> int:
        """The step at which the last round ends."""
        return min(clock.steps(self.until), clock.total - 1)
