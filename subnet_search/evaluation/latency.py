"""Measured latency of forward passes on this machine."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from subnet_search.core.nested import map_tensors, tensors_in
from subnet_search.core.timing import Latency, in_turn
from subnet_search.nets import call


def latency(
    net: nn.Module,
    shape: tuple[int, ...],
    batch: int = 1,
    threads: int = 1,
    *,
    inputs: Any = None,
    seconds: float = 1.0,
    passes: int = 50,
) -> Latency:
    """Time forward passes in evaluation mode on the network's device.

    inputs: as `nets.call` passes them; default: random (batch, *shape).
    threads: CPU threads. Ends after `passes` timed passes, or after `seconds` if
    that is sooner; at least one pass is timed after a warm-up pass. The number of threads and the network's mode are
    restored. To compare networks use `latencies`, since other load on the machine affects the times.
    """
    [found] = latencies([net], shape, batch, threads, inputs=inputs, seconds=seconds, passes=passes)
    return found


def latencies(
    nets: Sequence[nn.Module],
    shape: tuple[int, ...],
    batch: int = 1,
    threads: int = 1,
    *,
    inputs: Any = None,
    seconds: float = 1.0,
    passes: int = 50,
) -> list[Latency]:
    """Time several networks like `latency`, alternating one pass of each. seconds: for all networks together."""
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
    """Use `count` CPU threads (None: no change); the number is restored afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _as_taken(inputs: Any, net: nn.Module) -> Any:
    """Inputs on the network's device, floating-point inputs also in its precision."""
    like = next(net.parameters(), None)
    if like is None:  # a network in ONNX Runtime
        return inputs
    return map_tensors(lambda one: one.to(like) if one.is_floating_point() else one.to(like.device), inputs)


def _pass(net: nn.Module, inputs: Any) -> None:
    """One forward pass, including GPU synchronisation."""
    call(net, inputs)
    if (first := next(tensor for _, tensor in tensors_in(inputs))).is_cuda:
        torch.cuda.synchronize(first.device)
