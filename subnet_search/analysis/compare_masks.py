"""Compare masks: layer densities, dead outputs, and overlap relative to random masks."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from subnet_search.artifact.mask_file import load_masks
from subnet_search.topology.masks import Masks, alive


def chance_overlap(masks_a: Masks, masks_b: Masks) -> float:
    """The expected Jaccard index of two random masks with the same number of weights in every layer.

    With a and b kept weights of n, a * b / n are expected in both masks and a + b - a * b / n in at least one. These are
    summed over layers: the ratio of means, which for thousands of weights is close to the mean of the ratio.
    """
    both = either = 0.0
    for name, mask in masks_a.items():
        a, b = alive(mask), alive(masks_b[name])
        shared = a * b / mask.numel()
        both += shared
        either += a + b - shared
    return both / either if either else 1.0


def topology_record(masks: Masks) -> dict[str, Any]:
    """Densities, layers without any weight (`collapsed`), and outputs without any weight (`dead_outputs`).

    An output is a row of the weight tensor: a neuron or a filter. `dead_outputs` has only layers with dead outputs.
    """
    dead = {name: int((~mask.flatten(1).any(1)).sum()) for name, mask in masks.items()}
    return {
        "density": masks.density,
        "kept": masks.kept,
        "weights": masks.numel,
        "layer_density": masks.layer_density(),
        "layer_weights": {name: mask.numel() for name, mask in masks.items()},
        "collapsed": [name for name, mask in masks.items() if not mask.any()],
        "outputs": {name: len(mask) for name, mask in masks.items()},
        "dead_outputs": {name: count for name, count in dead.items() if count},
    }


def compare_topologies(files: Sequence[Path]) -> dict[str, Any]:
    """Compare the masks in subnetwork or mask files: a record for each file (`files`) and each pair (`overlaps`).

    `overlap` is the Jaccard index of a pair, `chance` its expectation by `chance_overlap`; both are None for different
    networks. Raises UserError for a file that cannot be read.
    """
    found = [load_masks(path) for path in files]
    overlaps = []
    for (i, a), (j, b) in itertools.combinations(enumerate(found), 2):
        alike = {name: mask.shape for name, mask in a.items()} == {name: mask.shape for name, mask in b.items()}
        overlaps.append(
            {
                "a": str(files[i]),
                "b": str(files[j]),
                "overlap": a.overlap(b) if alike else None,
                "chance": chance_overlap(a, b) if alike else None,
            }
        )
    records = [{"file": str(path), **topology_record(masks)} for path, masks in zip(files, found, strict=True)]
    return {"files": records, "overlaps": overlaps}
