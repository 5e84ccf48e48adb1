"""CHTs: Cannistraci-Hebb training, with random removal and random regrowth by topology.

Sections 3.1 and 3.3. What grows depends on the topology alone: a layer is a bipartite graph, and a pair (u, v) is scored by
CH2-L3n, the sum over the nodes z on paths of length three from u to v of (1 + links inside the local community) /
(1 + links out of it). Removal and growth are random draws: a weight is kept with a chance proportional to importance^T, a
dead pair grows with a chance proportional to its score. T = delta / (1 - delta) goes from 1 to 3 (delta 0.5 to 0.75) in a
straight line. A weight that is dropped and grown in one change keeps its value and momentum. Both are as in the authors' code
(biomedical-cybernetics/Cannistraci-Hebb-training). With `initial_density` above the density this is CHTss: the density falls
along a sigmoid, by relative importance.

Where we differ: the first topology is ERK and every layer is sparse; the authors' has the same density in every layer or comes
from their receptive-field model, and their last layer is dense. Convolutions are graphs of outputs and inputs x height x
width. Nodes that have lost all links on one side are not removed. The number dropped is rounded up, theirs down. Relative
importance divides by sums of |w|, theirs by sums of |w| + 1e-5. The sigmoid is scaled to begin and end exactly.
"""

from typing import Annotated, Literal

from subnet_search.extractors import author as ss
from subnet_search.extractors.methods._drop_and_grow import chances, check_initial, first_scope


@ss.register("cht")
class CHT(ss.Extractor):
    """Drop by importance, grow by the topology's communities.

    Draw what to drop by importance and what to grow from the topology's own local communities.
    """

    paper = ss.Paper(
        "Zhang, Cerretti, Zhao, Liao, Wu, Michieli & Cannistraci",
        2025,
        "2501.19107",
        "Brain Network Science Modelling of Sparse Neural Networks Enables Transformers and LLMs to Perform as Fully Connected",
        "P(keep) ~ importance^T, T: 1 -> 3; P(grow uv) ~ sum over z on u..v of (1 + inside_z) / (1 + outside_z)",
    )
    paradigm = ss.Paradigm("drop and grow from the topology, during training", "trained", "fixed, or falling, sigmoid", False)
    published = ss.Published(
        "biomedical-cybernetics/Cannistraci-Hebb-training Readme.md (CHTs on EMNIST, MLP) and mlp_and_cnn/run.py",
        {"batch_size": 32, "lr": 0.025, "weight_decay": 5e-4, "schedule": "linear"},
        epochs=100,
        note="The authors' line falls to 1 % of the rate at 90 % of the run and stays there; ours falls to 0 at the end. "
        "Language models: adam at 3e-3 without decay.",
    )

    density: ss.Density = 0.1
    """Fraction of prunable weights kept at the end."""
    initial_density: Annotated[ss.Density | None, ss.OneOf(None, 0.5)] = None
    """Fraction kept at first. None: the density, so it stays fixed (CHTs)."""
    end: Annotated[ss.Span, ss.PhaseEnd(), ss.Real(0.3, 0.8)] = 0.5
    """When the density is reached: steps, or a fraction of the run."""
    every: ss.Every = 0.02
    drop_fraction: ss.DropFraction = 0.3
    """Fraction of each layer's weights that is moved at first; it falls to 0 along a cosine."""
    importance: Annotated[Literal["magnitude", "relative"], ss.OneOf("magnitude", "relative")] = "relative"
    """What survives: weights large in themselves, or among those that share their input or output."""
    softness: Annotated[float, ss.Gt(0), ss.Lt(1), ss.Real(0.3, 0.7)] = 0.5
    """delta at first; the higher, the closer removal is to a ranking."""
    final_softness: Annotated[float, ss.Gt(0), ss.Lt(1)] = 0.75
    """delta at the last step."""
    scope: ss.PlainScope = "global"
    """Whether weights compete over all layers as the density falls, from an ERK topology, or each layer has its share."""

    def check(self, units: ss.Units, clock: ss.Clock) -> None:
        super().check(units, clock)
        check_initial(self.name, units, self._first, self.density, self.scope)

    def begin(self, net: ss.Network, clock: ss.Clock, probe: ss.Probe) -> ss.Change:
        return ss.Change(net.units.keep(chances(net, clock), self._first, first_scope(self.scope)))

    def step(self, net: ss.Network, clock: ss.Clock) -> ss.Change | None:
        ramp = clock.ramp(self.every, 0, self.end) if self._first > self.density else None
        if ramp is None and not clock.due(self.every):
            return None
        masks = net.masks
        if ramp is not None:
            density = ss.sigmoid(self._first, self.density, ramp)
            masks = net.units.keep(ss.relative_importance(net.weights), density, self.scope, masks)
        kept = ss.drop(masks, self._survival(net, clock), ss.cosine(self.drop_fraction, 0.0, clock.progress))
        links = {name: ss.local_community(mask) for name, mask in kept.items()}  # of the topology that is left
        return ss.Change(
            ss.grow(kept, {name: ss.sampled(s, clock.uniform(f"grow {name}", s)) for name, s in links.items()}, masks)
        )

    @property
    def _first(self) -> float:
        return self.initial_density or self.density

    def _survival(self, net: ss.Network, clock: ss.Clock) -> ss.Tensors:
        """Scores whose highest are a random draw of the weights to keep, with chances in proportion to importance^T."""
        first, last = (delta / (1 - delta) for delta in (self.softness, self.final_softness))
        power = ss.linear(first, last, clock.step / clock.total)
        important = ss.magnitude(net.weights) if self.importance == "magnitude" else ss.relative_importance(net.weights)
        return {name: ss.sampled(score, clock.uniform(f"drop {name}", score), power) for name, score in important.items()}
