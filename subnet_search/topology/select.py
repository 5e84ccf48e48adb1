"""Exact selection of the units to keep, by score.

Three separate steps: the total number (`count`), the number for each layer (`allocate`, by `uniform`, `erdos_renyi` or
`relative` densities), and the units (`top_k`, `keep_global`, `keep_by_layer`). The counts are exact.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subnet_search.core.errors import UserError, unknown
from subnet_search.topology.chunks import CHUNK
from subnet_search.topology.masks import Masks, alive

Shapes = Mapping[str, Sequence[int]]
LayerDensities: TypeAlias = Mapping[str, float]
"""A relative density above 0 for each layer, by `layer_name`. Only the ratios matter."""


class NotANumber(ValueError):
    """A score that cannot be ranked."""


SAMPLED_FROM = 1_000_000  # scores; with fewer, one partition of all is as fast
STRIDE = 61  # the sample takes one cache line in this many


def count(density: float, numel: int) -> int:
    """The number of units kept at `density` out of `numel`: rounded to nearest, halves up, at least one."""
    return max(1, math.floor(density * numel + 0.5))


def top_k(scores: Tensor, k: int, among: Tensor | None = None, magnitude: bool = False) -> Tensor:
    """The mask of the `k` highest scores, of their shape. Ties are broken in row-major order, on every device.

    among: bool; only these units may be chosen (None: all). magnitude: rank |scores|, without a copy of all scores.
    The threshold is found by partial selection, in linear time.
    Raises ValueError for a k outside 0..numel, and NotANumber for NaN among scores that are compared.
    """
    flat = scores.detach().reshape(-1)
    eligible = flat.numel() if among is None else alive(among)
    if not 0 <= k <= eligible:
        raise ValueError(f"cannot keep {k} of {eligible} units")
    if k == eligible and among is not None:
        return among.clone()
    if k == 0 or k == eligible:
        return torch.full_like(scores, k > 0, dtype=torch.bool)
    if flat.device.type == "cpu":
        array = (flat.float() if flat.dtype == torch.bfloat16 else flat).numpy()
        chosen = _top_k(array, k, None if among is None else among.reshape(-1).numpy(), eligible, magnitude)
        return torch.from_numpy(chosen).view(scores.shape)
    flat = flat.abs() if magnitude else flat
    if among is not None:
        flat = flat.masked_fill(~among.reshape(-1), -torch.inf)
    threshold = torch.topk(flat, k, sorted=False).values.min()
    if bool(flat.isnan().any()):
        raise NotANumber("a score is not a number")
    mask = flat > threshold
    ties = (flat == threshold).nonzero().view(-1)
    mask[ties[: k - int(mask.count_nonzero())]] = True
    return mask.view(scores.shape)


def _top_k(scores: NDArray[Any], k: int, among: NDArray[np.bool_] | None, eligible: int, magnitude: bool) -> NDArray[np.bool_]:
    """`top_k` for one dimension in numpy, whose partition is several times faster than torch's selection."""
    if len(scores) >= SAMPLED_FROM and (found := _top_k_sampled(scores, k, among, eligible, magnitude)) is not None:
        return found
    mask = np.zeros(len(scores), bool)
    positions = slice(None) if among is None else np.flatnonzero(among)
    ranked = scores[positions]
    mask[positions] = _highest(np.abs(ranked) if magnitude else ranked, k)
    return mask


def _highest(scores: NDArray[Any], k: int) -> NDArray[np.bool_]:
    """The mask of the `k` highest, by one partition of all scores."""
    parted = np.partition(scores, len(scores) - k)
    threshold = parted[len(scores) - k]
    if k and np.isnan(parted[len(scores) - k :].max()):  # NaN sorts last
        raise NotANumber("a score is not a number")
    mask: NDArray[np.bool_] = scores > threshold
    mask[np.flatnonzero(scores == threshold)[: k - np.count_nonzero(mask)]] = True
    return mask


