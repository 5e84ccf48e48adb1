"""Lottery tickets: iterative magnitude pruning with rewinding.

Rewinding goes to the initial weights, to the weights of step k (Frankle, Dziugaite, Roy & Carbin 2020, arXiv:1912.05671), or
is of the learning rate alone (Renda, Frankle & Carbin 2020, arXiv:2003.02389). The rounds divide the steps of the run equally:
a ticket costs as many steps as any other method's run, so each round is short. The learning rate goes through its whole
schedule in every round when `rewind` includes the schedule, else once over the run. The optimizer's state is reset when
weights are rewound.
"""

from typing import Annotated

from subnet_search.extractors import author as ss


@ss.register("lottery")
class Lottery(ss.Extractor):
    """Train, drop the smallest, rewind, train again.

    Train, drop the smallest weights, rewind, and train again, in rounds.
    """

    paper = ss.Paper(
        "Frankle & Carbin",
        2019,
        "1803.03635",
        "The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks",
        "m_r = top density^(r / rounds) of |w_T|; w <- m_r * w_k",
    )
    paradigm = ss.Paradigm("by magnitude, after training, in rounds", "rewound, then trained", "in steps", True, ss.EVERY_KIND)
    published = ss.Published(
        "facebookresearch/open_lth models/cifar_resnet.py (CIFAR-10, ResNet-20)",
        {"lr": 0.1, "weight_decay": 1e-4, "schedule": "step", "milestones": (0.5, 0.75)},
        epochs=160,
        note="The length is that of each training, of which there is one more than there are rounds.",
    )

    density: ss.Density = 0.1
    rounds: Annotated[ss.Rounds, ss.Int(1, 6)] = 3
    """Number of times that the network is pruned; it is trained once more than that."""
    rewind: Annotated[ss.Rewind, ss.OneOf("none", "weights", "schedule", "both")] = "both"
    """What goes back after each pruning: the weights, the learning rate's schedule, both, or nothing."""
    rewind_to: Annotated[ss.Span, ss.Real(0, 0.1)] = 0
    """The point of the run to go back to, in its first round: steps, or a fraction of the run."""
    scope: ss.Scope = "global"
    normalise: ss.Normalise = "layer"

    def check(self, units: ss.Units, clock: ss.Clock) -> None:
        super().check(units, clock)
        if clock.total - clock.steps(self.rewind_to) <= self.rounds:
            raise ss.UserError(f"lottery: {self.rounds} rounds need more than the run's {clock.total} steps")

    def rewinds_to(self, clock: ss.Clock) -> int | None:
        return clock.steps(self.rewind_to) if self.rewind in ("weights", "both") else None

    def schedule_steps(self, clock: ss.Clock) -> int:
        return clock.total if self.rewind in ("none", "weights") else self._prunings(clock)[0]

    def step(self, net: ss.Network, clock: ss.Clock) -> ss.Change | None:
        points = self._prunings(clock)
        if clock.step not in points:
            return None
        density = ss.geometric(1.0, self.density, (points.index(clock.step) + 1) / self.rounds)
        masks = net.units.keep(net.units.pool(ss.magnitude(net.weights)), density, self.scope, net.masks, self.normalise)
        return ss.Change(masks, rewind=self.rewind, schedule_to=clock.steps(self.rewind_to))

    def _prunings(self, clock: ss.Clock) -> list[int]:
        """The steps at which the network is pruned; every round trains from step k for equally many steps."""
        back = clock.steps(self.rewind_to)
        length = (clock.total - back) / (self.rounds + 1)
        return [int(back + length * (index + 1)) for index in range(self.rounds)]
