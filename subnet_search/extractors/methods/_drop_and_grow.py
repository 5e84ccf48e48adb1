"""What methods share that begin with a random topology, or drop and grow weights in training."""

import torch
from torch import Tensor

from subnet_search.extractors import author as ss


class RandomStart(ss.Extractor):
    """A random topology, fixed before the first step, with exact counts."""

    density: ss.Density = 0.1
    allocation: ss.Allocation = "erk"

    def begin(self, net: ss.Network, clock: ss.Clock, probe: ss.Probe) -> ss.Change:
        return ss.Change(net.units.keep(chances(net, clock), self.density, self.allocation))


class DropAndGrow(RandomStart):
    """A random topology, of which a part is dropped and as much grown at intervals, up to `until`."""

    every: ss.Every = 0.02
    until: ss.Until = 0.75
    drop_fraction: ss.DropFraction = 0.3


def chances(net: ss.Network, clock: ss.Clock, stream: str = "") -> dict[str, Tensor]:
    """A uniform random number in (0, 1) for every unit. stream: draws of other names are independent."""
    like = {name: torch.empty_like(mask, dtype=torch.float) for name, mask in net.masks.items()}
    return {name: clock.uniform(f"{stream}{name}", tensor) for name, tensor in like.items()}


def growth(net: ss.Network, clock: ss.Clock, by: ss.Grow) -> ss.Tensors:
    """Scores of dead units, of which those of largest magnitude grow."""
    match by:
        case "gradient":
            return net.units.pool_magnitude(net.gradients)
        case "momentum":
            return net.units.pool_magnitude(net.momentum)
    return chances(net, clock, "grow ")


def first_scope(scope: str | ss.LayerDensities) -> str | ss.LayerDensities:
    """How layers share the density of a random first topology: where weights compete over all layers later, by ERK."""
    return "erk" if scope == "global" else scope


def check_initial(method: str, units: ss.Units, initial: float, density: float, scope: str | ss.LayerDensities) -> None:
    """Raise UserError when a density cannot fall from `initial`, or the first topology cannot have that density."""
    if initial < density:
        raise ss.UserError(f"{method}.initial_density {initial:g} is below the density {density:g}")
    ss.allocate(units.shapes, initial, first_scope(scope))
