"""Channels as units: filters and hidden neurons, with the weights of other layers that are coupled to them.

A residual addition couples the filters of two convolutions; a depthwise convolution couples those before and after it.
Weights that read a pruned channel are pruned with it. `structure/channel_groups.py` finds the groups of a network.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from subnet_search.core.errors import UserError
from subnet_search.topology.masks import Masks, Tensors, alive
from subnet_search.topology.scores import over_their_size
from subnet_search.topology.select import LayerDensities, Shapes, keep_by_layer
from subnet_search.topology.units import Units


@dataclass(frozen=True)
class Slice:
    """The part of one tensor that belongs to the channels of a group."""

    tensor: str
    dim: int
    index: Tensor
    """(channels, width): the positions of each channel along `dim`."""
    reads: bool
    """True: the tensor takes the channels as inputs. False: it computes them."""

    def values(self, tensor: Tensor) -> Tensor:
        """The part of `tensor`, of the named tensor's shape, for each channel: (channels, width, numbers)."""
        return tensor.movedim(self.dim, 0).flatten(1)[self.index.to(tensor.device)]

    def sums(self, tensor: Tensor) -> Tensor:
        """The sum of `values` for each channel, without a copy of them: (channels,)."""
        return tensor.movedim(self.dim, 0).flatten(1).sum(1)[self.index.to(tensor.device)].sum(1)


@dataclass(frozen=True)
class Resized:
    """A whole number among a module's attributes that counts the channels of a group, as `num_heads`."""

    module: str
    attribute: str
    each: int
    """How much of it each channel is."""


@dataclass(frozen=True)
class Group:
    """Channels that are pruned by the same selection, with all tensors they are part of."""

    name: str
    """The name of the first weight that computes the channels."""
    size: int
    slices: Sequence[Slice]
    """One for each tensor, biases and running statistics included."""
    resized: Sequence[Resized] = ()


