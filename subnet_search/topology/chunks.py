"""Long chains of cheap operations, a cache-sized piece at a time."""

from collections.abc import Iterator

from torch import Tensor

PIECE = 131_072  # numbers: four such tensors fit in a core's second-level cache, and two threads still share the work


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Flat views of tensors of one shape, piece by piece, so that a chain of elementwise operations stays in cache.

    On the CPU such a chain is bound by memory; on an accelerator, or for tensors that are not contiguous, the tensors
    come back whole, once.
    """
    if tensors[0].device.type != "cpu" or not all(tensor.is_contiguous() for tensor in tensors):
        yield tensors
        return
    yield from zip(*(tensor.view(-1).split(PIECE) for tensor in tensors), strict=True)
