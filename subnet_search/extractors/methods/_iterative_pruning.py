"""What methods share that train a network, drop the units of lowest score once or in rounds, and fine-tune."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from subnet_search.extractors import author as ss


class InRounds(ss.Extractor):
    """Train, drop the units of lowest score at once or in rounds, and fine-tune.

    The rounds are at equal distances between `start` and `end`; round r leaves density^(r / rounds). With no epochs the
    network as it is, such as a given state, is pruned at once.
    """

    trained_defaults: ClassVar[Mapping[str, Any]] = {"start": 0}

    density: ss.Density = 0.1
    rounds: Annotated[ss.Rounds, ss.Int(1, 5)] = 1
    start: Annotated[ss.Span, ss.Real(0.3, 0.7)] = 0.5
    """When weights are first dropped: steps, or a fraction of the run. With `network.state` the default is 0: at once."""
    end: ss.Span = 0.75
    """When they are last dropped, with more than one round."""
    scope: ss.Scope = "global"
    normalise: ss.Normalise = "none"
    isometry: ss.Isometry = "none"
    isometry_gain: ss.IsometryGain = 1.0

    @abstractmethod
    def scores(self, net: ss.Network, clock: ss.Clock) -> ss.Tensors:
        """The score of every unit: the lowest are dropped."""

    def check(self, units: ss.Units, clock: ss.Clock) -> None:
        super().check(units, clock)
        if self.isometry != "none" and not isinstance(units, ss.Channels):
            raise ss.UserError(
                f"{self.name}.isometry: weights can be made orthogonal where whole rows and columns are kept: use unit=channel"
            )
        if clock.total == 0:
            return
        clock.check_end(f"{self.name}.{'start' if self.rounds == 1 else 'end'}", self.start, self._end)
        first, last = clock.point(self.start), clock.point(self._end)
        if self.rounds > max(1, last - first + 1) or len(set(self.prunings(clock))) < self.rounds:
            raise ss.UserError(f"{self.name}: {self.rounds} rounds do not fit between steps {first} and {last}")

    def begin(self, net: ss.Network, clock: ss.Clock, probe: ss.Probe) -> ss.Change:
        return ss.Change() if clock.total else self._prune(net, clock, self.density)

    def step(self, net: ss.Network, clock: ss.Clock) -> ss.Change | None:
        points = self.prunings(clock)
        if clock.step not in points:
            return None
        return self._prune(net, clock, ss.geometric(1.0, self.density, (points.index(clock.step) + 1) / self.rounds))

    def prunings(self, clock: ss.Clock) -> list[int]:
        """The steps at which weights are dropped; the last step of the run at the latest."""
        first, last = clock.steps(self.start), clock.steps(self._end)
        between = max(1, self.rounds - 1)
        return [min(clock.total - 1, first + (last - first) * index // between) for index in range(self.rounds)]

    @property
    def _end(self) -> ss.Span:
        return self.start if self.rounds == 1 else self.end

    def _prune(self, net: ss.Network, clock: ss.Clock, density: float) -> ss.Change:
        return self._change(net, net.units.keep(self.scores(net, clock), density, self.scope, net.masks, self.normalise))

    def _change(self, net: ss.Network, masks: ss.Masks) -> ss.Change:
        """Prune to `masks`; with `isometry`, the weights that stay become orthogonal, and the optimizer begins anew."""
        if self.isometry == "none":
            return ss.Change(masks)
        kept = ss.orthogonal(net.weights, net.units.expand(masks), self.isometry_gain)
        return ss.Change(masks, weights=kept, reset_optimizer=True)
