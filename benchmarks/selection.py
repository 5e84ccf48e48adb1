"""Selecting the k highest of 10 million scores, down to the mask.

`torch.sort` and `torch.topk` keep exactly k too, but which of equal scores they take is not said; `torch.kthvalue` and
`numpy.partition` keep everything at or above a threshold, so more than k where scores are equal.
"""

import numpy as np
import torch
from timing import medians
from torch import Tensor

from subnet_search.topology.select import top_k
from subnet_search.training.memory import keep_freed_memory

COUNT = 10_000_000


def main(quick: bool = False) -> list[dict[str, object]]:
    keep_freed_memory()  # as every training run does
    scores = torch.rand(COUNT // 10 if quick else COUNT, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    rows: list[dict[str, object]] = []
    for density in (0.1, 0.5):
        k = round(density * scores.numel())
        took = medians(
            {
                "top_k (ours)": lambda k=k: top_k(scores, k),
                "torch.sort": lambda k=k: at(torch.sort(scores, descending=True).indices[:k], scores),
                "torch.topk": lambda k=k: at(torch.topk(scores, k, sorted=False).indices, scores),
                "torch.kthvalue": lambda k=k: scores >= torch.kthvalue(scores, scores.numel() - k + 1).values,
                "numpy.partition": lambda k=k: partition(scores, k),
            },
            rounds=3 if quick else 7,
            warmup=1,
        )
        for name, seconds in took.items():
            ratio = took.ratio(name, "top_k (ours)", "higher")
            rows.append({"kept": f"{density:.0%}", "selection": name, "ms": f"{1000 * seconds:.0f}", "x ours": ratio})
    return rows


def at(index: Tensor, scores: Tensor) -> Tensor:
    mask = torch.zeros_like(scores, dtype=torch.bool)
    mask[index] = True
    return mask


def partition(scores: Tensor, k: int) -> Tensor:
    array = scores.numpy()
    return torch.from_numpy(array >= np.partition(array, array.size - k)[array.size - k])
