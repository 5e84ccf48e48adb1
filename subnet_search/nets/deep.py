"""Deep networks for CIFAR used in pruning papers: ResNet-20/32/56, ResNet-18, VGG-19 with batch norm.

Every factory takes the shape of one image (channels, height, width), the number of classes, and the options `activation`,
`norm` and `width`, a factor on channels.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from subnet_search.nets.layers import ACTIVATIONS, Activation, Norm, check_options, norm_layer, widths

Shape = tuple[int, int, int]


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut (He et al. 2016, arXiv:1512.03385).

    Where the size changes: with `project` the shortcut is a 1x1 convolution (option B); otherwise every second pixel with
    zeros for the new channels (option A, used by the paper's CIFAR networks).
    """

    def __init__(self, wide_in: int, wide: int, stride: int, project: bool, activation: Activation, norm: Norm) -> None:
        super().__init__()
        self.conv1, self.bn1 = _normed(wide_in, wide, 3, stride, norm)
        self.conv2, self.bn2 = _normed(wide, wide, 3, 1, norm)
        self.stride, self.extra = stride, wide - wide_in
        self.shortcut: nn.Module | None = None
        if project and (stride != 1 or self.extra):
            self.shortcut = nn.Sequential(*_normed(wide_in, wide, 1, stride, norm))
        # A function and no module, so that the structure of a network is that of earlier versions.
        self.activation = getattr(F, activation)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.activation(self.bn1(self.conv1(x)))))
        if self.shortcut is not None:
            x = self.shortcut(x)
        elif self.stride != 1 or self.extra:
            extra = out.shape[1] - x.shape[1]  # fewer in a compact network
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, extra // 2, extra - extra // 2))
        return self.activation(out + x)  # type: ignore[no-any-return]


def _normed(wide_in: int, wide: int, size: int, stride: int, norm: Norm) -> tuple[nn.Conv2d, nn.Module]:
    """A convolution and its norm; without a norm it has a bias."""
    layer = nn.Conv2d(wide_in, wide, size, stride, padding=size // 2, bias=norm == "none")
    return layer, next(iter(norm_layer(norm, layer)), nn.Identity())


def _resnet(
    filters: tuple[int, ...],
    blocks: int,
    project: bool,
    shape: Shape,
    classes: int,
    activation: Activation = "relu",
    norm: Norm = "batch",
    width: float = 1.0,
) -> nn.Module:
    check_options(activation, norm, width)
    stages = widths(width, *filters)
    wide_in = stages[0]
    layers: list[nn.Module] = [*_normed(shape[0], wide_in, 3, 1, norm), ACTIVATIONS[activation]()]
    for stage, wide in enumerate(stages):
        for index in range(blocks):
            layers.append(Block(wide_in, wide, 2 if stage and not index else 1, project, activation, norm))
            wide_in = wide
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide_in, classes)]
    return nn.Sequential(*layers)


def resnet20(
    shape: Shape, classes: int, *, activation: Activation = "relu", norm: Norm = "batch", width: float = 1.0
) -> nn.Module:
    """ResNet-20 for CIFAR: 16, 32, 64 filters, option A shortcuts, 0.27 million weights."""
    return _resnet((16, 32, 64), 3, False, shape, classes, activation, norm, width)


def resnet32(
    shape: Shape, classes: int, *, activation: Activation = "relu", norm: Norm = "batch", width: float = 1.0
) -> nn.Module:
    """ResNet-32 for CIFAR: 16, 32, 64 filters, option A shortcuts, 0.46 million weights."""
    return _resnet((16, 32, 64), 5, False, shape, classes, activation, norm, width)


def resnet56(
    shape: Shape, classes: int, *, activation: Activation = "relu", norm: Norm = "batch", width: float = 1.0
) -> nn.Module:
    """ResNet-56 for CIFAR: 16, 32, 64 filters, option A shortcuts, 0.85 million weights."""
    return _resnet((16, 32, 64), 9, False, shape, classes, activation, norm, width)


def resnet18(
    shape: Shape, classes: int, *, activation: Activation = "relu", norm: Norm = "batch", width: float = 1.0
) -> nn.Module:
    """ResNet-18 with a 3x3 stem for small images, projected shortcuts, 11.2 million weights."""
    return _resnet((64, 128, 256, 512), 2, True, shape, classes, activation, norm, width)


def vgg19(
    shape: Shape, classes: int, *, activation: Activation = "relu", norm: Norm = "batch", width: float = 1.0
) -> nn.Module:
    """VGG-19 with batch norm and one linear layer, as in GraSP and GraNet; 20 million weights."""
    check_options(activation, norm, width)
    layers: list[nn.Module] = []
    channels = shape[0]
    for stage, (wide, depth) in enumerate(zip(widths(width, 64, 128, 256, 512, 512), (2, 2, 4, 4, 4), strict=True)):
        if stage:
            layers.append(nn.MaxPool2d(2))
        for _ in range(depth):
            layers += [*_normed(channels, wide, 3, 1, norm), ACTIVATIONS[activation]()]
            channels = wide
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    return nn.Sequential(*layers)
