"""Weight initialisation as a pure function of (seed, name, shape), reproducible to the bit, so weights need not be stored.

The random bits are raw 64-bit words of numpy's counter-based Philox generator, whose stream is guaranteed across
versions. Each weight takes one word, in row-major order: it becomes a uniform number, and for normal distributions the
inverse normal distribution function of it.

Sources: He et al. 2015, arXiv:1502.01852 (kaiming); Ramanujan et al. 2020, arXiv:1911.13299 (signed constant, scaled);
Glorot & Bengio 2010, AISTATS (glorot); Zhou et al. 2019, arXiv:1905.01067 (its signed constant).
"""

import math
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from subnet_search.core.errors import UserError
from subnet_search.core.rng import derive
from subnet_search.nets.weights import inputs_first, prunable

InitName = Literal["kaiming_normal", "kaiming_uniform", "signed_constant", "scaled", "glorot_normal", "glorot_constant", "keep"]
INITS: tuple[str, ...] = get_args(InitName)


def initial_weight(
    name: str, shape: tuple[int, ...], init: str, seed: int, density: float | None = None, inputs_first: bool = False
) -> Tensor:
    """The initial value of one weight tensor: float32, `shape` = (out, in, ...), or (in, out) with `inputs_first`.

    kaiming_normal   N(0, 2 / fan_in)
    kaiming_uniform  U(-b, b), b = sqrt(6 / fan_in)
    signed_constant  +c or -c with equal chance, c = sqrt(2 / fan_in)
    scaled           N(0, 2 / (fan_in * density)): the expected fan-in after pruning to `density`
    glorot_normal    N(0, 2 / (fan_in + fan_out))
    glorot_constant  +c or -c with equal chance, c = sqrt(2 / (fan_in + fan_out))

    The constant is the distribution's standard deviation, not the sample's (a relative difference of about
    1 / sqrt(2 numel)): a sum over the sample could change with the order of summation.
    Raises UserError for an unknown name, and for `scaled` without a density.
    """
    if inputs_first:
        return initial_weight(name, shape[::-1], init, seed, density).T.contiguous()
    fan_in = math.prod(shape[1:])
    fan_out = fan_in * shape[0] // shape[1]
    deviation = math.sqrt(2 / (fan_in + fan_out if init.startswith("glorot") else fan_in))
    words = np.random.Philox(key=derive(seed, "weights", name)).random_raw(math.prod(shape))
    if init in ("signed_constant", "glorot_constant"):
        value = torch.from_numpy((words >> np.uint64(63)).astype(np.float32)).mul_(2).sub_(1).mul_(deviation)
        return value.view(shape)
    uniform = torch.from_numpy((words >> np.uint64(11)).astype(np.float64)).add_(0.5).mul_(2.0**-53)  # in (0, 1)
    match init:
        case "kaiming_uniform":
            value = uniform.mul_(2).sub_(1).mul_(math.sqrt(6 / fan_in))
        case "kaiming_normal" | "glorot_normal":
            value = torch.special.ndtri(uniform).mul_(deviation)
        case "scaled":
            if density is None:
                raise UserError("the initialisation 'scaled' needs a density: set network.init_density")
            value = torch.special.ndtri(uniform).mul_(deviation / math.sqrt(density))
        case _:
            raise UserError(f"unknown initialisation {init!r}; valid: {', '.join(INITS)}")
    return value.to(torch.float32).view(shape)


@torch.no_grad()
def initialise(net: nn.Module, init: str, seed: int, density: float | None = None) -> None:
    """Initialise every prunable weight and set every bias to zero, in place. `keep`: change nothing.

    Frozen parameters are not changed, unless all parameters are frozen.
    """
    if init == "keep":
        return
    everything = not any(parameter.requires_grad for parameter in net.parameters())
    transposed = inputs_first(net)
    for name, weight in prunable(net).items():
        weight.copy_(initial_weight(name, tuple(weight.shape), init, seed, density, name in transposed))
    for name, parameter in net.named_parameters():
        if name.endswith("bias") and (everything or parameter.requires_grad):
            parameter.zero_()
