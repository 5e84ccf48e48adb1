"""Groups of channels tried out: a network without some of them has to say what it says with zeros where they are read."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from subnet_search.core.errors import UserError
from subnet_search.structure.shrink import without
from subnet_search.topology.channels import Group, along

TOLERANCE = 1e-4  # of the outputs, relative to how far they differ between inputs
ROUNDED = 0.01  # the same where sums are of fewer terms, beside 1e-5 of the outputs themselves
MIXED = (
    "its values reach the output by other ways than the weights that read them, as through a normalisation over channels "
    "or another order of them"
)
WRITTEN = "the forward pass has a size written into it"


@torch.no_grad()
def untrue(net: nn.Module, example: Tensor, groups: list[Group]) -> dict[str, str]:
    """Groups that failed verification, with the reason: the output depends on channels that no layer seems to read.

    Leaves batch norms in evaluation mode. Raises UserError where the outputs are no numbers to compare.
    """
    norms = [one for one in net.modules() if isinstance(one, _BatchNorm) and not isinstance(one, nn.SyncBatchNorm)]
    for norm in norms:  # by the batch, or in a deep network that nobody trained no difference would reach the output
        norm.train(len(example) > 1)
    reasons = _found(partial(_leak, net, example), groups)
    for norm in norms:  # by the batch, differences in rounding alone could be as large as the outputs
        norm.eval()
    return reasons | _found(partial(_lack, net, example), [group for group in groups if group.name not in reasons])


def _found(problem: Callable[[list[Group]], str | None], groups: list[Group]) -> dict[str, str]:
    """The groups that have a problem, by trying all of them, then halves of those that have one."""
    if not groups or (why := problem(groups)) is None:
        return {}
    if len(groups) == 1:
        return {groups[0].name: why}
    half = len(groups) // 2
    return _found(problem, groups[:half]) | _found(problem, groups[half:])


def _leak(net: nn.Module, example: Tensor, groups: list[Group]) -> str | None:
    """Whether other numbers in every other channel change what the network says, although nothing reads them."""
    quiet = _answer(net, _changed(net, groups, noise=False), example)
    signal = _signal(quiet)
    if not signal.isfinite():
        raise UserError("the outputs of this network are not all finite, so what its channels do to them cannot be tried")
    noisy = _answer(net, _changed(net, groups, noise=True), example)
    return None if (quiet - noisy).abs().max() <= TOLERANCE * signal else MIXED


def _lack(net: nn.Module, example: Tensor, groups: list[Group]) -> str | None:
    """What is wrong without every other channel."""
    quiet = _answer(net, _changed(net, groups, noise=False), example)
    small = without(net, {group: torch.arange(group.size) % 2 == 0 for group in groups})
    try:
        fewer = small(example)
    except (RuntimeError, ValueError) as error:  # of a size that does not fit
        return f"{WRITTEN}: without some of them, {first_line(error)}"
    if fewer.shape != quiet.shape:
        return WRITTEN
    apart = (quiet - fewer).abs().max()
    return MIXED if apart > ROUNDED * _signal(quiet) + 1e-5 * quiet.abs().max() else None


def _signal(outputs: Tensor) -> Tensor:
    """How far outputs (batch, ...) differ between inputs."""
    return (outputs - outputs.mean(0) if len(outputs) > 1 else outputs).abs().max()


def _changed(net: nn.Module, groups: list[Group], noise: bool) -> dict[str, Tensor]:
    """The state of a network with zeros where every other channel is read, and with `noise` other numbers that compute it."""
    found = {**dict(net.named_parameters()), **{name: buffer.clone() for name, buffer in net.named_buffers()}}
    rng = torch.Generator().manual_seed(0)
    pieces = [piece for group in groups for piece in group.slices if noise or piece.reads]
    for piece in sorted(pieces, key=lambda piece: piece.reads):
        tensor = found[piece.tensor]
        other = tensor.new_zeros(())
        if not piece.reads:  # its own numbers at other places, so that nothing overflows
            factors = 0.5 + torch.rand(tensor.shape[piece.dim], generator=rng).to(tensor)
            rolled = tensor.reshape(-1).roll(tensor.numel() // 2 + 1).view(tensor.shape)
            other = rolled * along(factors, piece.dim, tensor.dim())
        places = torch.zeros(tensor.shape[piece.dim], dtype=torch.bool, device=tensor.device)
        places[piece.index[::2].reshape(-1)] = True
        found[piece.tensor] = torch.where(along(places, piece.dim, tensor.dim()), other, tensor)
    return found


def _answer(net: nn.Module, state: Mapping[str, Tensor], example: Tensor) -> Tensor:
    out = functional_call(net, dict(state), (example,))
    if not isinstance(out, Tensor):
        raise UserError(f"a network must return one tensor for its channels to be removed, not {type(out).__name__}")
    return out


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
