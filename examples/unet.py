"""Segment shapes with a U-Net.

cd examples
subnet-search extract -s network=unet:UNet -s data=unet:make -s task=segmentation -s extractor=gumbel -s unit=channel
"""

import torch
from torch import Tensor, nn


def make(count: int = 200, size: int = 24) -> tuple[Tensor, Tensor]:
    """Images (count, 3, size, size) of a square and a disc on noise, and the class of each pixel: 0, 1 or 2."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 120, (count, 3, size, size), generator=rng).to(torch.uint8)
    labels = torch.zeros(count, size, size, dtype=torch.long)
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    for index in range(count):
        x, y, u, v = torch.randint(4, size - 4, (4,), generator=rng).tolist()
        square = ((rows - x).abs() < 4) & ((columns - y).abs() < 4)
        disc = (rows - u) ** 2 + (columns - v) ** 2 < 16
        labels[index][square], labels[index][disc] = 1, 2
        images[index][0][square] += 100
        images[index][1][disc] += 100
    return images, labels


def _double(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before in (inputs, outputs):
        layers += [nn.Conv2d(before, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Images (batch, 3, height, width) to logits (batch, num_classes, height, width)."""

    def __init__(self, num_classes: int = 3, width: int = 16) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = _double(3, width), _double(width, 2 * width), _double(2 * width, 2 * width)
        self.up2, self.up1 = _double(4 * width, width), _double(2 * width, width)
        self.pool, self.upsample = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)
        self.out = nn.Conv2d(width, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        first = self.down1(images)
        second = self.down2(self.pool(first))
        lowest = self.middle(self.pool(second))
        second = self.up2(torch.cat([self.upsample(lowest), second], 1))
        return self.out(self.up1(torch.cat([self.upsample(second), first], 1)))
