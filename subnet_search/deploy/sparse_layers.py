"""Sparse linear layers and 1x1 convolutions for inference; only nonzero weights are stored.

`csr` stores single weights with int32 indices, 8 bytes each; `bsr` stores square blocks. Both compute `W @ x.T`, which is
several times as fast as a linear layer with a sparse weight. `2:4` is the format of sparse tensor cores (Mishra et al.
2021, arXiv:2104.08378).
"""

import warnings
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subnet_search.core.errors import UserError
from subnet_search.structure.attention_heads import without_nested_tensors
from subnet_search.topology.masks import pack, unpack

Kind = Literal["csr", "bsr", "2:4"]
Dense = nn.Linear | nn.Conv2d
_quiet = partial(warnings.catch_warnings, action="ignore")  # torch warns that sparse CSR tensors are in beta


class Compressed(nn.Module):
    """A sparse matrix (rows, columns) with `stored` elements or blocks, and a bias. block: 1 for CSR, otherwise the BSR size.

    values: (stored,) or (stored, block, block). crow: start of each row in `values`; col: column of each value; int32.
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
        """The constructor's arguments for a layer of this form."""
        sizes = {"rows": self.rows, "columns": self.columns, "stored": len(self.col), "block": self.block}
        return {**sizes, "bias": self.bias is not None}

    def extra_repr(self) -> str:
        kind = "csr" if self.block == 1 else f"bsr:{self.block}"
        return f"{self.columns} -> {self.rows}, {kind}, {self.values.numel()} stored"

    @property
    def multiplied(self) -> float:
        """The fraction of the dense layer's multiplications that is computed."""
        return self.values.numel() / (self.rows * self.columns)

    def check(self) -> None:
        """Raise UserError for invalid indices, which would read memory out of bounds."""
        try:
            with _quiet():
                self._matrix(check=True)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"the indices of a sparse layer are invalid: {str(error).splitlines()[0]}") from error

    def _matrix(self, check: bool = False) -> Tensor:
        rows, columns = (-(-size // self.block) * self.block for size in (self.rows, self.columns))
        make = torch.sparse_csr_tensor if self.block == 1 else torch.sparse_bsr_tensor
        return make(self.crow, self.col, self.values, (rows, columns), check_invariants=check)  # 3 us: nothing is copied

    def _multiply(self, x: Tensor) -> Tensor:
        """The matrix times x (columns, N), plus the bias: (rows, N)."""
        if missing := -self.columns % self.block:
            x = F.pad(x, (0, 0, 0, missing))
        out = (self._matrix() @ x)[: self.rows]
        return out if self.bias is None else out + self.bias.unsqueeze(1)


class SparseLinear(Compressed):
    """A linear layer, (..., columns) to (..., rows). Outputs are feature-major in memory, as the next sparse layer needs."""

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
    """A linear layer with 2:4 sparsity in half precision, for sparse tensor cores. On a CPU it uses the dense matrix.

    values: (rows, columns / 2); bits: the packed mask of stored weights.
    """

    bits: Tensor
    multiplied = 0.5

    def __init__(self, rows: int, columns: int, bias: bool = True) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        self.values = nn.Parameter(torch.zeros(rows, columns // 2, dtype=torch.half), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(rows, dtype=torch.half), requires_grad=False) if bias else None
        self.register_buffer("bits", torch.zeros(rows * columns // 8, dtype=torch.uint8))
        self._unfolded: Tensor | None = None  # the weight on the current device, made in the first pass

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments for a layer of this form."""
        return {"rows": self.rows, "columns": self.columns, "bias": self.bias is not None}

    def check(self) -> None:
        """Raise UserError unless the mask has two of every four weights."""
        if not bool((self._mask().view(-1, 4).sum(1) == 2).all()):
            raise UserError("a 2:4 layer of the file does not have two of every four weights")

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
    """The sparse form of a linear layer, or of a 1x1 convolution without groups and padding."""
    matrix, has_bias = layer.weight.detach().flatten(1), layer.bias is not None
    rows, columns = matrix.shape
    new: Sparse
    if kind == "2:4":
        groups = matrix.reshape(-1, 4)
        # Two of each group: the nonzeros, and then the first zeros.
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


def replace_layer(net: nn.Module, name: str, layer: Sparse) -> None:
    """Replace the dense layer `name` by a sparse one."""
    net.set_submodule(name, layer)
    owner = net.get_submodule(name.rpartition(".")[0])
    if isinstance(owner, nn.TransformerEncoderLayer):
        owner.activation_relu_or_gelu = 0  # the encoder layer then calls its layers, without its fused fast path
        without_nested_tensors(net)


def _pair(stride: Any) -> tuple[int, int]:
    down, right = stride
    return down, right


def _compress(matrix: Tensor, block: int) -> Tensor:
    with _quiet():
        if block == 1:
            return matrix.to_sparse_csr()
        rest = (0, -matrix.shape[1] % block, 0, -matrix.shape[0] % block)
        return F.pad(matrix, rest).to_sparse_bsr((block, block))
