"""Biprop: the highest scores of every layer of an untrained network, with one magnitude for all weights of a layer.

Edge-popup with binary weights. As in the authors' code, alpha is a constant in the backward pass:
ds = dL/d(effective weight) * w * sign(s).

A gate here is alpha / |w| and is folded into the weights at the end, so the file holds one magnitude a layer (up to rounding
of w * alpha / |w|). Activations stay real. The authors train small networks with sgd, those with binary activations with
adam. Our counts add up to the exact total.
"""

import torch
from torch import Tensor

from subnet_search.extractors import author as ss
from subnet_search.extractors.methods._top_scores import TopScores


@ss.register("biprop")
class Biprop(TopScores):
    """Learn scores, keep the highest at one magnitude a layer.

    Keep the highest scores of every layer of an untrained network, at one magnitude, and learn the scores.
    """

    paper = ss.Paper(
        "Diffenderfer & Kailkhura",
        2021,
        "2103.09377",
        "Multi-Prize Lottery Ticket Hypothesis",
        "w_hat = alpha z sign(w), alpha = ||z w||_1 / ||z||_1, z = 1[|s| in the top k of its layer]; dL/ds = w dL/dw_hat",
    )
    paradigm = ss.Paradigm("learned on frozen weights", "initial signs, one magnitude a layer", "fixed", False)
    published = ss.Published(
        "chrundle/biprop configs/smallscale/conv6/conv6_usc_unsigned.yml (CIFAR-10, Conv6)",
        {"lr": 0.1, "weight_decay": 1e-4, "schedule": "cosine"},
        epochs=100,
        note="ResNet-18: weight decay 5e-4, batch 256.",
    )

    changes_weights = True

    rescale: ss.LearnedRescaling = "none"
    """Factor on each layer beside its magnitude alpha: none, or learned (a scalar)."""

    def gates(self, net: ss.Network, masks: ss.Masks) -> dict[str, Tensor]:
        return {name: _one_magnitude(net.weights[name].detach(), mask) for name, mask in masks.items()}


def _one_magnitude(weight: Tensor, mask: Tensor) -> Tensor:
    """The gates that give every kept weight the mean magnitude of those kept; 0 where there is no sign to keep."""
    size = weight.abs()
    alpha = (size * mask).sum() / mask.sum()
    return torch.where(mask & (size > 0), alpha / size, 0.0)
