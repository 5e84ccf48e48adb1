"""OrthP: what is kept of a weight becomes orthogonal, by hand and in each shape of layer; the rest stays."""

import pytest
import torch

from subnet_search.topology.orthogonal import orthogonal


def made(weight, mask=None, gain=1.0):
    mask = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask
    return orthogonal({"w": weight}, {"w": mask}, gain)["w"]


def test_by_hand():
    """QR of columns (3, 4) and (1, 2): the first over 5, the second without its part along the first, of norm 1."""
    found = made(torch.tensor([[3.0, 1.0], [4.0, 2.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.6, -0.8], [0.8, 0.6]]))
    torch.testing.assert_close(made(-torch.eye(2)), -torch.eye(2))  # R is positive on its diagonal, so the sign stays


def test_only_kept_rows_and_columns_change():
    weight, mask = torch.arange(1.0, 10).view(3, 3), torch.zeros(3, 3, dtype=torch.bool)
    mask[:2, 1:] = True  # rows (2, 3) and (5, 6)
    before = weight.clone()
    found = made(weight, mask)
    torch.testing.assert_close(found[:2, 1:] @ found[:2, 1:].T, torch.eye(2))
    assert torch.equal(found[~mask], before[~mask])
    assert torch.equal(weight, before)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5), (6, 2, 3, 3), (16, 1, 3, 3)])
@pytest.mark.parametrize("gain", [1.0, 1.5])
def test_rows_are_orthonormal_or_columns_where_there_are_fewer(shape, gain):
    found = made(torch.randn(shape, generator=torch.Generator().manual_seed(0)), gain=gain).flatten(1) / gain
    rows, columns = found.shape
    product = found @ found.T if rows <= columns else found.T @ found
    torch.testing.assert_close(product, torch.eye(min(rows, columns)), atol=1e-6, rtol=0)


def test_rows_with_the_same_columns_are_one_matrix():
    """As in a convolution with two groups of which each keeps other inputs."""
    weight, mask = torch.randn(4, 4, generator=torch.Generator().manual_seed(1)), torch.zeros(4, 4, dtype=torch.bool)
    mask[:2, :2], mask[2:, 1:3] = True, True
    found = made(weight, mask)
    for block in (found[:2, :2], found[2:, 1:3]):
        torch.testing.assert_close(block @ block.T, torch.eye(2), atol=1e-6, rtol=0)


def test_weights_of_deficient_rank_become_orthogonal_too():
    found = made(torch.ones(3, 5))
    torch.testing.assert_close(found @ found.T, torch.eye(3), atol=1e-6, rtol=0)
