"""LeNets and the Conv2/4/6 networks of the lottery-ticket and supermask papers (Frankle & Carbin 2019, arXiv:1803.03635).

None has normalisation by default. Every factory takes the shape of one image (channels, height, width), the number of classes,
and the options `activation`, `norm` (of all layers but the last) and `width`, a factor on channels and hidden units.
"""

from torch import nn

from subnet_search.nets.layers import ACTIVATIONS, Activation, Norm, check_options, norm_layer, widths

Shape = tuple[int, int, int]


def _hidden(layer: nn.Conv2d | nn.Linear, norm: Norm, activation: Activation) -> list[nn.Module]:
    """A layer with what follows it."""
    return [layer, *norm_layer(norm, layer), ACTIVATIONS[activation]()]


def lenet_300_100(
    shape: Shape, classes: int, *, activation: Activation = "relu", norm: Norm = "none", width: float = 1.0
) -> nn.Module:
    """LeCun et al. 1998: fully connected, 300 and 100 hidden units."""
    check_options(activation, norm, width)
    channels, height, pixels = shape
    first, second = widths(width, 300, 100)
    return nn.Sequential(
        nn.Flatten(),
        *_hidden(nn.Linear(channels * height * pixels, first), norm, activation),
        *_hidden(nn.Linear(first, second), norm, activation),
        nn.Linear(second, classes),
    )


def lenet5(
    shape: Shape, classes: int, *, activation: Activation = "relu", norm: Norm = "none", width: float = 1.0
) -> nn.Module:
    """LeNet-5 in Caffe's variant (20 and 50 filters of 5x5, 500 hidden units), with padding so that 8x8 images work too."""
    check_options(activation, norm, width)
    channels, height, pixels = shape
    first, second, third = widths(width, 20, 50, 500)
    return nn.Sequential(
        *_hidden(nn.Conv2d(channels, first, 5, padding=2), norm, activation),
        nn.MaxPool2d(2),
        *_hidden(nn.Conv2d(first, second, 5, padding=2), norm, activation),
        nn.MaxPool2d(2),
        nn.Flatten(),
        *_hidden(nn.Linear(second * (height // 4) * (pixels // 4), third), norm, activation),
        nn.Linear(third, classes),
    )


def small_conv(
    shape: Shape, classes: int, *, activation: Activation = "relu", norm: Norm = "none", width: float = 1.0
) -> nn.Module:
    """Two strided 3x3 convolutions of 16 and 32 filters, 128 hidden units: for comparing methods on a CPU."""
    check_options(activation, norm, width)
    channels, height, pixels = shape
    first, second, third = widths(width, 16, 32, 128)
    return nn.Sequential(
        *_hidden(nn.Conv2d(channels, first, 3, stride=2, padding=1), norm, activation),
        *_hidden(nn.Conv2d(first, second, 3, stride=2, padding=1), norm, activation),
        nn.Flatten(),
        *_hidden(nn.Linear(second * -(-height // 4) * -(-pixels // 4), third), norm, activation),
        nn.Linear(third, classes),
    )


def _conv(filters: tuple[int, ...], shape: Shape, classes: int, activation: Activation, norm: Norm, width: float) -> nn.Module:
    check_options(activation, norm, width)
    channels, height, pixels = shape
    layers: list[nn.Module] = []
    for wide in widths(width, *filters):
        layers += _hidden(nn.Conv2d(channels, wide, 3, padding=1), norm, activation)
        layers += [*_hidden(nn.Conv2d(wide, wide, 3, padding=1), norm, activation), nn.MaxPool2d(2)]
        channels, height, pixels = wide, height // 2, pixels // 2
    [hidden] = widths(width, 256)
    layers += [nn.Flatten(), *_hidden(nn.Linear(channels * height * pixels, hidden), norm, activation)]
    layers += [*_hidden(nn.Linear(hidden, hidden), norm, activation), nn.Linear(hidden, classes)]
    return nn.Sequential(*layers)


def conv2(shape: Shape, classes: int, *, activation: Activation = "relu", norm: Norm = "none", width: float = 1.0) -> nn.Module:
    """Two 3x3 convolutions of 64 filters, then 256-256-classes."""
    return _conv((64,), shape, classes, activation, norm, width)


def conv4(shape: Shape, classes: int, *, activation: Activation = "relu", norm: Norm = "none", width: float = 1.0) -> nn.Module:
    """Four 3x3 convolutions of 64, 64, 128, 128 filters, then 256-256-classes."""
    return _conv((64, 128), shape, classes, activation, norm, width)


def conv6(shape: Shape, classes: int, *, activation: Activation = "relu", norm: Norm = "none", width: float = 1.0) -> nn.Module:
    """Six 3x3 convolutions of 64, 64, 128, 128, 256, 256 filters, then 256-256-classes."""
    return _conv((64, 128, 256), shape, classes, activation, norm, width)
