"""Layers that hold only the weights that live: plain modules for linear layers and 1x1 convolutions.

`csr` stores single weights with int32 indices, 8 bytes each; `bsr` stores square blocks. Both compute feature-major,
`W @ x.T`, which is several times as fast as a linear layer with a sparse weight. `2:4` is what sparse tensor cores
multiply with (Mishra et al. 2021, arXiv:2104.08378). They are for inference: nothing in them learns.
"""

import warnings
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subnet_search.core.errors import UserError
from subnet_search.topology.masks import pack, unpack

Kind = Literal["csr", "bsr", "2:4"]
Dense = nn.Linear | nn.Conv2d
_quiet = partial(warnings.catch_warnings, action="ignore")  # torch says, once a process, that such tensors are new to it


class Compressed(nn.Module):
    """A matrix (rows, columns) of which `stored` numbers or blocks are kept, and a bias. block: 1 for CSR, else BSR's size.

    values: (stored,) or (stored, block, block); crow, where each row of them begins, and col, their columns: int32.
    """

    crow: Tensor
    col: Tensor

    def __init__(self, rows: int, columns: int, stored: int, block: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.rows, self.columns, self.block = rows, columns, block
        shape = (stored,) if block == 1 else (stored, block, block)
        self.values = nn.Parameter(torch.zeros(shape), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(rows), requires_grad=False) if bias else None
        self.register_buffer("crow", torch.zeros(-(-rows // block) + 1, dtype=torch.int32))
        self.register_buffer("col", torch.zeros(stored, dtype=torch.int32))

    def settings(self) -> dict[str, Any]:
        """What the constructor takes to make a layer of this form."""
        sizes = {"rows": self.rows, "columns": self.columns, "stored": len(self.col), "block": self.block}
        return {**sizes, "bias": self.bias is not None}

    def extra_repr(self) -> str:
        kind = "csr" if self.block == 1 else f"bsr:{self.block}"
        return f"{self.columns} -> {self.rows}, {kind}, {self.values.numel()} stored"

    @property
    def multiplied(self) -> float:
        """The fraction of the dense layer's multiplications that are done."""
        return self.values.numel() / (self.rows * self.columns)

    def check(self) -> None:
        """Raise UserError for indices that are those of no such matrix: by them, memory of others would be read."""
        try:
            with _quiet():
                self._matrix(check=True)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"the indices of a sparse layer are wrong: {str(error).splitlines()[0]}") from error

    def _matrix(self, check: bool = False) -> Tensor:
        rows, columns = (-(-size // self.block) * self.block for size in (self.rows, self.columns))
        make = torch.sparse_csr_tensor if self.block == 1 else torch.sparse_bsr_tensor
        return make(self.crow, self.col, self.values, (rows, columns), check_invariants=check)  # 3 us: nothing is copied

    def _multiply(self, x: Tensor) -> Tensor:
        """The matrix times columns (columns, N), plus the bias: (rows, N)."""
        if missing := -self.columns % self.block:
            x = F.pad(x, (0, 0, 0, missing))
        out = (self._matrix() @ x)[: self.rows]
        return out if self.bias is None else out + self.bias.unsqueeze(1)


class SparseLinear(Compressed):
    """A linear layer, (..., columns) to (..., rows). Its outputs lie feature-major in memory, as the next one wants them."""

    def forward(self, x: Tensor) -> Tensor:
        out = self._multiply(x.reshape(-1, self.columns).T).T
        return out if x.dim() == 2 else out.reshape(*x.shape[:-1], self.rows)


class SparseConv1x1(Compressed):
    """A 1x1 convolution without padding, (N, columns, H, W) to (N, rows, H / stride, W / stride)."""

    def __init__(self, stride: tuple[int, int] = (1, 1), **settings: Any) -> None:
        super().__init__(**settings)
        self.stride = stride

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "stride": list(self.stride)}

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride[0], :: self.stride[1]].transpose(0, 1)  # (columns, N, H, W)
        return self._multiply(x.flatten(1)).view(self.rows, *x.shape[1:]).transpose(0, 1)


class SemiStructuredLinear(nn.Module):
    """A linear layer of which two of every four weights are stored, in half precision, for the sparse tensor cores of a GPU.

    values: (rows, columns / 2); bits: which they are, one a weight, packed. On a CPU it computes with the dense matrix.
    """

    bits: Tensor
    multiplied = 0.5

    def __init__(self, rows: int, columns: int, bias: bool = True) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        self.values = nn.Parameter(torch.zeros(rows, columns // 2, dtype=torch.half), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(rows, dtype=torch.half), requires_grad=False) if bias else None
        self.register_buffer("bits", torch.zeros(rows * columns // 8, dtype=torch.uint8))
        self._unfolded: Tensor | None = None  # made of the above at the first pass on a device

    def settings(self) -> dict[str, Any]:
        """What the constructor takes to make a layer of this form."""
        return {"rows": self.rows, "columns": self.columns, "bias": self.bias is not None}

    def check(self) -> None:
        """Raise UserError when the bits are not two of every four."""
        if not bool((self._mask().view(-1, 4).sum(1) == 2).all()):
            raise UserError("a 2:4 layer of the file is not two of every four")

    def _mask(self) -> Tensor:
        return unpack(self.bits.cpu(), (self.rows, self.columns))

    def forward(self, x: Tensor) -> Tensor:
        if self._unfolded is None or self._unfolded.device != x.device:
            mask = self._mask().to(x.device)
            dense = torch.zeros(mask.shape, dtype=self.values.dtype, device=x.device).masked_scatter_(mask, self.values)
            self._unfolded = torch.sparse.to_sparse_semi_structured(dense) if x.is_cuda else dense
        return F.linear(x.to(self.values.dtype), self._unfolded, self.bias).to(x.dtype)


Sparse = SparseLinear | SparseConv1x1 | SemiStructuredLinear
FORMS: dict[str, type[Sparse]] = {form.__name__: form for form in (SparseLinear, SparseConv1x1, SemiStructuredLinear)}


@torch.no_grad()
def sparse_form(layer: Dense, kind: Kind, block: int) -> Sparse:
    """A linear layer, or a 1x1 convolution without groups and padding, with nothing stored for its zeros."""
    matrix, has_bias = layer.weight.detach().flatten(1), layer.bias is not None
    rows, columns = matrix.shape
    new: Sparse
    if kind == "2:4":
        groups = matrix.reshape(-1, 4)
        # Two of each group: those that live, and of dead ones the first.
        first = groups.ne(0).int().argsort(dim=1, descending=True, stable=True)[:, :2]
        chosen = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, first, True)
        new = SemiStructuredLinear(rows, columns, has_bias)
        tensors = {"values": groups[chosen].view(rows, -1), "bits": pack(chosen)}
    else:
        size = 1 if kind == "csr" else block
        found = _compress(matrix, size)
        tensors = {"values": found.values(), "crow": found.crow_indices(), "col": found.col_indices()}
        settings: dict[str, Any] = {
            "rows": rows,
            "columns": columns,
            "stored": len(tensors["col"]),
            "block": size,
            "bias": has_bias,
        }
        linear = isinstance(layer, nn.Linear)
        new = SparseLinear(**settings) if linear else SparseConv1x1(stride=_pair(layer.stride), **settings)
        new.to(matrix.dtype)
    new.load_state_dict(tensors if layer.bias is None else {**tensors, "bias": layer.bias})
    return new.to(matrix.device).eval()


def put(net: nn.Module, name: str, layer: Sparse) -> None:
    """Put a sparse layer in the place of a dense one."""
    net.set_submodule(name, layer)
    owner = net.get_submodule(name.rpartition(".")[0])
    if isinstance(owner, nn.TransformerEncoderLayer):
        owner.activation_relu_or_gelu = 0  # so that it calls its layers, and does not read their weights itself


def _pair(stride: Any) -> tuple[int, int]:
    down, right = stride
    return down, right


def _compress(matrix: Tensor, block: int) -> Tensor:
    with _quiet():
        if block == 1:
            return matrix.to_sparse_csr()
        rest = (0, -matrix.shape[1] % block, 0, -matrix.shape[0] % block)
        return F.pad(matrix, rest).to_sparse_bsr((block, block))
