"""Data-parallel training: each process computes on its shard of every batch, and gradients are averaged.

All random draws are functions of (seed, step), and gradients are averaged, so all ranks select the same topology without
communication; `check_equal` verifies it. Values that only one rank has (a free folder, a validation accuracy, a signal)
are sent to all ranks, so that all make the same decisions.
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
    # Its functions have the default process group as a default argument. When it is imported after the group is made, as by
    # an optimizer, it keeps the group's threads alive until the interpreter exits, which sometimes aborts the process.
    import torch.distributed.nn

ASK_EVERY = 10  # steps between two checks whether any rank should stop; a check costs about a tenth of a small step
SMALL = 2**18  # elements; smaller tensors are averaged in one message, since the cost is per message
EXIT_TIMEOUT = 30  # seconds

T = TypeVar("T")


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) outside a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@contextmanager
def process_group() -> Iterator[bool]:
    """Join the process group that torchrun set up; yields whether this process is rank 0. Does nothing for one process.

    Output of other ranks is discarded. An error is printed only by the first process that fails. On machines with GPUs the
    default CUDA device is the one of the local rank. Raises UserError when torchrun's variables are incomplete.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield True
        return
    from torch.distributed.rendezvous import rendezvous

    gpus = torch.cuda.device_count()
    try:
        with _communication():
            store, rank, world = next(rendezvous("env://"))
            if (local := int(os.environ.get("LOCAL_RANK", rank))) < gpus:
                torch.cuda.set_device(local)
            dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", store=store, rank=rank, world_size=world)
    except ValueError as error:
        raise UserError(f"WORLD_SIZE is set, but other variables of torchrun are missing: {error}") from error
    streams = sys.stdout, sys.stderr
    devnull = open(os.devnull, "w")  # noqa: SIM115  also used after the block, until the process exits
    if rank > 0:
        sys.stdout = sys.stderr = devnull
    try:
        yield rank == 0
    except BaseException:  # the first process that fails prints the error, and all exit
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it to the others, perhaps while they print
        first = False
        with suppress(RuntimeError):  # the store has already closed
            first = store.add("failed", 1) == 1
        sys.stdout, sys.stderr = streams if first else (devnull, devnull)
        # Skip `destroy_process_group`: NCCL may block after a failure, even at exit.
        if hasattr(signal, "alarm"):
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(EXIT_TIMEOUT)
        raise
    dist.destroy_process_group()
    sys.stdout, sys.stderr = streams


def launcher() -> str:
    """The command prefix that starts subnet-search on the same number of processes."""
    world = rank_and_world()[1]
    if world == 1:
        return "subnet-search"
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    machines = f"--nnodes {world // local} " if world > local else ""
    return f"torchrun {machines}--nproc-per-node {local} -m subnet_search"


def check_shards(batch_size: int, device: str) -> None:
    """Raise UserError when a batch cannot be split equally over the processes, or there is not a GPU for each."""
    world = rank_and_world()[1]
    if world == 1:
        return
    if batch_size % world:
        below = batch_size - batch_size % world
        fitting = " or ".join(str(size) for size in (below, below + world) if size)
        raise UserError(f"a batch of {batch_size} images cannot be split equally over {world} processes; {fitting} can")
    if torch.device(device).type == "cuda":
        local, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", world)), torch.cuda.device_count()
        if torch.device(device).index is not None:
            raise UserError(f"recipe.device: {local} processes cannot share {device}; set cuda, so that each uses its own GPU")
        if local > gpus:
            raise UserError(f"{local} processes need {local} GPUs, found {gpus}; or set -s recipe.device=cpu")


def average(tensors: Iterable[Tensor]) -> None:
    """Replace every tensor by its mean over all ranks, in place. Does nothing outside a process group."""
    world = rank_and_world()[1]
    if world == 1:
        return
    tensors = list(tensors)
    small = [tensor for tensor in tensors if tensor.numel() < SMALL]
    with _communication():
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
    """Call `make` on rank 0 and return its result on every rank. Its UserError or RunError is raised on every rank."""
    rank, world = rank_and_world()
    if world == 1:
        return make()
    sent: list[Any] = [None, None]  # result, error
    if rank == 0:
        try:
            sent[0] = make()
        except (UserError, RunError) as error:
            sent[1] = error
    with _communication():
        dist.broadcast_object_list(sent)
    if sent[1] is not None:
        raise sent[1]
    value: T = sent[0]
    return value


def local_first(make: Callable[[], T]) -> T:
    """Call `make` on every rank, first on one process of each machine, which may download files for the others."""
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
    """Whether the flag is set on any rank. Also a barrier: no rank returns before all have called it."""
    if rank_and_world()[1] == 1:
        return flag
    found = torch.tensor([float(flag)])
    with _communication():
        dist.all_reduce(found)
    return found.item() > 0


def time_to_stop(should_stop: Callable[[], bool], step: int) -> bool:
    """Whether any rank should stop. With several ranks this is checked every `ASK_EVERY` steps."""
    return (rank_and_world()[1] == 1 or step % ASK_EVERY == 0) and any_rank(should_stop())


def check_equal(tensors: Callable[[], Mapping[str, Tensor]], step: int) -> None:
    """Raise RunError on every rank, with the first that differs, unless all ranks hold the same tensors."""
    if rank_and_world()[1] > 1:
        hashes = _from_all(digest(tensors()))
        for rank, found in enumerate(hashes):
            if found != hashes[0]:
                raise RunError(f"the networks of process {rank} and process 0 differ after step {step}")


def _from_all(value: T) -> list[T]:
    """The values of all ranks, in rank order."""
    found: list[Any] = [None] * rank_and_world()[1]
    with _communication():
        dist.all_gather_object(found, value)
    return found


@contextmanager
def _communication() -> Iterator[None]:
    """Turn errors of torch.distributed into RunError."""
    try:
        yield
    except RuntimeError as error:
        raise RunError(f"lost the connection to another process: {str(error).splitlines()[0].split('. ')[0]}") from error
