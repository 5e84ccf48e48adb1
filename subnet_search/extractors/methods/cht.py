"""CHTs: Cannistraci-Hebb training, with soft removal and soft topological regrowth.

Zhang, Cerretti, Zhao, Liao, Wu, Michieli & Cannistraci 2025, "Brain Network Science Modelling of Sparse Neural Networks
Enables Transformers and LLMs to Perform as Fully Connected", arXiv:2501.19107, sections 3.1 and 3.3. New connections
follow from the topology alone: a layer is a bipartite graph, and a pair (u, v) is scored by CH2-L3n, the sum over the
nodes z on paths of length three from u to v of (1 + links inside the local community) / (1 + links out of it). Both
removal and growth are draws, not rankings: weights survive with chances in proportion to importance^T, dead pairs grow in
proportion to their score. T = delta / (1 - delta) goes from 1 to 3 (delta 0.5 to 0.75) along a straight line, as in the
authors' code (biomedical-cybernetics/Cannistraci-Hebb-training). What is dropped and grown in one change keeps its value and
momentum, as there. With `initial_density` above the density it is CHTss: first the density falls along a sigmoid, by relative
importance.

Where we differ: the first topology is ERK, with every layer sparse; the authors' has the same density in every layer or comes
from their receptive-field model, and their last layer is dense. Convolutions are taken as graphs of outputs and inputs x
height x width; the removal of nodes that have lost all links on one side is left out. The number dropped is rounded up,
theirs down. Relative importance divides by sums of |w|, theirs by sums of |w| + 1e-5. The sigmoid is stretched to begin and
end exactly.
"""

from typing import Annotated, Literal

from annotated_types import Gt, Le, Lt

from subnet_search.core.errors import UserError
from subnet_search.core.search_domains import OneOf, Real
from subnet_search.extractors.base import (
    Change,
    Clock,
    Density,
    Every,
    Extractor,
    Network,
    Paper,
    Paradigm,
    PlainScope,
    Probe,
    Published,
    Span,
    Tensors,
    chances,
)
from subnet_search.extractors.registry import register
from subnet_search.topology.regrow import drop, grow
from subnet_search.topology.schedules import cosine, linear, sigmoid
from subnet_search.topology.scores import local_community, magnitude, relative_importance
from subnet_search.topology.select import LayerShares, allocate, sampled
from subnet_search.topology.units import Units


@register("cht")
class CHT(Extractor):
    """Draw what to drop by importance and what to grow from the topology's own local communities."""

    paper = Paper(
        "Zhang, Cerretti, Zhao, Liao, Wu, Michieli & Cannistraci",
        2025,
        "2501.19107",
        "Brain Network Science Modelling of Sparse Neural Networks Enables Transformers and LLMs to Perform as Fully Connected",
        "P(keep) ~ importance^T, T: 1 -> 3; P(grow uv) ~ sum over z on u..v of (1 + inside_z) / (1 + outside_z)",
    )
    paradigm = Paradigm("drop and grow from the topology, during training", "trained", "fixed, or falling, sigmoid", False)
    published = Published(
        "biomedical-cybernetics/Cannistraci-Hebb-training Readme.md (CHTs on EMNIST, MLP) and mlp_and_cnn/run.py",
        {"batch_size": 32, "lr": 0.025, "weight_decay": 5e-4, "schedule": "linear"},
        epochs=100,
        note="The authors' line falls to 1 % of the rate at 90 % of the run and stays there; ours falls to 0 at the end. "
        "Language models: adam at 3e-3 without decay.",
    )

    density: Annotated[Density, Real(0.01, 0.5, log=True)] = 0.1
    """Fraction of prunable weights kept in the end."""
    initial_density: Annotated[Density | None, OneOf(None, 0.5)] = None
    """Fraction kept at first. None: the density, so it stays fixed (CHTs)."""
    end: Annotated[Span, Real(0.3, 0.8)] = 0.5
    """When the density is reached: steps, or a fraction of the run."""
    every: Every = 0.02
    """Between two changes: steps, or a fraction of the run."""
    drop_fraction: Annotated[float, Gt(0), Le(1), Real(0.05, 0.6)] = 0.3
    """Fraction of each layer's weights that is moved at first; it falls to 0 along a cosine."""
    importance: Annotated[Literal["magnitude", "relative"], OneOf("magnitude", "relative")] = "relative"
    """What survives: weights large in themselves, or among those that share their input or output."""
    softness: Annotated[float, Gt(0), Lt(1), Real(0.3, 0.7)] = 0.5
    """delta at first; the higher, the closer removal is to a ranking."""
    final_softness: Annotated[float, Gt(0), Lt(1)] = 0.75
    """delta at the last step."""
    scope: PlainScope = "global"
    """Whether weights compete over all layers as the density falls, from an ERK topology, or each layer has its share."""

    def check(self, units: Units, clock: Clock) -> None:
        if self._first < self.density:
            raise UserError(f"cht.initial_density {self._first:g} is below the density {self.density:g}")
        units.check(self.density, self.scope)
        allocate(units.shapes, self._first, self._first_shares)
        clock.check_end("cht.end", 0, self.end)
        clock.check_interval("cht.every", self.every)

    def begin(self, net: Network, clock: Clock, probe: Probe) -> Change:
        return Change(net.units.keep(chances(net, clock), self._first, self._first_shares))

    def step(self, net: Network, clock: Clock) -> Change | None:
        ramp = clock.ramp(self.every, 0, self.end) if self._first > self.density else None
        if ramp is None and not clock.due(self.every):
            return None
        masks = net.masks
        if ramp is not None:
            density = sigmoid(self._first, self.density, ramp)
            masks = net.units.keep(relative_importance(net.weights), density, self.scope, masks)
        kept = drop(masks, self._survival(net, clock), cosine(self.drop_fraction, 0.0, clock.progress))
        links = {name: local_community(mask) for name, mask in kept.items()}  # of the topology that is left
        return Change(grow(kept, {name: sampled(s, clock.uniform(f"grow {name}", s)) for name, s in links.items()}, masks))

    @property
    def _first(self) -> float:
        return self.initial_density or self.density

    @property
    def _first_shares(self) -> str | LayerShares:
        return "erk" if self.scope == "global" else self.scope

    def _survival(self, net: Network, clock: Clock) -> Tensors:
        """What survives a draw with chances in proportion to importance^T."""
        first, last = (delta / (1 - delta) for delta in (self.softness, self.final_softness))
        power = linear(first, last, clock.step / clock.total)
        important = magnitude(net.weights) if self.importance == "magnitude" else relative_importance(net.weights)
        return {name: sampled(score, clock.uniform(f"drop {name}", score), power) for name, score in important.items()}
