"""Running mean and variance of every trained parameter over the last part of a run (`recipe.weight_statistics`).

SWAG-diagonal, Maddox et al. 2019, arXiv:1902.02476, section 3.2: the variance is the mean squared deviation. Computed by
Welford's update, since in float32 the mean of squares minus the square of the mean loses all digits of a small variance.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from subnet_search.core.errors import UserError
from subnet_search.training.recipe import Recipe

LEAST = 2  # samples
COUNT, MEAN, SQUARES = "count", "mean.", "squares."  # names of the tensors


def first_sample(recipe: Recipe, per_epoch: int) -> tuple[int, int]:
    """The step after which samples are taken, and the interval between them. per_epoch: steps of an epoch.

    Raises UserError when these are fewer than two.
    """
    assert recipe.weight_statistics is not None
    total, every = recipe.epochs * per_epoch, recipe.statistics_every or per_epoch
    after = total - round(recipe.weight_statistics * total)
    samples = total // every - after // every
    if samples < LEAST:
        raise UserError(
            f"weight_statistics of {recipe.weight_statistics:g} of {total} steps, every {every}, are {samples} "
            f"sample{'' if samples == 1 else 's'}: at least {LEAST} are needed, so raise it or set statistics_every"
        )
    return after, every


@torch.no_grad()
def add_sample(sums: dict[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
    """Add a sample of the parameters to the sums, in place; empty sums begin with it."""
    if not sums:
        sums[COUNT] = torch.zeros((), dtype=torch.int64)
        for name, value in parameters.items():
            sums |= {MEAN + name: torch.zeros_like(value), SQUARES + name: torch.zeros_like(value)}
    sums[COUNT] += 1
    for name, value in parameters.items():
        mean = sums[MEAN + name]
        before = value - mean
        mean.add_(before / int(sums[COUNT]))
        sums[SQUARES + name].addcmul_(before, value - mean)


def mean_and_variance(sums: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Mean and variance by parameter name."""
    means = {name.removeprefix(MEAN): value for name, value in sums.items() if name.startswith(MEAN)}
    return means, {name: sums[SQUARES + name] / sums[COUNT].to(value.device) for name, value in means.items()}
