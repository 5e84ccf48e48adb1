"""Remove the channels that no weight reads: the result is a smaller dense network of plain layers.

A channel is removed when all weights that read it are zero, with any method and unit. The outputs of the result are
compared with the masked network's before it is returned.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from subnet_search.core.errors import RunError, UserError
from subnet_search.core.nested import length_of
from subnet_search.nets import call, compared
from subnet_search.structure.channel_groups import Coupling, couple
from subnet_search.structure.shrink import remove_channels
from subnet_search.structure.verify_groups import WRITTEN, first_line
from subnet_search.topology.channels import Group

TOLERANCE = 1e-4  # between the logits of both, relative to the largest


def compact(net: nn.Module, example: Any, coupling: Coupling | None = None) -> nn.Module:
    """A copy of a network without the channels that no weight reads. example: inputs, as `nets.call` passes them.

    Raises UserError when there is no such channel, or the network cannot be traced; RunError when the outputs differ.
    """
    if length_of(example) == 0:
        raise UserError("the example is empty: pass a batch of inputs")
    coupling = coupling or couple(net, example)
    gone = _gone(net.state_dict(), coupling)
    if not gone:
        raise UserError(
            f"no channel can be removed: each is read by a nonzero weight (unit=channel prunes whole channels){coupling.why}"
        )
    small = remove_channels(net, gone)
    check_same(net, small, example)
    return small


def check_same(net: nn.Module, small: nn.Module, example: Any) -> float:
    """The largest difference between the logits of both networks, relative to the largest logit.

    Raises RunError above TOLERANCE.
    """
    difference = difference_between(net, small, example)
    if not difference <= TOLERANCE:
        raise RunError(f"the compact network is not equivalent: logits differ by {difference:.2g} of the largest")
    return difference


@torch.no_grad()
def difference_between(net: nn.Module, other: nn.Module, example: Any) -> float:
    """The largest difference between two networks' outputs in evaluation mode, relative to the largest output."""
    modes = net.training, other.training
    try:
        expected, found = compared(call(net.eval(), example)), compared(call(other.eval(), example))
    except UserError:
        raise
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the compact network does not run, {WRITTEN}: {first_line(error)}") from error
    finally:
        net.train(modes[0]), other.train(modes[1])
    if expected.shape != found.shape:
        raise UserError(f"the outputs of the compact network have another shape, {WRITTEN}")
    return float((expected - found).abs().max() / expected.abs().max().clamp(min=1e-12))


def _gone(state: Mapping[str, Tensor], coupling: Coupling) -> dict[Group, Tensor]:
    """The channels that no weight reads, bool (channels,), for each group that has some."""
    gone = {}
    for group in coupling.groups:
        read = torch.zeros(group.size, dtype=torch.bool)
        for channel_slice in group.slices:
            if channel_slice.reads:
                read |= channel_slice.sums(state[channel_slice.tensor].detach().cpu().ne(0)).ne(0)
        if not read.any():
            raise UserError(f"layer collapse: no weight reads any channel of {group.name}, so the network cannot be exported")
        if not read.all():
            gone[group] = ~read
    return gone
