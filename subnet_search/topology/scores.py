"""Importance scores of weights and channels, computed from tensors. Selection keeps the highest scores."""

import torch
from torch import Tensor

from subnet_search.topology.masks import Tensors
from subnet_search.topology.select import NotANumber


def magnitude(weights: Tensors) -> dict[str, Tensor]:
    """|w| of all `weights`, by name and of their shapes (Han et al. 2015, arXiv:1506.02626)."""
    return {name: weight.abs() for name, weight in weights.items()}


def saliency(weights: Tensors, gradients: Tensors) -> dict[str, Tensor]:
    """|w * g|, the first-order change of the loss when a weight is dropped.

    With the gradient of the loss: SNIP's connection sensitivity, up to a constant factor (Lee et al. 2019,
    arXiv:1810.02340, equation 6). With the gradient of the synaptic flow R: SynFlow's score (Tanaka et al. 2020,
    arXiv:2006.05467, equation 2). weights, gradients: w and g, of the same names and shapes.
    """
    return {name: (weight * gradients[name]).abs() for name, weight in weights.items()}


def gradient_flow(weights: Tensors, hessian_gradients: Tensors) -> dict[str, Tensor]:
    """w * (H g), the loss of gradient norm when a weight is dropped.

    Wang et al. 2020, arXiv:2002.07376, equation 8; the paper's score has the opposite sign, and its highest are dropped.
    weights, hessian_gradients: w and H g, of the same names and shapes.
    """
    return {name: weight * hessian_gradients[name] for name, weight in weights.items()}


def magnitude_and_gradient(weights: Tensors, gradients: Tensors, gradient_weight: float) -> dict[str, Tensor]:
    """|w| + lambda |g| (Yuan et al. 2021, arXiv:2110.14032, section 3.1).

    weights, gradients: w and g, of the same names and shapes. gradient_weight: lambda.
    """
    return {name: weight.abs() + gradient_weight * gradients[name].abs() for name, weight in weights.items()}


def filter_norms(filters: Tensors, p: float) -> dict[str, Tensor]:
    """||F||_p of every filter: (channels,). filters: rows (channels, numbers).

    p = 1: Li et al. 2017, arXiv:1608.08710, section 3.1; p = 2: He et al. 2018, arXiv:1808.06866, section 3.2.
    """
    return {name: torch.linalg.vector_norm(rows, p, dim=1) for name, rows in filters.items()}


def over_their_size(scores: Tensor, alive: Tensor | None = None) -> Tensor:
    """Nonnegative scores of one layer divided by their root mean square, so that layers are comparable.

    alive: bool, of the scores' shape: the units in the mean (None: all). Zeros stay zero. Infinite scores are not in the
    mean and stay infinite. Like the normalisers of Torch-Pruning (Fang et al. 2023, arXiv:2301.12900), which by default
    divides by the mean: the root mean square is larger where scores vary more, so channels are kept more evenly over layers.
    """
    counted = scores[scores.isfinite() if alive is None else scores.isfinite() & alive]
    largest = float(counted.max()) if counted.numel() else 0.0
    if largest == 0:
        return scores
    return scores / (largest * (counted / largest).square().mean().sqrt())  # squares of small scores would be 0


def layer_adaptive(scores: Tensor, alive: Tensor | None = None) -> Tensor:
    """s^2 divided by the sum of s^2 over the layer's units with equal or higher scores: in [0, 1], 1 for the highest.

    alive: bool, of the scores' shape: the units to rank (None: all); others get 0. Of equal scores the first ranks
    highest. Source: LAMP (Lee et al. 2021, arXiv:2010.07611), there for single weights.
    """
    squares = (scores if alive is None else scores * alive).reshape(-1).square()
    order = squares.argsort(descending=True, stable=True)
    relative = squares[order] / squares[order].cumsum(0).clamp(min=torch.finfo(squares.dtype).tiny)
    return torch.empty_like(squares).index_put((order,), relative).view(scores.shape)


def distances(filters: Tensor, alive: Tensor) -> Tensor:
    """The sum of Euclidean distances from every filter to the alive filters: (channels,).

    filters: rows, (channels, numbers); alive: bool, (channels,). Source: He et al. 2019, arXiv:1811.00250, section 3.
    """
    return torch.cdist(filters, filters[alive], compute_mode="donot_use_mm_for_euclid_dist").sum(1)


def map_ranks(maps: Tensor) -> Tensor:
    """The mean rank of every channel's feature maps: (channels,). maps: (images, channels, ..., height, width).

    Source: Lin et al. 2020, arXiv:2002.10179. Raises NotANumber for maps that are not finite.
    """
    if not bool(maps.isfinite().all()):
        raise NotANumber("a feature map is not finite")
    ranks: Tensor = torch.linalg.matrix_rank(maps.float()).float()
    return ranks.transpose(0, 1).flatten(1).mean(1)


def activity(features: Tensors) -> dict[str, Tensor]:
    """The fraction of nonzero activations of every channel: (channels,). features: (images, channels, numbers).

    One minus the average percentage of zeros, APoZ (Hu et al. 2016, arXiv:1607.03250, section 3).
    """
    return {name: (values != 0).float().mean((0, 2)) for name, values in features.items()}


def scales(norms: Tensors) -> dict[str, Tensor]:
    """The mean |gamma| of every channel over its batch norms: (channels,). norms: gamma, (norms, channels).

    Liu et al. 2017, arXiv:1708.06519, section 3, for one batch norm.
    """
    return {name: gamma.detach().abs().mean(0) for name, gamma in norms.items()}


def relative_importance(weights: Tensors) -> dict[str, Tensor]:
    """|w| / sum of |w| of the same input + |w| / sum of |w| of the same output.

    Zhang et al. 2024 (plug-and-play pruning), as used in arXiv:2501.19107, equation 1. Kernel positions count as inputs.
    weights: (out, in, ...), by name; so are the scores.
    """
    found = {}
    for name, weight in weights.items():
        size = weight.abs().flatten(1)  # (out, in)
        tiny = torch.finfo(size.dtype).tiny
        found[name] = (size / size.sum(0).clamp(min=tiny) + size / size.sum(1, keepdim=True).clamp(min=tiny)).view(weight.shape)
    return found


def local_community(mask: Tensor) -> Tensor:
    """CH2-L3n link scores of a layer as a bipartite graph of outputs and inputs: floats of the mask's shape.

    The score of the pair (u, v) is the sum of (1 + i) / (1 + e) over the nodes z on paths of length three, u - z' - z - v:
    i is the number of neighbours that z has in common with the seed node (u or v) on its side, e the number of its other
    links, without the link to the other seed node. Source: Zhang et al. 2025, arXiv:2501.19107, equation 3.
    """
    links = mask.flatten(1).float()  # (out, in)
    outputs, inputs = _isolation(links), _isolation(links.T)
    return (outputs @ links + links @ inputs.T).view(mask.shape)


def _isolation(links: Tensor) -> Tensor:
    """(1 + i) / (1 + e) for each pair of a seed node and a node z on one side: (n, n); 0 without common neighbours."""
    shared = links @ links.T  # common neighbours
    outside = (links.sum(1) - shared - 1).clamp(min=0)
    return (1 + shared) / (1 + outside) * (shared > 0)


def inverted(scores: Tensors) -> dict[str, Tensor]:
    """Negated scores: a sanity check (Frankle et al. 2021, arXiv:2009.08576, section 5)."""
    return {name: -score for name, score in scores.items()}
