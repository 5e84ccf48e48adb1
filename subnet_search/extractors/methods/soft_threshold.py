"""STR: soft threshold reparameterisation, which learns one pruning threshold a layer along with the weights.

The network computes with sign(w) relu(|w| - sigma(s)), s one scalar a layer, here as w times the gate
relu(1 - sigma(s) / |w|): the gradients are those of the soft threshold, and a weight below its threshold has none. Weight decay
acts on s too and, as s begins far below 0, raises the threshold. As published, nothing is hard-thresholded.

The paper's s begins so low (-3200 for 90 % of ResNet-50, -12800 for 89 % of MobileNet) that sigma(s) is 0 until decay has
brought s near 0, well into 100 epochs of ImageNet. The sparsity depends on s_init, decay, rate and length; our default of -5,
a threshold of 0.007 from the start, is for shorter runs.

Where we differ: a density can be asked for. Then at `until` the weights with the highest |w| - sigma(s) over all layers are
kept, thresholds are folded into them, and they are trained on. Where that keeps weights below their threshold, the layer's
threshold becomes half its smallest kept weight.
"""

from typing import Annotated

import torch
from torch import Tensor

from subnet_search.extractors import author as ss


@ss.register("str")
class SoftThreshold(ss.RelevanceLearner):
    """Train through a learned soft threshold.

    Train weights through a soft threshold that each layer learns.
    """

    paper = ss.Paper(
        "Kusupati, Ramanujan, Somani, Wortsman, Jain, Kakade & Farhadi",
        2020,
        "2002.03231",
        "Soft Threshold Weight Reparameterization for Learnable Sparsity",
        "w_hat = sign(w) relu(|w| - sigma(s_l))",
    )
    paradigm = ss.Paradigm("learned together with the weights", "trained, shrunk by the threshold", "free, or ranked", True)
    published = ss.Published(
        "RAIVNLab/STR configs/largescale/resnet50-str.yaml (ImageNet, ResNet-50, 90 % sparse)",
        {
            "batch_size": 256,
            "lr": 0.256,
            "momentum": 0.875,
            "weight_decay": 2.251757813e-5,
            "schedule": "cosine",
            "label_smoothing": 0.1,
        },
        epochs=100,
        note="Left out: 5 epochs of warm-up. The weight decay, also that of the thresholds, differs with the sparsity.",
    )
    learns = "both"

    density: Annotated[ss.Density | None, ss.Real(0.05, 0.5, log=True)] = None
    """Fraction of prunable weights kept. None: those above their layer's threshold, as published."""
    s_init: Annotated[float, ss.Real(-10, -2)] = -5.0
    """What s begins at; sigma(s) is the threshold."""
    until: Annotated[ss.Span, ss.PhaseEnd(1), ss.Real(0.4, 0.9)] = 0.75
    """When a density is reached and the weights kept are trained on: steps, or a fraction of the run."""
    rescale: ss.LearnedRescaling = "none"

    def check(self, units: ss.Units, clock: ss.Clock) -> None:
        if self.density is not None:
            super().check(units, clock)

    def initial(self, weight: Tensor, rng: torch.Generator) -> Tensor:
        return weight.new_full([1] * weight.dim(), self.s_init)

    def sample(self, net: ss.Network, clock: ss.Clock) -> dict[str, Tensor]:
        return {name: _gate(net.weights[name], s.sigmoid()) for name, s in net.relevance.items()}

    def step(self, net: ss.Network, clock: ss.Clock) -> ss.Change | None:
        last = clock.point(self.until)
        if self.density is None or not net.relevance or clock.step != last:
            return None
        return ss.Change(self.finish(net), learn="weights")

    def finish(self, net: ss.Network) -> ss.Masks:
        above = {name: net.weights[name].detach().abs() - s.detach().sigmoid() for name, s in net.relevance.items()}
        if self.density is None:
            return ss.Masks({name: margin > 0 for name, margin in above.items()})
        return ss.keep_global(above, ss.count(self.density, sum(margin.numel() for margin in above.values())))

    def gates(self, net: ss.Network, masks: ss.Masks) -> dict[str, Tensor]:
        found = {}
        for name, mask in masks.items():
            weight, threshold = net.weights[name].detach(), net.relevance[name].detach().sigmoid()
            smallest = weight.abs().masked_fill(~mask, torch.inf).min()
            found[name] = _gate(weight, torch.where(smallest > threshold, threshold, smallest / 2)) * mask
        return found


def _gate(weight: Tensor, threshold: Tensor) -> Tensor:
    """What a weight is multiplied by to be soft-thresholded; 0 for a weight of 0."""
    return torch.relu(1 - threshold / weight.abs().clamp(min=1e-12))