class Channels(Units):
    """The channels of a network in groups. Every group keeps at least one step of channels.

    weights, prices, whole: as for `Units`. left_whole: why other channels cannot be removed, by the first weight that computes
    them. Raises UserError when there is no group.

    round_to: each group keeps a multiple of this number, or, in groups smaller than four times as many, of the largest
    power of two up to a quarter of the group. Hardware computes in blocks (usually 16); a partly filled block saves no time.
    """

    pooled = True

    def __init__(
        self,
        weights: Shapes,
        groups: Sequence[Group],
        round_to: int = 1,
        prices: Mapping[str, float] | None = None,
        whole: float = 0.0,
        left_whole: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(weights, prices, whole)
        self.left_whole = dict(left_whole or {})
        if not groups:
            raise UserError("this network has no channels that can be removed")
        self.groups = tuple(groups)
        self.shapes = {group.name: (group.size,) for group in groups}
        self.steps = {group.name: _step(group.size, round_to) for group in groups}
        self.slices = {group.name: [one for one in group.slices if one.tensor in self.weights] for group in groups}

    @property
    def exact(self) -> bool:
        return False

    def check(self, density: float | None, scope: str | LayerDensities = "global") -> None:
        super().check(density, scope)
        least = self.cost(Masks({name: torch.arange(size) < self.steps[name] for name, (size,) in self.shapes.items()}))
        if density is not None and density < 0.999 * least:
            raise UserError(
                f"density {density:g} would empty a layer: the minimum with some channels in each layer is {least:.3g}; "
                "set extractor.density or target"
            )

    def pool(self, scores: Tensors) -> Tensors:
        return {name: self._mean(name, scores) for name in self.shapes}

    def comparable(self, scores: Tensors, among: Masks | None = None) -> Tensors:
        return {name: over_their_size(score.detach(), None if among is None else among[name]) for name, score in scores.items()}

    def tensors_of(self, name: str) -> int:
        return len(self.slices[name])

    def filters(self, tensors: Tensors) -> dict[str, Tensor]:
        """The weights that compute each channel as rows, by group: (channels, numbers). Differentiable.

        tensors: of the weights' shapes. Where no prunable weight computes a group, as behind a frozen layer, those that read.
        """
        found = {}
        for name, slices in self.slices.items():
            computing = [one for one in slices if not one.reads] or slices
            found[name] = torch.cat([one.values(tensors[one.tensor]).flatten(1) for one in computing], 1)
        return found

    def expand(self, units: Tensors) -> Tensors:
        return self._expanded(units, computing=True)

    def gates(self, units: Tensors) -> Tensors:
        """Mask only the weights that read a pruned channel; those that compute it keep their values, so it can regrow."""
        return self._expanded(units, computing=False)

    def _likely(self, relevance: Tensors) -> Masks:
        found = {name: m.detach() for name, m in relevance.items()}
        return self._in_steps(super()._likely(found), found, None)

    def _chosen(self, ordered: Tensors, density: float, scope: str | LayerDensities, room: Mapping[str, int] | None) -> Masks:
        return self._in_steps(super()._chosen(ordered, density, scope, room), ordered, room)

    def _in_steps(self, masks: Masks, ordered: Tensors, room: Mapping[str, int] | None) -> Masks:
        """Round the number kept in each group to whole steps, at least one; keep the highest scores."""
        counts = {}
        for name, mask in masks.items():
            most, step = mask.numel() if room is None else room[name], self.steps[name]
            whole = max(step, step * math.floor(alive(mask) / step + 0.5))
            counts[name] = most if alive(mask) == most else min(most, whole)
        return keep_by_layer(ordered, counts)

    def _kept(self, masks: Masks) -> dict[str, int]:
        """Kept weights of each layer as the product of kept lengths: much faster than expanding the masks."""
        alive_along = {name: list(shape) for name, shape in self.weights.items()}
        for name, mask in masks.items():
            dead = mask.numel() - alive(mask)
            for channel_slice in self.slices[name]:
                alive_along[channel_slice.tensor][channel_slice.dim] -= dead * channel_slice.index.shape[1]
        return {name: math.prod(lengths) for name, lengths in alive_along.items()}

    def _mean(self, name: str, scores: Tensors) -> Tensor:
        """The mean score of each channel over its weights in all tensors of the group: (channels,)."""
        total, weights = torch.zeros(()), 0
        for channel_slice in self.slices[name]:
            score = scores[channel_slice.tensor]
            total = total.to(score) + channel_slice.sums(score)
            weights += score.numel() // score.shape[channel_slice.dim] * channel_slice.index.shape[1]
        return total / weights

    def _expanded(self, units: Tensors, computing: bool) -> Tensors:
        """For every weight the product of its channels' values; 1 without channels. computing: include output channels."""
        like = next(iter(units.values()))
        found = {name: torch.ones(shape, dtype=like.dtype, device=like.device) for name, shape in self.weights.items()}
        for name, unit in units.items():
            for channel_slice in self.slices[name]:
                if channel_slice.reads or computing:
                    shape = self.weights[channel_slice.tensor]
                    index = channel_slice.index.to(like.device)
                    line = torch.ones(shape[channel_slice.dim], dtype=like.dtype, device=like.device)
                    line = line.index_put((index.reshape(-1),), unit.repeat_interleave(index.shape[1]))
                    found[channel_slice.tensor] = found[channel_slice.tensor] * along(line, channel_slice.dim, len(shape))
        return found


def along(line: Tensor, dim: int, dims: int) -> Tensor:
    """View a one-dimensional tensor so that it broadcasts along dimension `dim` of `dims`."""
    return line.view([-1 if place == dim else 1 for place in range(dims)])


def _step(size: int, round_to: int) -> int:
    """The number of channels that a group of `size` keeps a multiple of."""
    return round_to if 4 * round_to <= size else max(1, 2 ** int(math.log2(max(1, size // 4))))
