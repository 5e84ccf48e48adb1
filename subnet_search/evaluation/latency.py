"""Measured time: what a forward pass takes, on the machine and device at hand."""

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

WARM_UP = 5  # passes, while memory and kernels are set up


@dataclass(frozen=True)
class Latency:
    """The time of a forward pass of one batch, in milliseconds."""

    median: float
    low: float  # first quartile
    high: float  # third quartile
    count: int  # passes that were timed


def latency(
    net: nn.Module, shape: tuple[int, ...], batch: int = 1, threads: int = 1, *, seconds: float = 1.0, passes: int = 50
) -> Latency:
    """Time forward passes of random inputs (batch, *shape) in evaluation mode, on the network's device.

    Ends after so many passes, or after `seconds` if that is sooner; at least one pass is timed after one to warm up.
    `threads` are those of the CPU; their number, and the network's mode, are put back. Times depend on what else the
    machine does: to compare networks, measure them in turn.
    """
    parameter = next(net.parameters())
    inputs = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0)).to(parameter)
    was_training, threads_before = net.training, torch.get_num_threads()
    times: list[float] = []
    end = time.perf_counter() + seconds
    torch.set_num_threads(threads)
    net.eval()
    try:
        with torch.inference_mode():
            while len(times) < 2 or (len(times) < WARM_UP + passes and time.perf_counter() < end):
                times.append(_time(net, inputs))
    finally:
        net.train(was_training)
        torch.set_num_threads(threads_before)
    timed = times[min(WARM_UP, len(times) // 2) :]
    low, median, high = np.percentile(timed, (25, 50, 75)).tolist()
    return Latency(median, low, high, len(timed))


def _time(net: nn.Module, inputs: torch.Tensor) -> float:
    """Milliseconds of one pass, to the end of what it set going on a GPU."""
    start = time.perf_counter()
    net(inputs)
    if inputs.is_cuda:
        torch.cuda.synchronize(inputs.device)
    return (time.perf_counter() - start) * 1000