def _top_k_sampled(
    scores: NDArray[Any], k: int, among: NDArray[np.bool_] | None, eligible: int, magnitude: bool
) -> NDArray[np.bool_] | None:
    """`_top_k` by Floyd & Rivest (1975): a sample brackets the threshold, and only scores in the bracket are partitioned.

    One pass over the scores in cache-sized chunks. None when the threshold is outside the bracket, as with many equal
    scores, or when a score is NaN: the caller then partitions all scores.
    """
    sample = _sample(scores) if among is None else _sample(scores)[_sample(among)]
    sample = np.abs(sample) if magnitude else sample
    rank = len(sample) * (1 - k / eligible)  # of the threshold among the sample, from below
    slack = 4 * math.sqrt(len(sample) * (k / eligible) * (1 - k / eligible)) + 2
    lower, upper = math.floor(rank - slack), math.ceil(rank + slack)
    if lower < 0 or upper >= len(sample):
        return None
    low, high = np.partition(sample, (lower, upper))[[lower, upper]]
    mask = np.empty(len(scores), bool)
    near: list[NDArray[np.intp]] = []
    squares = 0.0  # not a number if any score is not
    for start in range(0, len(scores), CHUNK):
        part = slice(start, start + CHUNK)
        chunk, sure = np.abs(scores[part]) if magnitude else scores[part], mask[part]
        squares += np.dot(chunk, chunk)
        np.greater(chunk, high, out=sure)
        between = chunk > low
        if among is not None:
            between &= among[part]
            sure &= among[part]
        between ^= sure
        near.append(np.flatnonzero(between) + start)
    positions = np.concatenate(near)
    missing = k - int(np.count_nonzero(mask))
    if math.isnan(squares) or not 0 <= missing <= len(positions):
        return None
    if missing:
        ranked = scores[positions]
        mask[positions[_highest(np.abs(ranked) if magnitude else ranked, missing)]] = True
    return mask


