"""A network with two inputs and two outputs, and a task of one's own.

    cd examples
    subnet-search extract -s network=two_heads:TwoHeads -s data=two_heads:make -s task=two_heads:Both -s extractor=snip

Batches are mappings; the task says what goes into the network, the loss, and what is measured.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def make(count: int = 600) -> dict[str, Tensor]:
    """Images and tables, with a class and a number for each pair."""
    rng = torch.Generator().manual_seed(0)
    image, table = torch.randn(count, 1, 8, 8, generator=rng), torch.randn(count, 5, generator=rng)
    kind = (image.mean((1, 2, 3)) + 0.1 * table[:, 0] > 0).long()
    return {"image": image, "table": table, "kind": kind, "amount": table.sum(1) + image[:, 0, 0, 0]}


class TwoHeads(nn.Module):
    """`image` (batch, 1, 8, 8) and `table` (batch, 5) to logits of two kinds and an amount."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten())
        self.table = nn.Sequential(nn.Linear(5, width), nn.ReLU())
        self.both = nn.Sequential(nn.Linear(10 * width, 2 * width), nn.ReLU())
        self.kind, self.amount = nn.Linear(2 * width, 2), nn.Linear(2 * width, 1)

    def forward(self, image: Tensor, table: Tensor) -> dict[str, Tensor]:
        joined = self.both(torch.cat([self.image(image), self.table(table)], 1))
        return {"kind": self.kind(joined), "amount": self.amount(joined).squeeze(1)}


class Both:
    """Classify the kind and estimate the amount."""

    leading = "mae"
    directions = {"mae": "minimize", "kind_accuracy": "maximize"}

    def __init__(self, weight: float = 0.5) -> None:
        self.weight = weight

    def loss(self, network: Callable[..., Any], batch: dict[str, Tensor]) -> Tensor:
        found = network(image=batch["image"], table=batch["table"])
        kind, amount = F.cross_entropy(found["kind"], batch["kind"]), F.mse_loss(found["amount"], batch["amount"])
        return (1 - self.weight) * kind + self.weight * amount

    def metrics(self, network: Callable[..., Any], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        found = network(image=batch["image"], table=batch["table"])
        right = (found["kind"].argmax(1) == batch["kind"]).float().mean()
        return {"mae": F.l1_loss(found["amount"], batch["amount"]), "kind_accuracy": right}
