"""What methods have in common that rank filters by one score, drop the lowest in rounds, and fine-tune.

A channel of a group that several layers compute, as with a residual addition, is all their filters side by side.
"""

from abc import abstractmethod
from typing import Annotated

from annotated_types import Ge

from subnet_search.core.errors import UserError
from subnet_search.core.search_domains import Real
from subnet_search.extractors.base import Change, Clock, Density, Network, Scope, Tensors
from subnet_search.extractors.methods._iterative_pruning import InRounds
from subnet_search.topology.channels import Channels
from subnet_search.topology.units import Units


class FilterRanking(InRounds):
    """Train, drop the filters of lowest score at once or in rounds, and fine-tune."""

    density: Annotated[Density, Real(0.1, 0.9)] = 0.5
    """Fraction of channels kept."""
    scope: Scope = "uniform"
    """Whether channels compete over all layers, or each layer gets its share."""

    def check(self, units: Units, clock: Clock) -> None:
        super().check(_channels(units), clock)


class MeasuredRanking(FilterRanking):
    """Filters ranked by what they do on training data, over the last few batches before channels are dropped.

    Each batch is one step of the run, and nothing is trained in it: they all meet the same weights.
    """

    replaces_step = True

    batches: Annotated[int, Ge(1)] = 5
    """Batches that scores are averaged over; the weights stay as they are in their steps."""

    @abstractmethod
    def measured(self, net: Network) -> Tensors:
        """The score of every channel on the batch of this step."""

    def scores(self, net: Network, clock: Clock) -> Tensors:
        """Summed over the batches so far, which ranks as their mean does."""
        now, before = self.measured(net), net.memory
        return now if clock.step in self._spans(clock) else {name: before[name] + score for name, score in now.items()}

    def step(self, net: Network, clock: Clock) -> Change | None:
        if not self.measures(clock):
            return None
        return super().step(net, clock) or Change(memory=self.scores(net, clock))

    def measures(self, clock: Clock) -> bool:
        """Whether this step's batch is measured."""
        return any(first <= clock.step <= last for first, last in self._spans(clock).items())

    def _spans(self, clock: Clock) -> dict[int, int]:
        """First and last steps of measuring: as many as there are batches, where a round before it leaves room."""
        points = self.prunings(clock)
        free = [0, *(point + 1 for point in points)]
        return {max(begin, point + 1 - self.batches): point for begin, point in zip(free, points, strict=False)}


class FeatureRanking(MeasuredRanking):
    """Filters ranked by their feature maps, as the layers that read them see them in training."""

    def check(self, units: Units, clock: Clock) -> None:
        super().check(units, clock)
        if clock.total == 0:
            raise UserError(f"{self.name} looks at feature maps in training steps, and there are none: set recipe.epochs")

    def looks_at(self, clock: Clock) -> bool:
        return self.measures(clock)


def channels(net: Network) -> Channels:
    """The units of a network, which are its channels. Raises UserError where they are something else."""
    return _channels(net.units)


def _channels(units: Units) -> Channels:
    if not isinstance(units, Channels):
        raise UserError("filters can be ranked where channels are kept or dropped: unit=channel")
    return units
