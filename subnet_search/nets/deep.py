"""Deep networks for CIFAR used in pruning papers: ResNet-20/32/56, ResNet-18, VGG-19 with batch norm."""

import torch.nn.functional as F
from torch import Tensor, nn

Shape = tuple[int, int, int]


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut (He et al. 2016, arXiv:1512.03385).

    Where the size changes: with `project` the shortcut is a 1x1 convolution (option B); otherwise every second pixel with
    zeros for the new channels (option A, used by the paper's CIFAR networks).
    """

    def __init__(self, wide_in: int, wide: int, stride: int, project: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(wide_in, wide, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide)
        self.conv2 = nn.Conv2d(wide, wide, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.stride, self.extra = stride, wide - wide_in
        self.shortcut: nn.Module | None = None
        if project and (stride != 1 or self.extra):
            self.shortcut = nn.Sequential(nn.Conv2d(wide_in, wide, 1, stride, bias=False), nn.BatchNorm2d(wide))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.shortcut is not None:
            x = self.shortcut(x)
        elif self.stride != 1 or self.extra:
            extra = out.shape[1] - x.shape[1]  # fewer in a compact network
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, extra // 2, extra - extra // 2))
        return F.relu(out + x)


def _resnet(widths: tuple[int, ...], blocks: int, project: bool, shape: Shape, classes: int) -> nn.Module:
    layers: list[nn.Module] = [
        nn.Conv2d(shape[0], widths[0], 3, padding=1, bias=False),
        nn.BatchNorm2d(widths[0]),
        nn.ReLU(),
    ]
    wide_in = widths[0]
    for stage, wide in enumerate(widths):
        for index in range(blocks):
            layers.append(Block(wide_in, wide, 2 if stage and not index else 1, project))
            wide_in = wide
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide_in, classes)]
    return nn.Sequential(*layers)


def resnet20(shape: Shape, classes: int) -> nn.Module:
    """ResNet-20 for CIFAR: 16, 32, 64 filters, option A shortcuts, 0.27 million weights."""
    return _resnet((16, 32, 64), 3, False, shape, classes)


def resnet32(shape: Shape, classes: int) -> nn.Module:
    """ResNet-32 for CIFAR: 16, 32, 64 filters, option A shortcuts, 0.46 million weights."""
    return _resnet((16, 32, 64), 5, False, shape, classes)


def resnet56(shape: Shape, classes: int) -> nn.Module:
    """ResNet-56 for CIFAR: 16, 32, 64 filters, option A shortcuts, 0.85 million weights."""
    return _resnet((16, 32, 64), 9, False, shape, classes)


def resnet18(shape: Shape, classes: int) -> nn.Module:
    """ResNet-18 with a 3x3 stem for small images, projected shortcuts, 11.2 million weights."""
    return _resnet((64, 128, 256, 512), 2, True, shape, classes)


def vgg19(shape: Shape, classes: int) -> nn.Module:
    """VGG-19 with batch norm and one linear layer, as in GraSP and GraNet; 20 million weights."""
    layers: list[nn.Module] = []
    channels = shape[0]
    for stage, (wide, depth) in enumerate([(64, 2), (128, 2), (256, 4), (512, 4), (512, 4)]):
        if stage:
            layers.append(nn.MaxPool2d(2))
        for _ in range(depth):
            layers += [nn.Conv2d(channels, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
            channels = wide
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    return nn.Sequential(*layers)
