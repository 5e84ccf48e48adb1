"""A penalty that drives learned relevance to a density."""

from collections.abc import Mapping

import torch
from torch import Tensor

from subnet_search.topology.select import LayerDensities, allocate


def budget_penalty(relevance: Mapping[str, Tensor], density: float, scope: str | LayerDensities = "global") -> Tensor:
    """((E[density] - density) / density)^2, with E[density] = mean of sigma(m): a scalar.

    relevance: m, any shapes. With scope "global" over all layers together; otherwise the mean over layers, each with its
    allocated density.

    Source: Dupont, Sahbi & Michel 2021, arXiv:2107.03909, the budget loss, here on expected instead of counted units.
    """
    if scope != "global":
        counts = allocate({name: m.shape for name, m in relevance.items()}, density, scope)
        return torch.stack([(torch.sigmoid(m).sum() / counts[n] - 1).square() for n, m in relevance.items()]).mean()
    total = sum(m.numel() for m in relevance.values())
    expected = torch.stack([torch.sigmoid(m).sum() for m in relevance.values()]).sum() / total
    return ((expected - density) / density).square()