def _sample(array: NDArray[Any]) -> NDArray[Any]:
    """Eight neighbours (one cache line) of every STRIDE * 8 elements."""
    return array[: len(array) // 8 * 8].reshape(-1, 8)[::STRIDE].reshape(-1)


def keep_global(scores: Mapping[str, Tensor], k: int) -> Masks:
    """Masks of the `k` highest scores over all layers together; of equal scores those of the first layer are kept first.

    Raises as `top_k` does.
    """
    flat = top_k(torch.cat([score.detach().reshape(-1) for score in scores.values()]), k)
    parts = flat.split([score.numel() for score in scores.values()])
    return Masks({name: part.view(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)})


def keep_by_layer(scores: Mapping[str, Tensor], counts: Mapping[str, int]) -> Masks:
    """Masks of the `counts[name]` highest scores of each layer. Raises as `top_k` does."""
    return Masks({name: top_k(score, counts[name]) for name, score in scores.items()})


def first_of_each(
    scores: Mapping[str, Tensor], counts: Mapping[str, int], among: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Scores with a constant added to the `counts[name]` highest of each layer, which then rank above all others.

    So every layer keeps that many before others keep more. among: bool, the units to choose from (None: all).
    """
    finite = torch.cat([score[score.isfinite()] for score in scores.values()])
    lift, found = float(finite.max() - finite.min()) + 1 if finite.numel() else 0.0, {}
    for name, score in scores.items():
        there = None if among is None else among[name]
        number = min(counts[name], score.numel() if there is None else alive(there))
        found[name] = torch.where(top_k(score, number, among=there), score + lift, score)
    return found


def sampled(scores: Tensor, uniform: Tensor, power: float = 1.0) -> Tensor:
    """Random scores whose `k` highest are a sample of k units without replacement, with probability ~ score^power.

    log s^power - log(-log u) (Efraimidis & Spirakis 2006), shifted so that the lowest is 0; units of score 0 rank last.
    scores: nonnegative; uniform: in (0, 1), of the same shape.
    """
    drawn = power * scores.clamp(min=torch.finfo(scores.dtype).tiny).log() - uniform.log().neg().log()
    return drawn - drawn.min()


def uniform(shapes: Shapes, density: float) -> dict[str, float]:
    """The same density in every layer."""
    return dict.fromkeys(shapes, density)


def erdos_renyi(shapes: Shapes, density: float, kernel: bool = True) -> dict[str, float]:
    """Erdos-Renyi densities: proportional to sum / product of a layer's dimensions, `density` over all weights.

    kernel: include the kernel's height and width (ERK; Evci et al. 2020, arXiv:1911.11134, appendix); otherwise only
    fan-out and fan-in (ER; Mocanu et al. 2018, arXiv:1707.04780).
    """
    ratio = {name: sum(dims) / math.prod(dims) for name, shape in shapes.items() for dims in [shape if kernel else shape[:2]]}
    return _in_proportion(shapes, density, ratio)


def layer_name(parameter: str) -> str:
    """The layer's name: that of its weight, `parameter`, without `.weight`, as `conv1` for `conv1.weight`."""
    return parameter.removesuffix(".weight")


def relative(shapes: Shapes, density: float, layer_density: LayerDensities) -> dict[str, float]:
    """Densities proportional to `layer_density`, `density` over all weights. Raises UserError unless it has every layer."""
    layers = [layer_name(name) for name in shapes]
    for layer in layer_density:
        if layer not in layers:
            raise unknown("layer", layer, layers)
    if missing := [layer for layer in layers if layer not in layer_density]:
        raise UserError(f"every layer needs a relative density, and there is none for {', '.join(missing)}")
    return _in_proportion(shapes, density, {name: layer_density[layer_name(name)] for name in shapes})


def _in_proportion(shapes: Shapes, density: float, ratio: Mapping[str, float]) -> dict[str, float]:
    """Densities proportional to `ratio`, with the mean `density` over all weights.

    Layers that would exceed 1 become dense, and the others are computed again.
    """
    numel = {name: math.prod(shape) for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        sparse = [name for name in shapes if name not in dense]
        if not sparse:
            return dict.fromkeys(shapes, 1.0)
        budget = density * sum(numel.values()) - sum(numel[name] for name in dense)
        epsilon = budget / sum(ratio[name] * numel[name] for name in sparse)
        over = {name for name in sparse if epsilon * ratio[name] > 1}
        if not over:
            return {name: 1.0 if name in dense else epsilon * ratio[name] for name in shapes}
        dense |= over


ALLOCATIONS: dict[str, Callable[[Shapes, float], dict[str, float]]] = {
    "uniform": uniform,
    "er": lambda shapes, density: erdos_renyi(shapes, density, kernel=False),
    "erk": erdos_renyi,
}


def allocate(
    shapes: Shapes,
    density: float,
    how: str | LayerDensities = "uniform",
    room: Mapping[str, int] | None = None,
    least: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """The number of units to keep in each layer of `shapes`; they add up to exactly `count(density, total)`.

    Rounded by largest remainder (ties: the first layer). how: `uniform`, `er`, `erk`, or relative densities by layer.
    room: the maximum for each layer (default: all its units). least: the minimum, up to `room` (default: one unit).
    Raises UserError when there are fewer units than layers, or when relative densities do not match the layers;
    ValueError when `room` is too small.
    """
    numel = {name: math.prod(shape) for name, shape in shapes.items()}
    total = count(density, sum(numel.values()))
    if total < len(numel):
        raise UserError(
            f"density {density:g} keeps {total} of {sum(numel.values())} weights, fewer than the network's {len(numel)} layers"
        )
    densities = ALLOCATIONS[how](shapes, density) if isinstance(how, str) else relative(shapes, density, how)
    exact = {name: share * numel[name] for name, share in densities.items()}
    room = numel if room is None else room
    if sum(room.values()) < total:
        raise ValueError(f"cannot choose {total} of {sum(room.values())} units")
    least = dict.fromkeys(numel, 1) if least is None else least
    counts = {name: min(room[name], max(least[name], math.floor(number + 1e-9))) for name, number in exact.items()}
    by_remainder = sorted(counts, key=lambda name: counts[name] - exact[name])
    while (missing := total - sum(counts.values())) != 0:
        step = 1 if missing > 0 else -1
        movable = [n for n in by_remainder[::step] if (counts[n] < room[n] if step > 0 else counts[n] > least[n])]
        for name in movable[: abs(missing)]:
            counts[name] += step
    return counts
