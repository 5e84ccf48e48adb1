"""Compact networks against the dense ones on the CPU: one thread, medians of interleaved forward passes.

Times are of the processor for that thread, so that neighbours on the machine count for little; on a quiet machine they
are what a clock says.

The first table has half of the channels of every layer. `resnet20, projected` is ResNet-20 for CIFAR with 1x1
convolutions on its shortcuts, vgg19 that of CIFAR, both on 32 pixels; torchvision's vgg11_bn on 224. `MACs` is
dense / compact. Targets, of CIFAR's networks: at batch 32 at least 2.0 times as fast, and a speedup of at least 0.55 of
the MACs that are saved.

The second table compares layers whose widths are multiples of 16 (of 4 where there are only 16 channels) with widths
as they come, at batch 32 and the same density. Rounding changes the MACs too, so `time a MAC` is what rounding is worth:
below 1 it pays.
"""

import copy
import time
from collections.abc import Callable, Mapping

import torch
import torchvision.models
from compact import macs
from timing import THREADS, Measured, Times, verdict
from torch import Tensor, nn

from subnet_search.nets import NetworkSpec, build, prunable
from subnet_search.nets.deep import _resnet
from subnet_search.structure.channel_groups import couple
from subnet_search.structure.compact import compact
from subnet_search.topology.channels import Channels

CIFAR = (3, 32, 32)
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {  # how it is made, an input's shape, rounds
    "resnet20, projected": (lambda: _resnet((16, 32, 64), 3, True, CIFAR, 10), CIFAR, 60),
    "vgg19": (lambda: build(NetworkSpec(name="vgg19").resolve(None), CIFAR, 10, 0), CIFAR, 20),
    "torchvision:vgg11_bn": (torchvision.models.vgg11_bn, (3, 224, 224), 5),
}
DENSITIES = (0.3, 0.45, 0.6, 0.7)


def main(quick: bool = False) -> list[dict[str, object]]:
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            names = ["resnet20, projected"] if quick else list(NETS)
            rows = [row(name, batch, quick) for name in names for batch in (1, 32)]
            rounded = [name for name in names if not name.startswith("torchvision")]
            return rows + [rounding(name, density, quick) for name in rounded for density in DENSITIES[: 1 if quick else None]]
    finally:
        torch.set_num_threads(THREADS)


def row(name: str, batch: int, quick: bool) -> dict[str, object]:
    net, example, rounds = case(name)
    small = without(net, example, 0.5)
    took = timed({"dense": net, "compact": small}, example, batch, 3 if quick else rounds)
    faster, fewer = took.ratio("dense", "compact", "higher"), macs(net, example) / macs(small, example)
    of_macs = Measured(faster / fewer, faster.low / fewer, faster.high / fewer, "higher")
    aimed = not name.startswith("torchvision")
    return {
        "network": name,
        "batch": batch,
        "dense, ms": f"{1000 * took['dense']:.2f}",
        "compact, ms": f"{1000 * took['compact']:.2f}",
        "speedup": faster,
        "target": verdict(faster, ">=", 2.0) if aimed and batch == 32 else "",
        "MACs": f"{fewer:.2f}",
        "speedup / MACs": of_macs,
        "target ": verdict(of_macs, ">=", 0.55) if aimed else "",
    }


def rounding(name: str, density: float, quick: bool) -> dict[str, object]:
    net, example, rounds = case(name)
    nets = {str(multiple): without(net, example, density, multiple) for multiple in (1, 16)}
    took = timed(nets, example, 32, 3 if quick else rounds)
    cost = {multiple: macs(small, example) for multiple, small in nets.items()}
    slower, more = took.ratio("16", "1", "lower"), cost["16"] / cost["1"]
    return {
        "network": name,
        "density": density,
        "any width, ms": f"{1000 * took['1']:.2f}",
        "multiples of 16, ms": f"{1000 * took['16']:.2f}",
        "time, 16 / any": slower,
        "MACs, 16 / any": f"{more:.2f}",
        "time a MAC, 16 / any": f"{slower / more:.2f}",
    }


def case(name: str) -> tuple[nn.Module, Tensor, int]:
    make, shape, rounds = NETS[name]
    torch.manual_seed(0)
    return make().eval(), torch.randn(32, *shape, generator=torch.Generator().manual_seed(0)), rounds


def without(net: nn.Module, example: Tensor, density: float, round_to: int = 1) -> nn.Module:
    """The network with so many of the channels of each layer, those of largest magnitude."""
    masked, example = copy.deepcopy(net), example[:2]
    weights, coupling = prunable(masked), couple(masked, example)
    units = Channels({name: tuple(weight.shape) for name, weight in weights.items()}, coupling.groups, round_to)
    masks = units.keep(units.pool_magnitude(weights), density, "uniform")
    for name, mask in units.expand(masks).items():
        weights[name].mul_(mask)
    return compact(masked, example, coupling).eval()


def timed(nets: Mapping[str, nn.Module], example: Tensor, batch: int, rounds: int) -> Times:
    """Median seconds of a forward pass, interleaved: of the processor, for the one thread that computes."""
    inputs, taken = example[:batch].contiguous(), {name: list[float]() for name in nets}
    for index in range(-2, rounds):  # two to warm up
        for name, net in nets.items():
            started = time.thread_time()
            net(inputs)
            if index >= 0:
                taken[name].append(time.thread_time() - started)
    return Times(taken)
