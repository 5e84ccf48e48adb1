"""FBS: feature boosting and suppression, where each input chooses the filters that it computes.

Section 3; the gates are in nets/dynamic.py. A layer predicts from its inputs how salient its filters are, computes the k most
salient, multiplies them by their saliency, and sets the rest to zero. The loss has the term lambda * sum |g(x)|; the authors
take lambda 1e-8. The share of filters that win falls from 1 in steps during training; `every` and `until` stand for the
authors' fine-tuning after each step of a tenth.

No weight is dropped, so the file is no smaller: the work for one input falls, and is reported as the multiply-accumulates
that validation images chose on average. A single image is spared the other filters; in a batch, whose images choose
differently, all are computed. Boosting needs the batch norms that the authors' networks have: without any, a learning rate
that suits the plain network may be too high (LeNet-5: 0.01 learns, 0.1 does not).
"""

from typing import Annotated

import torch
from torch import Tensor

from subnet_search.extractors import author as ss


@ss.register("fbs")
class FBS(ss.Extractor):
    """Train gates that choose the filters for each input.

    Train gates that choose, for each input, the filters that are computed.
    """

    paper = ss.Paper(
        "Gao, Zhao, Dudziak, Mullins & Xu",
        2019,
        "1810.05331",
        "Dynamic Channel Pruning: Feature Boosting and Suppression",
        "wta_k(g(x)) * norm(conv(x)), g(x) = relu(phi ss(x) + rho)",
    )
    paradigm = ss.Paradigm("for each input, by what it predicts to be salient", "trained", "in steps, on average", True)
    published = ss.Published.none(
        "the authors' training settings were not verified", note="Their code is deep-fry/mayo, in TensorFlow."
    )
    dynamic = True

    winners: Annotated[ss.Density, ss.Real(0.2, 0.9)] = 0.5
    """Share of each layer's filters that an input computes at the end (d)."""
    strength: Annotated[ss.Strength, ss.Real(1e-9, 1e-6, log=True)] = 1e-8
    """Weight of the penalty on saliency in the loss (lambda)."""
    every: ss.Every = 0.1
    """Interval between two reductions of the share: steps, or a fraction of the run."""
    until: Annotated[ss.Span, ss.PhaseEnd(1), ss.Real(0.3, 0.8)] = 0.5
    """When the share reaches `winners`: steps, or a fraction of the run."""

    def penalty(self, net: ss.Network, clock: ss.Clock) -> Tensor | None:
        sums = [saliency.sum(1).mean() for saliency in net.saliency.values()]
        return self.strength * torch.stack(sums).sum()

    def step(self, net: ss.Network, clock: ss.Clock) -> ss.Change | None:
        done = clock.ramp(self.every, 0, self.until)
        return None if done is None else ss.Change(winners=1 - done * (1 - self.winners))
