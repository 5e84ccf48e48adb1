"""Verify groups of channels: removing channels must give the same outputs as setting the weights that read them to zero."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from subnet_search.core.errors import UserError
from subnet_search.core.nested import length_of
from subnet_search.nets import call, compared
from subnet_search.structure.shrink import remove_channels
from subnet_search.topology.channels import Group, along

TOLERANCE = 1e-4  # difference of outputs, relative to their range over the inputs
FLOAT32 = 1e-6  # the same relative to the largest output of a tensor, which is added where there are several
ROUNDED = 0.01  # the same after removing channels, which changes rounding; in addition to 1e-5 of the largest output
MIXED = (
    "they affect the output other than through the weights that read them, as in a normalisation over channels or a "
    "reordering of channels"
)
EVERY_OTHER = slice(None, None, 2)
FIRST = slice(1)  # where the forward pass splits channels into heads of a fixed size, half of them may still make whole heads
WRITTEN = "the forward pass contains a fixed size"


@torch.no_grad()
def failed_groups(net: nn.Module, example: Any, groups: list[Group], every: bool = False) -> dict[str, str]:
    """Groups that failed verification, with the reason. every: as for `nets.outputs_in`.

    Leaves batch norms in evaluation mode. Raises UserError when the outputs are not finite.
    """
    norms = [one for one in net.modules() if isinstance(one, _BatchNorm) and not isinstance(one, nn.SyncBatchNorm)]
    for norm in norms:  # batch statistics: in a deep untrained network differences would otherwise vanish before the output
        norm.train(length_of(example) > 1)
    reasons = _bisect(partial(_hidden_dependency, net, example, every), groups)
    for norm in norms:  # running statistics: with those of the batch, rounding errors could be as large as the outputs
        norm.eval()
    for removed in EVERY_OTHER, FIRST:
        others = [group for group in groups if group.name not in reasons]
        reasons |= _bisect(partial(_removal_problem, net, example, every, removed), others)
    return reasons


def _bisect(problem: Callable[[list[Group]], str | None], groups: list[Group]) -> dict[str, str]:
    """The groups with a problem: test all together, then halves of the sets that fail."""
    if not groups or (why := problem(groups)) is None:
        return {}
    if len(groups) == 1:
        return {groups[0].name: why}
    half = len(groups) // 2
    return _bisect(problem, groups[:half]) | _bisect(problem, groups[half:])


def _hidden_dependency(net: nn.Module, example: Any, every: bool, groups: list[Group]) -> str | None:
    """The reason if the outputs depend on the values of every other channel while the weights that read it are zero."""
    zeroed = _outputs(net, _changed(net, groups, noise=False), example, every)
    spreads = [_spread(tensor) for tensor in zeroed]
    if not all(spread.isfinite() for spread in spreads):
        raise UserError("the outputs of this network are not finite, so its channels cannot be verified")
    noisy = _outputs(net, _changed(net, groups, noise=True), example, every)
    for before, after, spread in zip(zeroed, noisy, spreads, strict=True):
        allowed = TOLERANCE * spread
        if len(zeroed) > 1:  # one of them may hardly depend on the inputs
            allowed += FLOAT32 * before.abs().max()
        if not (before - after).abs().max() <= allowed:
            return MIXED
    return None


def _removal_problem(net: nn.Module, example: Any, every: bool, removed: slice, groups: list[Group]) -> str | None:
    """The reason if the network without the `removed` channels fails, or has other outputs than with zeros."""
    zeroed = _outputs(net, _changed(net, groups, False, removed), example, every)
    small = remove_channels(net, {group: _at(removed, group.size) for group in groups})
    try:
        fewer = compared(call(small, example), every)
    except Exception as error:  # anything that a user's forward pass raises where sizes do not match
        return f"{WRITTEN}: without some of them, {first_line(error)}"
    if [tensor.shape for tensor in fewer] != [tensor.shape for tensor in zeroed]:
        return WRITTEN
    for before, after in zip(zeroed, fewer, strict=True):
        if (before - after).abs().max() > ROUNDED * _spread(before) + 1e-5 * before.abs().max():
            return MIXED
    return None


def _spread(outputs: Tensor) -> Tensor:
    """The largest deviation of outputs (batch, ...) from their mean over the batch."""
    return (outputs - outputs.mean(0) if len(outputs) > 1 else outputs).abs().max()


def _at(places: slice, size: int) -> Tensor:
    found = torch.zeros(size, dtype=torch.bool)
    found[places] = True
    return found


def _changed(net: nn.Module, groups: list[Group], noise: bool, removed: slice = EVERY_OTHER) -> dict[str, Tensor]:
    """The network's tensors with zeros in the weights that read the `removed` channels.

    noise: also other values in the weights that compute these channels.
    """
    found = {**dict(net.named_parameters()), **{name: buffer.clone() for name, buffer in net.named_buffers()}}
    rng = torch.Generator().manual_seed(0)
    channel_slices = [channel_slice for group in groups for channel_slice in group.slices if noise or channel_slice.reads]
    for channel_slice in sorted(channel_slices, key=lambda channel_slice: channel_slice.reads):
        tensor = found[channel_slice.tensor]
        other = tensor.new_zeros(())
        if not channel_slice.reads:  # its own values in another order, so that nothing overflows
            factors = 0.5 + torch.rand(tensor.shape[channel_slice.dim], generator=rng).to(tensor)
            rolled = tensor.reshape(-1).roll(tensor.numel() // 2 + 1).view(tensor.shape)
            other = rolled * along(factors, channel_slice.dim, tensor.dim())
        places = torch.zeros(tensor.shape[channel_slice.dim], dtype=torch.bool, device=tensor.device)
        places[channel_slice.index[removed].reshape(-1)] = True
        found[channel_slice.tensor] = torch.where(along(places, channel_slice.dim, tensor.dim()), other, tensor)
    return found


def _outputs(net: nn.Module, state: Mapping[str, Tensor], example: Any, every: bool) -> list[Tensor]:
    return compared(call(lambda *args, **kwargs: functional_call(net, dict(state), args, kwargs), example), every)


def first_line(error: Exception) -> str:
    """The first line of an exception's message, or its type."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
