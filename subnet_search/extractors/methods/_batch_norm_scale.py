"""What methods share that rank channels by the scales of batch norms."""

import torch
from torch import Tensor

from subnet_search.extractors import author as ss
from subnet_search.extractors.methods._channel_ranking import FilterRanking, channels


class NormRanking(FilterRanking):
    """Channels ranked by the scales of their batch norms, over all layers."""

    scope: ss.Scope = "global"

    def check_network(self, net: ss.Network) -> None:
        check_norms(self.name, net, self.density, self.scope)

    def scores(self, net: ss.Network, clock: ss.Clock) -> ss.Tensors:
        return norm_scales(net)


def norm_scales(net: ss.Network) -> ss.Tensors:
    """The mean |gamma| of every channel's batch norms; infinite where it has none, so that it is kept."""
    without = {name: torch.full(mask.shape, torch.inf, device=mask.device) for name, mask in net.masks.items()}
    return without | ss.scales(net.norms)


def norm_penalty(net: ss.Network) -> Tensor:
    """The sum of |gamma| over all channels and their batch norms."""
    return torch.stack([gamma.abs().sum() for gamma in net.norms.values()]).sum()


def check_norms(method: str, net: ss.Network, density: float, scope: str | ss.LayerDensities = "global") -> None:
    """Raise UserError when a density cannot be met as channels without a batch norm are kept."""
    units, bare = channels(net), [name for name in net.masks if name not in net.norms]
    if len(bare) == len(net.masks):
        raise ss.UserError(f"{method} ranks channels by the scales of batch norms, and this network's channels have none")
    if bare and scope != "global":
        layers = ", ".join(map(ss.layer_name, bare))
        raise ss.UserError(f"{method}.scope must be global, as no batch norm ranks the channels of {layers}, which all stay")
    least = {name: mask if name in bare else torch.arange(len(mask)) < units.steps[name] for name, mask in net.masks.items()}
    if density < 0.999 * (cost := units.cost(ss.Masks(least))):
        raise ss.UserError(
            f"{method}: density {density:g} cannot be met: channels without a batch norm stay, which leaves at least {cost:.3g}"
        )
