"""Small networks and data sets on which a training takes a fraction of a second."""

import torch
from torch import Tensor, nn

from subnet_search.data import Data, Items, Split, from_user
from subnet_search.nets import initialise, prunable


def mlp(inputs: int = 10, hidden: int = 32, classes: int = 3, seed: int = 0) -> nn.Sequential:
    """Two linear layers."""
    net = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes))
    initialise(net, "kaiming_normal", seed)
    return net


def conv_bn(classes: int = 3) -> nn.Sequential:
    """A convolution for `pictures`, with batch norm and dropout: buffers that move, and a layer that draws."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(4 * 36, classes)
    )


def points(count: int = 300, inputs: int = 10, classes: int = 3, seed: int = 0) -> Data:
    """Points with labels that a random linear map gives."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(count, inputs, generator=rng)
    y = (x @ torch.randn(inputs, classes, generator=rng)).argmax(1)
    return from_user((x, y))


def pictures(count: int = 120, classes: int = 3, seed: int = 0) -> Data:
    """8x8 grey images whose brightest third is their class."""
    rng = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % classes
    x = torch.randint(0, 100, (count, 1, 8, 8), generator=rng, dtype=torch.uint8)
    for label in range(classes):
        x[y == label, :, label * 2 : label * 2 + 2] += 120
    return from_user((x, y))


def planted(hidden: int = 96, seed: int = 0) -> tuple[nn.Sequential, Data]:
    """An untrained network, and data labelled by a subnetwork of it: a topology that is perfect exists."""
    net = mlp(8, hidden, 3, seed)
    rng = torch.Generator().manual_seed(seed + 1)
    teacher = mlp(8, hidden, 3, seed)
    with torch.no_grad():
        for weight in prunable(teacher).values():
            weight.mul_(torch.rand(weight.shape, generator=rng) < 0.5)
        x = torch.randn(1200, 8, generator=rng)
        logits = teacher(x)
        centred = logits - logits.mean(0)
        y = centred.argmax(1)
        sure = centred.topk(2).values.diff().abs().view(-1) > 0.3
        net[2].bias.copy_(-logits.mean(0))  # type: ignore[operator]
    return net, from_user((x[sure], y[sure]))


def accuracy(net: nn.Module, split: Split | Items) -> float:
    """The fraction of inputs that the network gives their label."""
    inputs, labels = split.first(len(split))
    with torch.no_grad():
        hits: Tensor = net.eval()(inputs).argmax(1) == labels
        return hits.float().mean().item()
