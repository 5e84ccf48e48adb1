"""Gem-Miner: learn which weights of an untrained network to drop, in rounds, then train the others.

Scores begin uniform and are clamped to [0, 1]; only those of alive weights learn. After the last round all weights in the
mask, also those with s <= 1/2 (the authors' `unflag`), are trained from their initial values. The search and the training
each go through the learning rate's whole schedule.

The authors prune every 5 of 150 epochs (30 rounds), then fine-tune for 150 at rate 0.01. Their penalty lambda * ||s||^2 has
lambda 3e-5 where 3.72 % are kept and 1e-4 where 0.59 % are; the default here is the second, as a decay of 2 lambda.
"""

from typing import Annotated

import torch
from torch import Tensor

from subnet_search.extractors import author as ss


@ss.register("gem_miner")
class GemMiner(ss.RelevanceLearner):
    """Learn scores, drop in rounds, then train.

    Learn scores on an untrained network, drop the lowest in rounds, then train what is left.
    """

    paper = ss.Paper(
        "Sreenivasan, Sohn, Yang, Grinde, Nagle, Wang, Xing, Lee & Papailiopoulos",
        2022,
        "2202.12002",
        "Rare Gems: Finding Lottery Tickets at Initialization",
        "z = q * 1[s > 1/2], s in [0, 1]; dL/ds = q * dL/dz; q_r = top density^(r / rounds) of s inside q_(r-1)",
    )
    paradigm = ss.Paradigm("learned on frozen weights, in rounds", "initial, then trained", "in steps", True)
    published = ss.Published(
        "ksreenivasan/pruning_is_enough configs/hypercube/resnet20/resnet20_sparsity_1_44_unflagT_real.yml and args_helper.py "
        "(CIFAR-10, ResNet-20)",
        {"lr": 0.01, "relevance_lr": 0.1, "relevance_decay": 2e-4, "weight_decay": 1e-4, "schedule": "cosine"},
        epochs=300,
        note="The search of 150 epochs follows a cosine; for the fine-tuning, as long again, the rate is divided by 10 at its "
        "epochs 80 and 120, here it follows the cosine again. The penalty on scores is the one of the sparsest networks.",
    )

    density: ss.Density = 0.1
    rounds: Annotated[ss.Rounds, ss.Int(1, 10)] = 5
    """Number of times that the lowest scores are dropped."""
    until: Annotated[ss.Span, ss.PhaseEnd(), ss.Real(0.3, 0.8)] = 0.5
    """When the last round ends and training begins: steps, or a fraction of the run."""
    scope: ss.PlainScope = "global"

    def check(self, units: ss.Units, clock: ss.Clock) -> None:
        super().check(units, clock)
        clock.check_rounds(self.name, self.rounds, self.until)

    def schedule_steps(self, clock: ss.Clock) -> int:
        return max(clock.point(self.until), clock.total - clock.point(self.until))

    def initial(self, weight: Tensor, rng: torch.Generator) -> Tensor:
        return torch.empty_like(weight).uniform_(generator=rng)

    def sample(self, net: ss.Network, clock: ss.Clock) -> dict[str, Tensor]:
        return {name: ss.straight_through(s, s > 0.5) * net.masks[name] for name, s in net.relevance.items()}

    def step(self, net: ss.Network, clock: ss.Clock) -> ss.Change | None:
        search = clock.point(self.until)
        ends = [search * index // self.rounds for index in range(1, self.rounds + 1)]
        if not net.relevance or clock.step not in ends:
            return None
        if clock.step == search:
            return ss.Change(self.finish(net), learn="weights", rewind="schedule")
        density = ss.geometric(1.0, self.density, (ends.index(clock.step) + 1) / self.rounds)
        return ss.Change(net.units.keep(net.relevance, density, self.scope, net.masks))

    def adjust(self, net: ss.Network, clock: ss.Clock) -> None:
        for s in net.relevance.values():  # scores, not gradients: the authors clamp them here too
            s.clamp_(0, 1)

    def finish(self, net: ss.Network) -> ss.Masks:
        return net.units.keep(net.relevance, self.density, self.scope, net.masks)
