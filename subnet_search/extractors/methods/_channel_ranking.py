"""What methods share that rank filters by one score, drop the lowest in rounds, and fine-tune.

A channel that several layers compute together, as in a residual addition, is all their filters side by side.
"""

from abc import abstractmethod
from typing import Annotated

from subnet_search.extractors import author as ss
from subnet_search.extractors.methods._iterative_pruning import InRounds


class FilterRanking(InRounds):
    """Train, drop the filters of lowest score at once or in rounds, and fine-tune."""

    density: ss.ChannelDensity = 0.5
    scope: ss.Scope = "uniform"
    isometry: Annotated[ss.Isometry, ss.OneOf("none", "orthogonal")] = "none"

    def check(self, units: ss.Units, clock: ss.Clock) -> None:
        super().check(_channels(units), clock)


class MeasuredRanking(FilterRanking):
    """Filters ranked by measurements on training data, over the last few batches before channels are dropped.

    Each batch is one step of the run. Nothing is trained in these steps, so all batches meet the same weights.
    """

    replaces_step = True

    batches: Annotated[int, ss.Ge(1)] = 5
    """Batches that scores are averaged over; nothing is trained in their steps."""

    @abstractmethod
    def measured(self, net: ss.Network) -> ss.Tensors:
        """The score of every channel on the batch of this step."""

    def scores(self, net: ss.Network, clock: ss.Clock) -> ss.Tensors:
        """Summed over the batches so far, which ranks as their mean does."""
        now, before = self.measured(net), net.memory
        return now if clock.step in self._spans(clock) else {name: before[name] + score for name, score in now.items()}

    def step(self, net: ss.Network, clock: ss.Clock) -> ss.Change | None:
        if not self.measures(clock):
            return None
        return super().step(net, clock) or ss.Change(memory=self.scores(net, clock))

    def measures(self, clock: ss.Clock) -> bool:
        """Whether this step's batch is measured."""
        return any(first <= clock.step <= last for first, last in self._spans(clock).items())

    def _spans(self, clock: ss.Clock) -> dict[int, int]:
        """First and last steps of measuring: one step for each batch, or fewer where the round before is too close."""
        points = self.prunings(clock)
        free = [0, *(point + 1 for point in points)]
        return {max(begin, point + 1 - self.batches): point for begin, point in zip(free, points, strict=False)}


class FeatureRanking(MeasuredRanking):
    """Filters ranked by their feature maps, as the layers that read them see them in training."""

    def check(self, units: ss.Units, clock: ss.Clock) -> None:
        super().check(units, clock)
        if clock.total == 0:
            raise ss.UserError(f"{self.name} looks at feature maps in training steps, and there are none: set recipe.epochs")

    def looks_at(self, clock: ss.Clock) -> bool:
        return self.measures(clock)


def channels(net: ss.Network) -> ss.Channels:
    """The channels of a network. Raises UserError when its units are something else."""
    return _channels(net.units)


def _channels(units: ss.Units) -> ss.Channels:
    if not isinstance(units, ss.Channels):
        raise ss.UserError("filters can be ranked where channels are kept or dropped: unit=channel")
    return units
