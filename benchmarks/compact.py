"""Half of the channels of every layer really taken out: what can be, and does the compact network say the same?

Networks of this package on images of 28 or 32 pixels, torchvision's classifiers on 224, none trained; `kept` are the
channels (and attention heads) of largest mean magnitude, a half of each group. All that begins as a constant (batch norm,
biases, layer scale, a classifier of zeros) is drawn at random, and batch norm then calibrated with noise, so that every
layer matters. `groups` counts those that can be removed from, beside those that are kept whole: the outputs, and what the
last column names. `parameters` and `MACs` are of compact / dense (GoogLeNet's parameters with its auxiliary classifiers,
which only training uses, and which are left as they are). `difference` is the greatest between the logits of the
compact and the masked network, relative to the largest; `inputs` is how far the masked network's logits of two inputs
differ, for comparison. Target: at most 1e-4. `trace` is what finding and trying the groups takes.
"""

import time
from collections import Counter

import torch
import torchvision.models
from timing import verdict
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from subnet_search.core.errors import RunError, UserError
from subnet_search.nets import NetworkSpec, build, network_names, prunable
from subnet_search.structure.channel_groups import Coupling, couple
from subnet_search.structure.compact import compact, difference_between
from subnet_search.topology.channels import Channels
from subnet_search.topology.masks import alive

TORCHVISION = (
    "resnet18",
    "vgg11_bn",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "densenet121",
    "efficientnet_b0",
    "shufflenet_v2_x0_5",
    "convnext_tiny",
    "vit_b_16",
    "regnet_y_400mf",
    "googlenet",
)
OUTPUTS = "they are outputs of the network"


def main(quick: bool = False) -> list[dict[str, object]]:
    ours = ["lenet5", "resnet20"] if quick else network_names()
    theirs = ["shufflenet_v2_x0_5"] if quick else TORCHVISION
    return [row(name) for name in ours] + [row(f"torchvision:{name}") for name in theirs]


def row(name: str) -> dict[str, object]:
    net, example = network(name)
    started = time.perf_counter()
    try:
        coupling = couple(net, example)
        took = time.perf_counter() - started
        channels = halved(net, coupling)
        calibrate(net, example)
        small = compact(net, example, coupling)
    except (UserError, RunError) as error:
        return dict.fromkeys(COLUMNS, "") | {"network": name, "kept whole, beside the outputs": str(error)}
    difference = difference_between(net, small, example)
    reasons = Counter(reason for reason in coupling.kept_whole.values() if reason != OUTPUTS)
    cells = (
        name,
        f"{len(coupling.groups)} of {len(coupling.groups) + len(coupling.kept_whole)}",
        channels,
        f"{size(small) / size(net):.2f}",
        f"{macs(small, example) / macs(net, example):.2f}",
        f"{difference:.1e}",
        verdict(difference, "<=", 1e-4),
        f"{apart(net, example):.2g}",
        f"{took:.1f}",
        "; ".join(f"{count}: {reason}" for reason, count in reasons.items()),
    )
    return dict(zip(COLUMNS, cells, strict=True))


COLUMNS = (
    "network",
    "groups",
    "kept",
    "parameters",
    "MACs",
    "difference",
    "target",
    "inputs",
    "trace, s",
    "kept whole, beside the outputs",
)


def network(name: str) -> tuple[nn.Module, Tensor]:
    """A network that nobody trained, in which every layer matters; and two inputs of noise."""
    torch.manual_seed(0)
    theirs, rng = name.partition(":")[2], torch.Generator().manual_seed(0)
    if theirs:
        options = {"init_weights": True} if theirs == "googlenet" else {}  # without a warning
        net, shape = getattr(torchvision.models, theirs)(**options), (3, 224, 224)
    else:
        shape = (1, 28, 28) if name.startswith("lenet") else (3, 32, 32)
        net = build(NetworkSpec(name=name).resolve(None), shape, 10, 0)
    with torch.no_grad():
        for parameter in net.parameters():
            first = float(parameter.view(-1)[0])
            if bool((parameter == first).all()):
                noise = torch.randn(parameter.shape, generator=rng)
                parameter.copy_(noise.abs() + 0.5 if first else 0.1 * noise)
    example = torch.randn(2, *shape, generator=rng)
    calibrate(net, example)
    return net, example


@torch.no_grad()
def calibrate(net: nn.Module, example: Tensor) -> None:
    """Running statistics of noise, and evaluation mode."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # their mean over batches
    net.train()
    rng = torch.Generator().manual_seed(1)
    for _ in range(2):
        net(torch.randn(4, *example.shape[1:], generator=rng))
    net.eval()


@torch.no_grad()
def halved(net: nn.Module, coupling: Coupling) -> str:
    """Zero half of the channels, where they are computed and where they are read; how many are kept, of how many."""
    weights = prunable(net)
    units = Channels({name: tuple(weight.shape) for name, weight in weights.items()}, coupling.groups)
    masks = units.keep(units.pool_magnitude(weights), 0.5, "uniform")
    for name, mask in units.expand(masks).items():
        weights[name].mul_(mask)
    return f"{sum(map(alive, masks.values())):,} of {sum(mask.numel() for mask in masks.values()):,}"


def size(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def macs(net: nn.Module, example: Tensor) -> float:
    """Multiply-accumulates of one input, those of attention between tokens included."""
    with FlopCounterMode(display=False) as counter:  # with gradients: without, torch's attention layer is one operation
        net(example[:1])
    return counter.get_total_flops() / 2


@torch.no_grad()
def apart(net: nn.Module, example: Tensor) -> float:
    logits = net(example)
    return float((logits[0] - logits[1]).abs().max() / logits.abs().max())
