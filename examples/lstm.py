"""Classify time series with an LSTM.

cd examples
subnet-search extract -s network=lstm:Recurrent -s data=lstm:make -s extractor=granet
"""

import torch
from torch import Tensor, nn


def make(count: int = 600, length: int = 20) -> tuple[Tensor, Tensor]:
    """Noisy waves (count, length, 2); the class is the frequency."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    phase = torch.rand(count, 1, generator=rng) * 6.3
    angle = phase + torch.arange(length) * (0.3 + 0.3 * labels).unsqueeze(1)
    waves = torch.stack([angle.sin(), angle.cos()], 2)
    return waves + 0.2 * torch.randn(waves.shape, generator=rng), labels


class Recurrent(nn.Module):
    """Series (batch, length, 2) to logits (batch, num_classes)."""

    def __init__(self, num_classes: int = 3, width: int = 24) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, width, num_layers=2, batch_first=True)
        self.out = nn.Linear(width, num_classes)

    def forward(self, series: Tensor) -> Tensor:
        return self.out(self.lstm(series)[0][:, -1])
