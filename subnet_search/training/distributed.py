"""Training on several processes at once: each takes its part of every batch, and gradients are averaged.

Every draw is a function of (seed, step) and everything learned from data is averaged, so all ranks select the same
topology without talking about it; `check_equal` looks whether they did. What only one of them can know (a free folder,
a validation accuracy, a signal) is told to all, so that they decide alike.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from subnet_search.core.errors import RunError, UserError
from subnet_search.core.tensor_files import digest

if dist.is_available():
    # Its functions have the group of all processes as a default value. Imported later, by an optimizer say, it keeps that
    # group and its threads alive to the end of the interpreter, where they abort it now and then.
    import torch.distributed.nn

ASK_EVERY = 10  # steps between two questions whether to stop; one costs about as much as a tenth of a small step
SMALL = 2**18  # elements; smaller tensors are averaged together, since every message costs the same
LEAVE_WITHIN = 30  # seconds

T = TypeVar("T")


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) outside a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@contextmanager
def process_group() -> Iterator[bool]:
    """Join the processes that torchrun started, until the block ends; yields whether this one speaks for all.

    The others' output goes nowhere. An error is told by the first process that meets it, and by no other.
    On a machine with GPUs, "cuda" is from here on that of the local rank. Alone, nothing happens.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield True
        return
    from torch.distributed.rendezvous import rendezvous

    gpus = torch.cuda.device_count()
    try:
        with _in_touch():
            store, rank, world = next(rendezvous("env://"))
            if (local := int(os.environ.get("LOCAL_RANK", rank))) < gpus:
                torch.cuda.set_device(local)
            dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", store=store, rank=rank, world_size=world)
    except ValueError as error:
        raise UserError(f"WORLD_SIZE is set, but not all else that torchrun sets: {error}") from error
    streams = sys.stdout, sys.stderr
    nowhere = open(os.devnull, "w")  # noqa: SIM115  the last words of a process go there after the block
    if rank > 0:
        sys.stdout = sys.stderr = nowhere
    try:
        yield rank == 0
    except BaseException:  # whatever it is: one process tells it, and all leave
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends those that are left, perhaps in mid-sentence
        first = False
        with suppress(RuntimeError):  # the store is gone, and with it whoever could hear
            first = store.add("failed", 1) == 1
        sys.stdout, sys.stderr = streams if first else (nowhere, nowhere)
        # Skip `destroy_process_group`: NCCL may block after a failure, even at exit.
        if hasattr(signal, "alarm"):
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(LEAVE_WITHIN)
        raise
    dist.destroy_process_group()
    sys.stdout, sys.stderr = streams


def launcher() -> str:
    """The words that start a command on as many processes as this one."""
    world = rank_and_world()[1]
    if world == 1:
        return "subnet-search"
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    machines = f"--nnodes {world // local} " if world > local else ""
    return f"torchrun {machines}--nproc-per-node {local} -m subnet_search"


def check_shares(batch_size: int, device: str) -> None:
    """Raise UserError when processes cannot share a batch equally, or cannot have a GPU each."""
    world = rank_and_world()[1]
    if world == 1:
        return
    if batch_size % world:
        below = batch_size - batch_size % world
        fitting = " or ".join(str(size) for size in (below, below + world) if size)
        raise UserError(f"a batch of {batch_size} images cannot be shared equally by {world} processes; {fitting} can")
    if torch.device(device).type == "cuda":
        local, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", world)), torch.cuda.device_count()
        if torch.device(device).index is not None:
            raise UserError(f"recipe.device: {device} would be shared by {local} processes; with cuda each takes its own")
        if local > gpus:
            raise UserError(f"{local} processes need as many GPUs, and there are {gpus}; or -s recipe.device=cpu")


def average(tensors: Iterable[Tensor]) -> None:
    """Replace every tensor by its mean over all ranks, in place. Does nothing outside a process group."""
    world = rank_and_world()[1]
    if world == 1:
        return
    tensors = list(tensors)
    small = [tensor for tensor in tensors if tensor.numel() < SMALL]
    with _in_touch():
        for tensor in tensors:
            if tensor.numel() >= SMALL:
                dist.all_reduce(tensor)
                tensor.div_(world)
        if small:
            together = torch.cat([tensor.reshape(-1) for tensor in small])
            dist.all_reduce(together)
            together.div_(world)
            for tensor, mean in zip(small, together.split([tensor.numel() for tensor in small]), strict=True):
                tensor.copy_(mean.view_as(tensor))


def from_first(make: Callable[[], T]) -> T:
    """What `make` gives on rank 0, on every rank; it is called there alone. Its UserError or RunError is raised on all."""
    rank, world = rank_and_world()
    if world == 1:
        return make()
    told: list[Any] = [None, None]
    if rank == 0:
        try:
            told[0] = make()
        except (UserError, RunError) as error:
            told[1] = error
    with _in_touch():
        dist.broadcast_object_list(told)
    if told[1] is not None:
        raise told[1]
    value: T = told[0]
    return value


def one_goes_ahead(make: Callable[[], T]) -> T:
    """What `make` gives on each rank, called on one process of every machine first: it may download what all then read."""
    rank, world = rank_and_world()
    if world == 1:
        return make()
    value, problem = None, None
    if os.environ.get("LOCAL_RANK", str(rank)) == "0":
        try:
            value = make()
        except (UserError, RunError) as error:
            problem = error
    for found in _from_all(problem):
        if found is not None:
            raise found
    return make() if value is None else value


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank: the same answer on all, and none goes on before all have asked."""
    if rank_and_world()[1] == 1:
        return flag
    found = torch.tensor([float(flag)])
    with _in_touch():
        dist.all_reduce(found)
    return found.item() > 0


def time_to_stop(should_stop: Callable[[], bool], step: int) -> bool:
    """Whether any rank has been asked to stop. With several ranks they ask each other every few steps."""
    return (rank_and_world()[1] == 1 or step % ASK_EVERY == 0) and any_rank(should_stop())


def check_equal(tensors: Callable[[], Mapping[str, Tensor]], step: int) -> None:
    """Raise RunError on every rank, naming the first that differs, unless all ranks hold the same tensors."""
    if rank_and_world()[1] > 1:
        hashes = _from_all(digest(tensors()))
        for rank, found in enumerate(hashes):
            if found != hashes[0]:
                raise RunError(f"process {rank} holds another network than process 0 after step {step}; they must be the same")


def _from_all(value: T) -> list[T]:
    """The values of all ranks, in their order."""
    found: list[Any] = [None] * rank_and_world()[1]
    with _in_touch():
        dist.all_gather_object(found, value)
    return found


@contextmanager
def _in_touch() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RunError(f"lost touch with another process: {str(error).splitlines()[0].split('. ')[0]}") from error
