"""Reaching a density with relevance that is free to choose its own."""

from collections.abc import Mapping

import torch
from torch import Tensor

from subnet_search.topology.masks import Masks
from subnet_search.topology.select import count, keep_global


def likely(relevance: Mapping[str, Tensor]) -> Masks:
    """Every unit that is more likely kept than dropped: 1[m >= 0]."""
    return Masks({name: m.detach() >= 0 for name, m in relevance.items()})


def ranked(relevance: Mapping[str, Tensor], density: float) -> Masks:
    """The most relevant units over all layers together, exactly `density` of them."""
    return keep_global(relevance, count(density, sum(m.numel() for m in relevance.values())))


def budget_penalty(relevance: Mapping[str, Tensor], density: float) -> Tensor:
    """((E[density] - density) / density)^2, with E[density] = mean of sigma(m): a scalar.

    Source: Dupont, Sahbi & Michel 2021, arXiv:2107.03909, the budget loss, here on expected instead of counted units.
    """
    total = sum(m.numel() for m in relevance.values())
    expected = torch.stack([torch.sigmoid(m).sum() for m in relevance.values()]).sum() / total
    return ((expected - density) / density).square()
