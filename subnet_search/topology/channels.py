"""Channels as units: filters and hidden neurons, each with all that is coupled to it in other layers.

A residual addition couples the filters of two convolutions, a depthwise convolution those before and after it; and the
weights that read a channel die with it. `deploy/coupling.py` finds all that in a network.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from subnet_search.core.errors import UserError
from subnet_search.topology.masks import Masks, alive
from subnet_search.topology.scores import over_their_size
from subnet_search.topology.select import LayerShares, Shapes, keep_by_layer
from subnet_search.topology.units import Tensors, Units


@dataclass(frozen=True)
class Slice:
    """What the channels of a group have in one tensor of the network."""

    tensor: str
    dim: int
    index: Tensor
    """(channels, width): where along `dim` the numbers of each channel are."""
    reads: bool
    """Whether the tensor computes with the channels, and does not compute them."""


@dataclass(frozen=True)
class Group:
    """Channels that can be chosen among."""

    name: str
    """Of the first weight that computes them."""
    size: int
    slices: Sequence[Slice]
    """Of all tensors, biases and running statistics included."""


class Channels(Units):
    """The channels of a network, in groups; each group keeps some, whatever their scores.

    With `round_to`, a group keeps a multiple of so many, or of the largest power of two that is no more than a quarter of
    it: hardware computes in blocks (16 on most), and a few channels less than a block save nothing.
    """

    pooled = True

    def __init__(
        self,
        weights: Shapes,
        groups: Sequence[Group],
        round_to: int = 1,
        prices: Mapping[str, float] | None = None,
        whole: float = 0.0,
    ) -> None:
        super().__init__(weights, prices, whole)
        if not groups:
            raise UserError("this network has no channels that can be removed")
        self.groups = tuple(groups)
        self.shapes = {group.name: (group.size,) for group in groups}
        self.steps = {group.name: _step(group.size, round_to) for group in groups}
        self.slices = {g.name: [piece for piece in g.slices if piece.tensor in self.weights] for g in groups}

    @property
    def exact(self) -> bool:
        return False

    def check(self, density: float | None, scope: str | LayerShares = "global") -> None:
        super().check(density, scope)
        least = self.cost(Masks({name: torch.arange(size) < self.steps[name] for name, (size,) in self.shapes.items()}))
        if density is not None and density < 0.999 * least:
            raise UserError(
                f"density {density:g} would empty a layer: the least that leaves some channels in each is {least:.3g}"
            )

    def pool(self, scores: Tensors) -> Tensors:
        return {name: self._mean(name, scores) for name in self.shapes}

    def pool_magnitude(self, tensors: Tensors) -> Tensors:
        return self.pool({name: tensor.detach().abs() for name, tensor in tensors.items()})

    def comparable(self, scores: Tensors, among: Masks | None = None) -> Tensors:
        return {name: over_their_size(score.detach(), None if among is None else among[name]) for name, score in scores.items()}

    def filters(self, tensors: Tensors) -> dict[str, Tensor]:
        """What computes each channel: (channels, numbers) by group. tensors: of the weights' shapes. Differentiable."""
        found = {}
        for name, slices in self.slices.items():
            rows = []
            for piece in slices:
                if not piece.reads:
                    tensor = tensors[piece.tensor]
                    rows.append(tensor.movedim(piece.dim, 0).flatten(1)[piece.index.to(tensor.device)].flatten(1))
            found[name] = torch.cat(rows, 1)
        return found

    def expand(self, units: Tensors) -> Tensors:
        return self._expanded(units, computing=True)

    def gates(self, units: Tensors) -> Tensors:
        """Where channels are read alone: those that compute a dead one keep their values, and can come back with them."""
        return self._expanded(units, computing=False)

    def _likely(self, relevance: Tensors) -> Masks:
        found = {name: m.detach() for name, m in relevance.items()}
        return self._in_steps(super()._likely(found), found, None)

    def step(self, name: str) -> int:
        return self.steps[name]

    def _chosen(self, ordered: Tensors, density: float, scope: str | LayerShares, room: Mapping[str, int] | None) -> Masks:
        return self._in_steps(super()._chosen(ordered, density, scope, room), ordered, room)

    def _in_steps(self, masks: Masks, ordered: Tensors, room: Mapping[str, int] | None) -> Masks:
        """As many of each group, in whole steps and at least one, those of highest scores."""
        counts = {}
        for name, mask in masks.items():
            most, step = mask.numel() if room is None else room[name], self.steps[name]
            whole = max(step, step * math.floor(alive(mask) / step + 0.5))
            counts[name] = most if alive(mask) == most else min(most, whole)
        return keep_by_layer(ordered, counts)

    def _kept(self, masks: Masks) -> dict[str, int]:
        """By counting along each dimension: much faster than by the masks of weights, which are their products."""
        alive_along = {name: list(shape) for name, shape in self.weights.items()}
        for name, mask in masks.items():
            dead = mask.numel() - alive(mask)
            for piece in self.slices[name]:
                alive_along[piece.tensor][piece.dim] -= dead * piece.index.shape[1]
        return {name: math.prod(lengths) for name, lengths in alive_along.items()}

    def _mean(self, name: str, scores: Tensors) -> Tensor:
        """Over all weights that a channel has in the group's tensors."""
        total, weights = torch.zeros(()), 0
        for piece in self.slices[name]:
            score = scores[piece.tensor]
            sums = score.movedim(piece.dim, 0).flatten(1).sum(1)
            total = total.to(score) + sums[piece.index.to(score.device)].sum(1)
            weights += score.numel() // score.shape[piece.dim] * piece.index.shape[1]
        return total / weights

    def _expanded(self, units: Tensors, computing: bool) -> Tensors:
        """Every weight's product of what its channels are; ones where it has none."""
        like = next(iter(units.values()))
        found = {name: torch.ones(shape, dtype=like.dtype, device=like.device) for name, shape in self.weights.items()}
        for name, unit in units.items():
            for piece in self.slices[name]:
                if piece.reads or computing:
                    shape = self.weights[piece.tensor]
                    index = piece.index.to(like.device)
                    line = torch.ones(shape[piece.dim], dtype=like.dtype, device=like.device)
                    line = line.index_put((index.reshape(-1),), unit.repeat_interleave(index.shape[1]))
                    found[piece.tensor] = found[piece.tensor] * along(line, piece.dim, len(shape))
        return found


def along(line: Tensor, dim: int, dims: int) -> Tensor:
    """A one-dimensional tensor, to be broadcast along one of several dimensions."""
    return line.view([-1 if place == dim else 1 for place in range(dims)])


def _step(size: int, round_to: int) -> int:
    """In how many channels at a time a group of `size` is kept."""
    return round_to if 4 * round_to <= size else max(1, 2 ** int(math.log2(max(1, size // 4))))
