"""OrthP: orthogonal weights after pruning.

Wang, Qin, Bai & Fu 2021, arXiv:2105.05916 ("Dynamical Isometry: The Missing Ingredient for Neural Network Pruning"), as
`orthogonalize_weights` in the authors' code (MingSun-Tse/TPP smilelogging/utils.py): the QR decomposition of each layer's kept
weights as a matrix (filters, inputs * kernel), Q times the signs of R's diagonal, times the gain of the activation.
"""

import torch
from torch import Tensor

from subnet_search.topology.masks import Tensors


def orthogonal(weights: Tensors, masks: Tensors, gain: float = 1.0) -> dict[str, Tensor]:
    """All weights, with the kept part of each made orthogonal; weights that are not kept are unchanged.

    The kept part is a matrix of kept rows (filters) and kept columns: its rows become orthonormal times `gain`, or its columns
    where there are more rows than columns. Where rows keep different columns, as in the groups of a convolution, those with the
    same columns are one matrix. masks: bool, of the weights' shapes.
    """
    return {name: _orthogonal(weight.detach(), masks[name], gain) for name, weight in weights.items()}


def _orthogonal(weight: Tensor, mask: Tensor, gain: float) -> Tensor:
    matrix, alive = weight.flatten(1).double().cpu().clone(), mask.flatten(1).cpu()  # in float64: the same on any device
    kinds, kind = alive.unique(dim=0, return_inverse=True)
    for index, columns in enumerate(kinds):
        if columns.any():
            rows = (kind == index).nonzero()
            block = matrix[rows, columns.nonzero().T]
            matrix[rows, columns.nonzero().T] = gain * _q(block)
    return matrix.view(weight.shape).to(weight)


def _q(block: Tensor) -> Tensor:
    """The orthogonal factor of a matrix, or of its transpose where it is wide, with the diagonal of R positive."""
    if block.shape[0] < block.shape[1]:
        return _q(block.T).T
    q: Tensor
    q, r = torch.linalg.qr(block)
    return q * torch.where(r.diagonal() < 0, -1.0, 1.0).to(q)
