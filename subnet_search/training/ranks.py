"""Training on several processes at once: each takes its part of every batch, and gradients are averaged.

Every draw is a function of (seed, step), so all ranks sample and select the same topology without talking about it.
"""

from collections.abc import Iterable

import torch.distributed as dist
from torch import Tensor


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) outside a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def average(tensors: Iterable[Tensor]) -> None:
    """Replace every tensor by its mean over all ranks, in place. Does nothing outside a process group."""
    world = rank_and_world()[1]
    if world > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor.div_(world)
