"""FBS: feature boosting and suppression, where each input chooses the filters that it computes.

Gao, Zhao, Dudziak, Mullins & Xu 2019, "Dynamic Channel Pruning: Feature Boosting and Suppression", arXiv:1810.05331,
section 3 (the gates are in nets/dynamic.py). A layer predicts from its inputs how salient its filters are, computes
the k most salient, boosts them by their saliency and suppresses the rest. The loss has lambda * sum |g(x)| beside it, and
the share of winners falls from all of them in steps while the network is trained; the authors take lambda 1e-8.

No weight is dropped, so the file is no smaller: what falls is the work for one input, reported as the multiply-accumulates
that validation images chose on average. One image by itself is spared the rest; a batch, whose images choose differently,
is not. `every` and `until` stand for the authors' fine-tuning after each step of a tenth. Boosts need the batch norms that
the authors' networks have: without any, a learning rate that is safe for the network alone may be too high (LeNet-5: 0.01
learns, 0.1 does not).
"""

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from subnet_search.core.search_domains import Real
from subnet_search.extractors.base import Change, Clock, Density, Every, Extractor, Network, Paper, Paradigm, Published, Span
from subnet_search.extractors.registry import register
from subnet_search.topology.masks import Masks
from subnet_search.topology.units import Units


@register("fbs")
class FBS(Extractor):
    """Train gates that choose, for each input, the filters that are computed."""

    paper = Paper(
        "Gao, Zhao, Dudziak, Mullins & Xu",
        2019,
        "1810.05331",
        "Dynamic Channel Pruning: Feature Boosting and Suppression",
        "wta_k(g(x)) * norm(conv(x)), g(x) = relu(phi ss(x) + rho)",
    )
    paradigm = Paradigm("for each input, by what it predicts to be salient", "trained", "in steps, on average", True)
    published = Published.none(
        "the authors' training settings were not verified", note="Their code is deep-fry/mayo, in TensorFlow."
    )
    dynamic = True

    winners: Annotated[Density, Real(0.2, 0.9)] = 0.5
    """Share of each layer's filters that an input computes in the end (d)."""
    strength: Annotated[float, Ge(0), Real(1e-9, 1e-6, log=True)] = 1e-8
    """Of the penalty on saliency (lambda)."""
    every: Every = 0.1
    """Between two falls of the share: steps, or a fraction of the run."""
    until: Annotated[Span, Real(0.3, 0.8)] = 0.5
    """When the share has come down: steps, or a fraction of the run."""

    def check(self, units: Units, clock: Clock) -> None:
        clock.check_end("fbs.until", 1, self.until)
        clock.check_interval("fbs.every", self.every)

    def penalty(self, net: Network, clock: Clock) -> Tensor | None:
        sums = [saliency.sum(1).mean() for saliency in net.saliency.values()]
        return self.strength * torch.stack(sums).sum()

    def step(self, net: Network, clock: Clock) -> Change | None:
        fallen = clock.ramp(self.every, 0, self.until)
        return None if fallen is None else Change(winners=1 - fallen * (1 - self.winners))

    def reached(self, net: Network, masks: Masks, clock: Clock) -> bool:
        return clock.step >= min(clock.steps(self.until), clock.total - 1)
