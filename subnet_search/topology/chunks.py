"""Tensors split into cache-sized chunks, for chains of elementwise operations on the CPU."""

from collections.abc import Iterator

from torch import Tensor

CHUNK = 131_072  # elements: four float32 chunks fit in a core's second-level cache, and still give two threads work


def chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Flat views of tensors of one shape, `CHUNK` elements at a time.

    On the CPU a chain of elementwise operations is limited by memory bandwidth; chunks stay in cache. On an accelerator,
    and for tensors that are not contiguous, the whole tensors are yielded once.
    """
    if tensors[0].device.type != "cpu" or not all(tensor.is_contiguous() for tensor in tensors):
        yield tensors
        return
    yield from zip(*(tensor.view(-1).split(CHUNK) for tensor in tensors), strict=True)
