"""Compare five methods on a network of your own, at three densities with three seeds.

subnet-search compare configs/my_network.yaml --extractors gmp,granet,rigl,snip,random \
    --densities 0.2,0.05,0.02 --seeds 3 --workers 2

The plot is runs/compare/compare-my_network.html. For your own network, replace the class below: its factory gets the
number of classes, and its parameters that end in `weight` are pruned.
"""

from torch import Tensor, nn


class MyNetwork(nn.Module):
    """Images (batch, 1, height, width) to logits (batch, num_classes): strided convolutions with a residual block."""

    def __init__(self, num_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.stem = self._convolution(1, width, stride=2)
        self.down = self._convolution(width, 2 * width, stride=2)
        self.block = self._convolution(2 * width, 2 * width)
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(32 * width, num_classes))

    @staticmethod
    def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
        layer = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        features = self.down(self.stem(images))
        return self.classifier(features + self.block(features))
