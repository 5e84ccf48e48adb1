"""Measured time: what a forward pass takes, on the machine and device at hand."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from subnet_search.core.timing import Latency, in_turn


def latency(
    net: nn.Module,
    shape: tuple[int, ...],
    batch: int = 1,
    threads: int = 1,
    *,
    inputs: Tensor | None = None,
    seconds: float = 1.0,
    passes: int = 50,
) -> Latency:
    """Time forward passes of inputs (batch, *shape) in evaluation mode, on the network's device. Default: random ones.

    Ends after so many passes, or after `seconds` if that is sooner; at least one pass is timed after one to warm up.
    `threads` are those of the CPU; their number, and the network's mode, are put back. Times depend on what else the
    machine does: to compare networks, measure them in turn, with `latencies`.
    """
    [found] = latencies([net], shape, batch, threads, inputs=inputs, seconds=seconds, passes=passes)
    return found


def latencies(
    nets: Sequence[nn.Module],
    shape: tuple[int, ...],
    batch: int = 1,
    threads: int = 1,
    *,
    inputs: Tensor | None = None,
    seconds: float = 1.0,
    passes: int = 50,
) -> list[Latency]:
    """Time several networks as `latency` does one, a pass of each in turn. `seconds` are those of all together."""
    given = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0)) if inputs is None else inputs
    modes = [net.training for net in nets]
    calls = [partial(_pass, net.eval(), _as_taken(given, net)) for net in nets]
    try:
        with on_threads(threads), torch.inference_mode():
            return in_turn(calls, seconds, passes)
    finally:
        for net, mode in zip(nets, modes, strict=True):
            net.train(mode)


@contextmanager
def on_threads(count: int | None) -> Iterator[None]:
    """Run on so many CPU threads; the number is put back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _as_taken(inputs: Tensor, net: nn.Module) -> Tensor:
    """Inputs on a network's device, and of its precision where they are no whole numbers."""
    like = next(net.parameters(), inputs)
    return inputs.to(like) if inputs.is_floating_point() else inputs.to(like.device)


def _pass(net: nn.Module, inputs: Tensor) -> None:
    """One pass, to the end of what it sets going on a GPU."""
    net(inputs)
    if inputs.is_cuda:
        torch.cuda.synchronize(inputs.device)
