"""Really smaller: channels that nothing reads are taken out, and a plain, dense, smaller network is left.

A channel goes when all weights that read it are zero, whatever method and unit made them so. What is left says what the
masked network says, which is tried before anybody gets it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from subnet_search.core.errors import RunError, UserError
from subnet_search.structure.channel_groups import Coupling, couple
from subnet_search.structure.shrink import without
from subnet_search.structure.verify_groups import WRITTEN, first_line
from subnet_search.topology.channels import Group

TOLERANCE = 1e-4  # between the logits of both, relative to the largest


def compact(net: nn.Module, example: Tensor, coupling: Coupling | None = None) -> nn.Module:
    """A copy of a network without the channels that no weight reads. example: inputs, (batch, ...), as the network takes them.

    Raises UserError when there are none, or the network cannot be traced; RunError when what is left says something else.
    """
    if len(example) == 0:
        raise UserError("the example has no items: it is a batch of inputs as the network takes them")
    coupling = coupling or couple(net, example)
    gone = _gone(net.state_dict(), coupling)
    if not gone:
        raise UserError(
            f"there is no channel to take out: each is read by a weight that lives (unit=channel drops some){coupling.why}"
        )
    small = without(net, gone)
    check_same(net, small, example)
    return small


def check_same(net: nn.Module, small: nn.Module, example: Tensor) -> float:
    """The greatest difference between both networks' logits, relative to the largest. Raises RunError above TOLERANCE."""
    difference = difference_between(net, small, example)
    if not difference <= TOLERANCE:
        raise RunError(f"the smaller network says something else: logits differ by {difference:.2g} of the largest")
    return difference


@torch.no_grad()
def difference_between(net: nn.Module, other: nn.Module, example: Tensor) -> float:
    """The greatest difference between two networks' outputs, relative to the largest, in evaluation mode."""
    modes = net.training, other.training
    try:
        expected, found = net.eval()(example), other.eval()(example)
    except UserError:  # in their own words already
        raise
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the smaller network does not run, {WRITTEN}: {first_line(error)}") from error
    finally:
        net.train(modes[0]), other.train(modes[1])
    if expected.shape != found.shape:
        raise UserError(f"the smaller network says something of another shape, {WRITTEN}")
    return float((expected - found).abs().max() / expected.abs().max().clamp(min=1e-12))


def _gone(state: Mapping[str, Tensor], coupling: Coupling) -> dict[Group, Tensor]:
    """The channels that no weight reads, bool (channels,), of each group that has some."""
    gone = {}
    for group in coupling.groups:
        read = torch.zeros(group.size, dtype=torch.bool)
        for piece in group.slices:
            if piece.reads:
                used = state[piece.tensor].detach().cpu().movedim(piece.dim, 0).flatten(1).ne(0).any(1)
                read |= used[piece.index].any(1)
        if not read.any():
            raise UserError(f"no weight reads any channel of {group.name}: the layer is dead, so nothing can be made of it")
        if not read.all():
            gone[group] = ~read
    return gone
