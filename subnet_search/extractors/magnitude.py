"""Magnitude pruning of a trained network, once or in rounds, and fine-tuning.

Han, Pool, Tran & Dally 2015, "Learning both Weights and Connections for Efficient Neural Networks", arXiv:1506.02626.
Train, drop the smallest |w|, train on. The rounds are changes on the run's one axis of steps, at equal distances between
`start` and `end`; round r leaves density^(r / rounds). The learning rate's schedule goes on as it is; `lottery` rewinds.
With no epochs nothing is trained and the weights as they are, such as a given state, are pruned at once.
"""

from typing import Annotated

from annotated_types import Ge

from subnet_search.domains import Int, Real
from subnet_search.errors import UserError
from subnet_search.extractors.base import (
    Change,
    Clock,
    Density,
    Extractor,
    Network,
    Paper,
    Paradigm,
    Probe,
    Scope,
    Span,
    register,
)
from subnet_search.topology.schedules import geometric
from subnet_search.topology.scores import magnitude
from subnet_search.topology.units import EVERY_KIND, Units


@register("magnitude")
class Magnitude(Extractor):
    """Train, drop the smallest weights at once or in rounds, and fine-tune."""

    paper = Paper(
        "Han, Pool, Tran & Dally",
        2015,
        "1506.02626",
        "Learning both Weights and Connections for Efficient Neural Networks",
        "keep the highest |w|; round r keeps density^(r / rounds)",
    )
    paradigm = Paradigm("by magnitude, after training", "trained", "in one or more steps", True, EVERY_KIND)

    density: Annotated[Density, Real(0.01, 0.5, log=True)] = 0.1
    """Fraction of prunable weights kept."""
    rounds: Annotated[int, Ge(1), Int(1, 5)] = 1
    """Times that weights are dropped."""
    start: Annotated[Span, Real(0.3, 0.7)] = 0.5
    """When weights are first dropped: steps, or a fraction of the run."""
    end: Span = 0.75
    """When they are last dropped, with more than one round."""
    scope: Scope = "global"
    """Whether weights compete over all layers, or each layer gets its share."""

    def check(self, units: Units, clock: Clock) -> None:
        units.check(self.density, self.scope)
        if clock.total == 0:
            return
        clock.check_end("magnitude.start" if self.rounds == 1 else "magnitude.end", self.start, self._end)
        points = self._points(clock)
        if len(set(points)) < self.rounds:
            raise UserError(f"magnitude: {self.rounds} rounds do not fit between steps {points[0]} and {points[-1]}")

    def begin(self, net: Network, clock: Clock, probe: Probe) -> Change:
        return Change() if clock.total else self._prune(net, self.density)

    def step(self, net: Network, clock: Clock) -> Change | None:
        points = self._points(clock)
        if clock.step not in points:
            return None
        return self._prune(net, geometric(1.0, self.density, (points.index(clock.step) + 1) / self.rounds))

    @property
    def _end(self) -> Span:
        return self.start if self.rounds == 1 else self.end

    def _points(self, clock: Clock) -> list[int]:
        """The steps at which weights are dropped; the last step of the run at the latest."""
        first, last = clock.steps(self.start), clock.steps(self._end)
        between = max(1, self.rounds - 1)
        return [min(clock.total - 1, first + (last - first) * index // between) for index in range(self.rounds)]

    def _prune(self, net: Network, density: float) -> Change:
        return Change(net.units.keep(net.units.pool(magnitude(net.weights)), density, self.scope, net.masks))
