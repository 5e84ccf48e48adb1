"""Measured time: what a forward pass takes, on the machine and device at hand."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from subnet_search.timing import Latency, in_turn


def latency(
    net: nn.Module, shape: tuple[int, ...], batch: int = 1, threads: int = 1, *, seconds: float = 1.0, passes: int = 50
) -> Latency:
    """Time forward passes of random inputs (batch, *shape) in evaluation mode, on the network's device.

    Ends after so many passes, or after `seconds` if that is sooner; at least one pass is timed after one to warm up.
    `threads` are those of the CPU; their number, and the network's mode, are put back. Times depend on what else the
    machine does: to compare networks, measure them in turn, with `latencies`.
    """
    [found] = latencies([net], shape, batch, threads, seconds=seconds, passes=passes)
    return found


def latencies(
    nets: Sequence[nn.Module],
    shape: tuple[int, ...],
    batch: int = 1,
    threads: int = 1,
    *,
    seconds: float = 1.0,
    passes: int = 50,
) -> list[Latency]:
    """Time several networks as `latency` does one, a pass of each in turn. `seconds` are those of all together."""
    inputs = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))
    modes, threads_before = [net.training for net in nets], torch.get_num_threads()
    calls = [partial(_pass, net.eval(), inputs.to(next(net.parameters(), inputs))) for net in nets]
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            return in_turn(calls, seconds, passes)
    finally:
        torch.set_num_threads(threads_before)
        for net, mode in zip(nets, modes, strict=True):
            net.train(mode)


def _pass(net: nn.Module, inputs: Tensor) -> None:
    """One pass, to the end of what it sets going on a GPU."""
    net(inputs)
    if inputs.is_cuda:
        torch.cuda.synchronize(inputs.device)
