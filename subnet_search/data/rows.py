"""Arrays in files that are larger than memory: memory-mapped, and read row by row."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from subnet_search.core.errors import UserError

LARGEST_IN_MEMORY = 2**32  # bytes of arrays and image folders that are read into memory unless data.in_memory says otherwise
CHUNK = 2**23  # bytes that are read at once in the pass before training
AS_FLOAT32 = (np.float64, np.uint16, np.uint32, np.uint64)  # as for tensors in memory


def in_memory(wanted: bool | None, size: int) -> bool:
    """Whether to read data of `size` bytes into memory. wanted: the setting, None where it is not set."""
    return size <= LARGEST_IN_MEMORY if wanted is None else wanted


def is_mapped(data: Any) -> bool:
    """Whether an array in nested tuples, lists and mappings is a memory-mapped file (`np.memmap`, or a view of one)."""
    if isinstance(data, Mapping | tuple | list):
        return any(map(is_mapped, data.values() if isinstance(data, Mapping) else data))
    return root_of(data) is not None


def root_of(array: Any) -> np.memmap | None:
    """The memory-mapped file that an array is a view of; None for arrays in memory."""
    found = None
    while isinstance(array, np.ndarray):
        found = array if isinstance(array, np.memmap) and array.filename is not None else found
        array = array.base
    return found


class Rows(Dataset[Any]):
    """The rows of arrays with one row for each item: an item has a tensor for each array, nested like the arrays.

    arrays: arrays or tensors (N, ...) in nested tuples and mappings. Raises UserError when they are not numbers, or differ
    in length.
    """

    def __init__(self, arrays: Any) -> None:
        self.arrays = arrays
        sizes = {len(array) if np.ndim(array) else 0 for array in _leaves(arrays)}
        if len(sizes) > 1:
            raise UserError(f"the arrays of the data have different lengths: {', '.join(map(str, sorted(sizes)))}")
        [self.length] = sizes
        for array in _leaves(arrays):
            if isinstance(array, np.ndarray) and array.dtype.kind not in "biuf":
                raise UserError(f"the arrays of the data must be real numbers, got {array.dtype}")

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return _mapped(lambda array: as_tensor(array[index]), self.arrays)

    def __getitems__(self, places: list[int]) -> list[Any]:
        """The items at these places, read at once."""
        rows = _mapped(lambda array: as_tensor(array[places]), self.arrays)
        return [_mapped(lambda tensor, place=place: tensor[place], rows) for place in range(len(places))]  # type: ignore[misc]

    def chunks(self) -> Iterator[Any]:
        """All rows in order, as many at once as are about `CHUNK` bytes."""
        row = sum(array.nbytes for array in _leaves(self.arrays)) // max(1, self.length)
        size = max(1, CHUNK // max(1, row))
        for start in range(0, self.length, size):
            yield _mapped(lambda array, start=start: as_tensor(array[start : start + size]), self.arrays)  # type: ignore[misc]


def as_tensor(array: Any) -> Tensor:
    """A copy of an array in memory, in a type that tensors have: float64 and unsigned 16 to 64 bits as float32."""
    if isinstance(array, Tensor):
        return array
    kind = np.float32 if array.dtype in AS_FLOAT32 else array.dtype.newbyteorder("=")
    return torch.from_numpy(np.array(array, dtype=kind, order="C", ndmin=0))


def shared_rows(one: Any, other: Any) -> int:
    """The number of rows that the first arrays of two parts of the data have in common in a file."""
    mine, theirs = next(_leaves(one)), next(_leaves(other))
    roots = root_of(mine), root_of(theirs)
    if roots[0] is None or roots[1] is None or str(roots[0].filename) != str(roots[1].filename):
        return 0
    return len(np.intersect1d(_places(mine, roots[0]), _places(theirs, roots[1])))


def _places(array: np.ndarray, root: np.memmap) -> np.ndarray:
    """The place of each row in the file, in bytes: int64 (N,)."""
    start: int = array.__array_interface__["data"][0] - root.__array_interface__["data"][0] + root.offset
    return start + np.arange(len(array)) * array.strides[0]


def _leaves(arrays: Any) -> Iterator[Any]:
    if isinstance(arrays, Mapping | tuple | list):
        for inner in arrays.values() if isinstance(arrays, Mapping) else arrays:
            yield from _leaves(inner)
    else:
        yield arrays


def _mapped(change: Callable[[Any], Tensor], arrays: Any) -> Any:
    if isinstance(arrays, Mapping):
        return {key: _mapped(change, inner) for key, inner in arrays.items()}
    if isinstance(arrays, tuple | list):
        return tuple(_mapped(change, inner) for inner in arrays)
    return change(arrays)
