"""LeNets and the Conv2/4/6 networks of the lottery-ticket and supermask papers (Frankle & Carbin 2019, arXiv:1803.03635).

None has batch normalisation. Every factory takes the shape of one image (channels, height, width) and the number of classes.
"""

from torch import nn

Shape = tuple[int, int, int]


def lenet_300_100(shape: Shape, classes: int) -> nn.Module:
    """LeCun et al. 1998: fully connected, 300 and 100 hidden units."""
    channels, height, width = shape
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * height * width, 300),
        nn.ReLU(),
        nn.Linear(300, 100),
        nn.ReLU(),
        nn.Linear(100, classes),
    )


def lenet5(shape: Shape, classes: int) -> nn.Module:
    """LeNet-5 in Caffe's variant (20 and 50 filters of 5x5, 500 hidden units), with padding so that 8x8 images work too."""
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 20, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(50 * (height // 4) * (width // 4), 500),
        nn.ReLU(),
        nn.Linear(500, classes),
    )


def small_conv(shape: Shape, classes: int) -> nn.Module:
    """Two strided 3x3 convolutions of 16 and 32 filters, 128 hidden units: for comparing methods on a CPU."""
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * -(-height // 4) * -(-width // 4), 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


def _conv(widths: tuple[int, ...], shape: Shape, classes: int) -> nn.Module:
    channels, height, width = shape
    layers: list[nn.Module] = []
    for wide in widths:
        layers += [nn.Conv2d(channels, wide, 3, padding=1), nn.ReLU()]
        layers += [nn.Conv2d(wide, wide, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        channels, height, width = wide, height // 2, width // 2
    layers += [nn.Flatten(), nn.Linear(channels * height * width, 256), nn.ReLU()]
    layers += [nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, classes)]
    return nn.Sequential(*layers)


def conv2(shape: Shape, classes: int) -> nn.Module:
    """Two 3x3 convolutions of 64 filters, then 256-256-classes."""
    return _conv((64,), shape, classes)


def conv4(shape: Shape, classes: int) -> nn.Module:
    """Four 3x3 convolutions of 64, 64, 128, 128 filters, then 256-256-classes."""
    return _conv((64, 128), shape, classes)


def conv6(shape: Shape, classes: int) -> nn.Module:
    """Six 3x3 convolutions of 64, 64, 128, 128, 256, 256 filters, then 256-256-classes."""
    return _conv((64, 128, 256), shape, classes)
