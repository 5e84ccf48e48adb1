"""One change of topology in a layer of 10 million weights: 30 % of the living ones drop, and as many grow by |gradient|.

`ours` is `regrow` from weights and gradients, which ranks magnitudes without a copy of them. `one partition` selects
once, as many of the same |gradient| as live, by `numpy.partition` down to a mask, as in `selection`; `partition alone` is
without the mask. `of weights` selects what stays of the same |weights|, most of them zero; equal scores can cost
`numpy.partition` ten times as much, so the target looks at |gradient|. `sorts` follows the way of GraNet's authors: sort
|w| for the threshold to drop below, sort |gradient| where nothing lives and take the first for growth, with masks of
floats. Targets: at most 1.5 times one partition, and at least 5 times faster than the sorts. The partitions are given
magnitudes that are there already.
"""

import numpy as np
import torch
from selection import partition
from timing import medians, verdict
from torch import Tensor

from subnet_search.topology.masks import Masks, alive
from subnet_search.topology.regrow import regrow
from subnet_search.topology.select import count, top_k
from subnet_search.training.memory import keep_freed_memory

COUNT = 10_000_000
FRACTION = 0.3


def main(quick: bool = False) -> list[dict[str, object]]:
    keep_freed_memory()  # as every training run does
    return [row(density, COUNT // 10 if quick else COUNT, rounds=3 if quick else 9) for density in (0.05, 0.1, 0.5)]


def row(density: float, numel: int, rounds: int) -> dict[str, object]:
    mask, weights, gradients = layer(density, numel)
    size, steepness = weights.abs(), gradients.abs()
    living = alive(mask)
    kept = living - round(FRACTION * living)
    took = medians(
        {
            "ours": lambda: regrow(Masks({"layer": mask}), {"layer": weights}, {"layer": gradients}, FRACTION),
            "one partition": lambda: partition(steepness, living),
            "partition alone": lambda: np.partition(steepness.numpy(), numel - living),
            "of weights": lambda: partition(size, kept),
            "sorts": lambda: sorts(mask, weights, gradients),
        },
        rounds,
        warmup=1,
    )
    slower, faster = took.ratio("ours", "one partition", "lower"), took.ratio("sorts", "ours", "higher", digits=1)
    return {
        "kept": f"{density:.0%}",
        **{f"{name}, ms": f"{1000 * seconds:.0f}" for name, seconds in took.items()},
        "ours / one partition": slower,
        "target": verdict(slower, "<=", 1.5),
        "ours / partition alone": took.ratio("ours", "partition alone", "lower"),
        "sorts / ours": faster,
        "target ": verdict(faster, ">=", 5),
    }


def layer(density: float, numel: int) -> tuple[Tensor, Tensor, Tensor]:
    """A mask, weights that are zero where nothing lives, and gradients that are dense."""
    rng = torch.Generator().manual_seed(0)
    mask = top_k(torch.rand(numel, generator=rng), count(density, numel))
    weights, gradients = (torch.randn(numel, generator=rng) for _ in range(2))
    return mask, weights * mask, gradients


def sorts(mask: Tensor, weights: Tensor, gradients: Tensor) -> Tensor:
    """Drop and grow by two full sorts."""
    living = int(mask.sum())
    moved = round(FRACTION * living)
    ordered = torch.sort(weights.abs()).values
    kept = (weights.abs() > ordered[weights.numel() - living + moved - 1]).float()
    steepness = gradients * (kept == 0).float()
    order = torch.sort(steepness.abs(), descending=True).indices
    kept[order[:moved]] = 1.0
    return kept
