"""Units: the groups of weights that are kept or pruned together.

Scores of weights are pooled to scores of units, units are selected, and masks of units are expanded to masks of weights.
Kinds: `weight` (single weights), `n:m` (at most n of every m neighbours), `block` (squares of a weight matrix), and
`channel` (filters and hidden neurons with the weights coupled to them, in `channels.py`).
"""

import math
from collections.abc import Callable, Container, Mapping, Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from subnet_search.core.errors import UserError
from subnet_search.topology.masks import Masks, Tensors, alive
from subnet_search.topology.regrow import drop, grow
from subnet_search.topology.scores import layer_adaptive
from subnet_search.topology.select import (
    LayerDensities,
    NotANumber,
    Shapes,
    allocate,
    count,
    first_of_each,
    keep_by_layer,
    keep_global,
    top_k,
)

Measure = Literal["units", "parameters", "flops"]
"""What a density is a fraction of: units, parameters, or multiply-accumulates."""
Normalise = Literal["layer", "joint", "none"]
"""How scores of layers are brought to one scale before a global ranking."""
FLOOR = 0.25
"""Minimum density of a layer, relative to the density asked for, in a global ranking of normalised channels or blocks."""
EVERY_KIND = ("weight", "channel", "n:m", "block")


class Units:
    """Single weights as units; base class of the other kinds.

    weights   shapes of the prunable weights, by name
    prices    cost of a weight of each layer, when densities are fractions of cost
    whole     total cost of the parameters that are not prunable

    Tensors by name (`scores`, `tensors`) have the weights' shapes in the methods that pool them to units. Tensors to choose
    units by (`scores`, `relevance`, `keep`, `by`) have the units' shapes. `scope` is "global", which ranks the units of all
    layers together, or how the density is shared by layers, as `how` in `allocate`.
    """

    pooled: ClassVar[bool] = False
    """Whether the score of a unit is pooled from several weights."""

    def __init__(self, weights: Shapes, prices: Mapping[str, float] | None = None, whole: float = 0.0) -> None:
        self.weights = {name: tuple(shape) for name, shape in weights.items()}
        self.shapes: dict[str, tuple[int, ...]] = dict(self.weights)
        """Shapes of the tensors of units, by the name of a weight."""
        self.steps: dict[str, int] = {}
        """The number of units of a layer that is kept or pruned at a time, where it is more than one."""
        self.prices, self.whole = prices, whole

    # From weights to units and back. `scores` and `tensors` have the weights' shapes; results have the units' shapes.

    def pool(self, scores: Tensors) -> Tensors:
        """The score of every unit: the mean over its weights."""
        return scores

    def pool_magnitude(self, tensors: Tensors) -> Tensors:
        """The mean of |tensor| over each unit's weights. Single weights: the tensors unchanged, to be ranked by |.|."""
        return self.pool({name: tensor.detach().abs() for name, tensor in tensors.items()}) if self.pooled else tensors

    def comparable(self, scores: Tensors, among: Masks | None = None) -> Tensors:
        """Nonnegative scores of units, normalised so that layers are comparable. Single weights and n:m: unchanged.

        Channels: divided by the root mean square of their group (`over_their_size`). Blocks: the LAMP score
        (`layer_adaptive`). among: the units to normalise over (None: all).
        """
        return scores

    def tensors_of(self, name: str) -> int:
        """The number of weight tensors that a unit of the layer or group `name` is a part of."""
        return 1

    def expand(self, units: Tensors) -> Tensors:
        """The value of each weight's unit, of the weights' shapes. units: bool or float. Differentiable."""
        return units

    def gates(self, units: Tensors) -> Tensors:
        """Weight masks during the search; pruned units may regrow."""
        return self.expand(units)

    # Selection. All tensors have the units' shapes.

    def check(self, density: float | None, scope: str | LayerDensities = "global") -> None:
        """Raise UserError when no topology can have this density, or this allocation to layers."""
        if density is not None and self.whole and density < (least := self._cost({})):
            raise UserError(f"parameters not pruned are {least:.3g} of this network's cost, so {density:g} cannot be reached")
        if density is not None and scope != "global":
            allocate(self.shapes, density if self.prices is None else 1.0, scope)  # of cost: another number of units

    def keep(
        self,
        scores: Tensors,
        density: float,
        scope: str | LayerDensities = "global",
        among: Masks | None = None,
        normalise: Normalise = "none",
    ) -> Masks:
        """Masks of the units with the highest scores, exactly `density` of all units or cost.

        scope: "global" ranks all layers together; otherwise each layer keeps its allocated number. among: only these units
        may be kept (None: all). normalise="layer": for nonnegative scores whose scale differs between layers; in a global
        ranking of channels or blocks, scores are made `comparable`, and every layer first keeps at least one unit and
        `FLOOR * density` of its units. "joint": the same, and each score is multiplied by the number of weight tensors that
        its unit is a part of. Raises UserError when the allocation is impossible.
        """
        if normalise != "none" and scope == "global" and self.pooled:
            floor = {name: max(1, int(FLOOR * density * math.prod(shape))) for name, shape in self.shapes.items()}
            scores = self.comparable(scores, among)
            if normalise == "joint":
                scores = {name: score * self.tensors_of(name) for name, score in scores.items()}
            scores = first_of_each(scores, floor, among)
        ordered, room = self._ordered(scores, among), self._room(among)
        if self.exact:
            return self._chosen(ordered, density, scope, room)
        total = sum(math.prod(shape) for shape in self.shapes.values())
        most = total if room is None else sum(room.values())
        fewest = 1 if scope == "global" else len(self.shapes)  # by layer, each keeps one
        return _nearest(density, fewest, most, lambda k: self._chosen(ordered, k / total, scope, room), self.cost)

    def relevant(self, relevance: Tensors, density: float | None, scope: str | LayerDensities = "global") -> Masks:
        """Masks of the `density` most relevant units; without a density, of all units with m >= 0 (likely to be kept)."""
        return self._likely(relevance) if density is None else self.keep(relevance, density, scope)

    def regrow(self, masks: Masks, keep: Tensors, grow_by: Tensors, fraction: float) -> Masks:
        """Every layer drops `fraction` of its units, the lowest by |keep|, and grows as many, the highest by |grow_by|.

        Each layer's count in `masks` stays the same. See `topology.regrow.regrow`.
        """
        return self.grow(drop(masks, keep, fraction), grow_by, masks)

    def grow(self, masks: Masks, by: Tensors, like: Masks) -> Masks:
        """Masks in which every layer of `masks` grows dead units, the highest by |by|, up to its count in `like`."""
        return grow(masks, by, like)

    def cost(self, masks: Masks) -> float:
        """The fraction of the dense network that `masks` keep: of its units, or of its cost when there are prices."""
        return masks.density if self.prices is None else self._cost(self._kept(masks))

    def _cost(self, kept: Mapping[str, int]) -> float:
        """The fraction of the cost, given the number of kept weights of each layer; without prices every weight costs 1."""
        prices = self.prices or dict.fromkeys(self.weights, 1.0)
        dense = sum(prices[name] * math.prod(shape) for name, shape in self.weights.items())
        return (self.whole + sum(prices[name] * number for name, number in kept.items())) / (self.whole + dense)

    def reached(self, masks: Masks, density: float) -> bool:
        """Whether `masks` are at most as dense as `density`; within the cost of one unit when densities are of cost."""
        if self.exact:
            return masks.kept <= count(density, masks.numel)
        return self.cost(masks) <= density + self.coarseness

    @property
    def coarseness(self) -> float:
        """The largest cost of one unit (or of one step of units)."""
        total, ones = 0.0, {name: torch.ones(shape, dtype=torch.bool) for name, shape in self.shapes.items()}
        for name, one in ones.items():
            less = one.clone()
            less.view(-1)[: self.steps.get(name, 1)] = False
            total = max(total, 1 - self.cost(Masks({**ones, name: less})))
        return total

    @property
    def exact(self) -> bool:
        """Whether a density is a number of units; otherwise the number is searched for."""
        return self.prices is None

    def _kept(self, masks: Masks) -> dict[str, int]:
        """The number of weights kept in each layer."""
        return {name: alive(mask) for name, mask in self.expand(masks).items()}

    def _likely(self, relevance: Tensors) -> Masks:
        return Masks({name: m.detach() >= 0 for name, m in relevance.items()})

    def _ordered(self, scores: Tensors, among: Masks | None) -> Tensors:
        """Scores for the selection; units that may not be chosen get -inf."""
        if among is None:
            return scores
        return {name: score.masked_fill(~among[name], -math.inf) for name, score in scores.items()}

    def _room(self, among: Masks | None = None) -> dict[str, int] | None:
        """The maximum number of units in each layer; None: all of them."""
        return None if among is None else {name: alive(mask) for name, mask in among.items()}

    def _chosen(self, ordered: Tensors, density: float, scope: str | LayerDensities, room: Mapping[str, int] | None) -> Masks:
        if scope == "global":
            return keep_global(ordered, count(density, sum(math.prod(shape) for shape in self.shapes.values())))
        return keep_by_layer(ordered, allocate(self.shapes, density, scope, room))


class NM(Units):
    """At most `n` of every `m` neighbouring weights along the inputs are kept.

    The inputs are the second dimension, and the first of the weights in `inputs_first`.

    A remainder shorter than m is a group too. Source: Zhou et al. 2021, arXiv:2102.04010; Mishra et al. 2021,
    arXiv:2104.08378, for 2:4 on sparse tensor cores.
    """

    def __init__(
        self,
        weights: Shapes,
        n: int,
        m: int,
        prices: Mapping[str, float] | None = None,
        whole: float = 0.0,
        inputs_first: Container[str] = (),
    ) -> None:
        super().__init__(weights, prices, whole)
        self.n, self.m = n, m
        self.along = {name: int(name not in inputs_first) for name in self.weights}  # the dimension of the inputs

    def check(self, density: float | None, scope: str | LayerDensities = "global") -> None:
        most = self._cost(self._most)
        if density is None or density > most + 1e-9:
            asked, of = "a density is needed" if density is None else f"not {density:g}", "cost" if self.prices else "weights"
            raise UserError(f"{self.n}:{self.m} keeps at most {most:g} of the {of} of this network: {asked}")
        super().check(density, scope)

    def _likely(self, relevance: Tensors) -> Masks:
        first = {name: self._first(m.detach(), self.along[name]) for name, m in relevance.items()}
        return Masks({name: (m.detach() >= 0) & first[name] for name, m in relevance.items()})

    def grow(self, masks: Masks, by: Tensors, like: Masks) -> Masks:
        grown = {}
        for name, mask in masks.items():
            _check_numbers(by[name])
            missing = alive(like[name]) - alive(mask)
            open_ = self._first(by[name].abs().masked_fill(mask, math.inf), self.along[name]) & ~mask  # where a group has room
            chosen = top_k(by[name], min(missing, alive(open_)), among=open_, magnitude=True)
            grown[name] = mask | chosen
            if rest := missing - alive(chosen):  # a layer denser than n of m
                grown[name] |= top_k(by[name], rest, among=~grown[name], magnitude=True)
        return Masks(grown)

    def _ordered(self, scores: Tensors, among: Masks | None) -> Tensors:
        """Scores in which the n highest of each group rank above all others. Raises NotANumber for NaN."""
        found = {}
        for name, score in super()._ordered(scores, among).items():
            _check_numbers(score)
            living = score > -math.inf
            level = score.detach() - score.detach()[living].min() if bool(living.any()) else score.detach()
            behind = -1 / (level + torch.finfo(level.dtype).tiny)
            found[name] = torch.where(self._first(score, self.along[name]), level, behind).masked_fill(~living, -math.inf)
        return found

    def _chosen(self, ordered: Tensors, density: float, scope: str | LayerDensities, room: Mapping[str, int] | None) -> Masks:
        """Up to the n:m maximum, groups keep at most n; above it (a dense phase of a schedule), n first and then more."""
        total = sum(math.prod(shape) for shape in self.shapes.values())
        fits = {name: alive(self._first(score, self.along[name]) & (score > -math.inf)) for name, score in ordered.items()}
        if count(density, total) <= sum(fits.values()):
            room, fits = fits, dict.fromkeys(fits, 1)
        if scope == "global":
            return super()._chosen(ordered, density, scope, room)
        return keep_by_layer(ordered, allocate(self.shapes, density, scope, room, fits))

    @property
    def _most(self) -> dict[str, int]:
        """The maximum number of kept weights of each layer."""
        found = {}
        for name, shape in self.shapes.items():
            inputs = shape[self.along[name]]
            whole, rest = divmod(inputs, self.m)
            found[name] = math.prod(shape) // inputs * (whole * self.n + min(self.n, rest))
        return found

    def _first(self, scores: Tensor, along: int = 1) -> Tensor:
        """The n highest of each group, the first of equal ones: bool, of the scores' shape."""
        lined = scores.detach().transpose(along, -1)  # inputs side by side
        padded = F.pad(lined, (0, -lined.shape[-1] % self.m), value=-math.inf)
        groups = padded.reshape(*padded.shape[:-1], -1, self.m)
        return _highest(groups, self.n).reshape(padded.shape)[..., : lined.shape[-1]].transpose(along, -1)


class Blocks(Units):
    """Blocks of `size` by `size` weights of each layer's matrix (outputs, inputs * kernel). Blocks at the edges are smaller."""

    pooled = True

    def __init__(self, weights: Shapes, size: int, prices: Mapping[str, float] | None = None, whole: float = 0.0) -> None:
        super().__init__(weights, prices, whole)
        self.size = size
        self.shapes = {name: (-(-shape[0] // size), -(-math.prod(shape[1:]) // size)) for name, shape in self.weights.items()}

    def pool(self, scores: Tensors) -> Tensors:
        return {name: self._sums(score) / self._sums(torch.ones_like(score)) for name, score in scores.items()}

    def comparable(self, scores: Tensors, among: Masks | None = None) -> Tensors:
        return {name: layer_adaptive(score.detach(), None if among is None else among[name]) for name, score in scores.items()}

    def expand(self, units: Tensors) -> Tensors:
        found = {}
        for name, unit in units.items():
            rows, columns = self.weights[name][0], math.prod(self.weights[name][1:])
            wide = unit.repeat_interleave(self.size, 0).repeat_interleave(self.size, 1)
            found[name] = wide[:rows, :columns].reshape(self.weights[name])
        return found

    def _sums(self, weight: Tensor) -> Tensor:
        matrix = weight.flatten(1)
        padded = F.pad(matrix, (0, -matrix.shape[1] % self.size, 0, -matrix.shape[0] % self.size))
        rows, columns = (length // self.size for length in padded.shape)
        return padded.reshape(rows, self.size, columns, self.size).sum((1, 3))


def _check_numbers(scores: Tensor) -> None:
    """Raise NotANumber for NaN."""
    if bool(scores.isnan().any()):
        raise NotANumber("a score is not a number")


def _highest(groups: Tensor, n: int) -> Tensor:
    """The n highest along the last dimension, the first of equal ones: bool, of the groups' shape."""
    if groups.shape[-1] > 8:
        order = groups.argsort(dim=-1, descending=True, stable=True)
        return torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order[..., :n], True)
    each = groups.unbind(-1)
    before = [torch.zeros_like(one, dtype=torch.int8) for one in each]  # ranks in the group; 5 times as fast for 2:4
    for right, one in enumerate(each):
        for left in range(right):
            wins = each[left] >= one
            before[right] += wins
            before[left] += ~wins
    return torch.stack([count < n for count in before], -1)


def _nearest(density: float, fewest: int, most: int, choose: Callable[[int], Masks], cost: Callable[[Masks], float]) -> Masks:
    """The topology whose cost is nearest to `density`, by bisection over the number of units."""
    low, high = min(fewest, most), most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(choose(middle)) <= density else (low, middle)
    return min((choose(low), choose(high)), key=lambda masks: abs(cost(masks) - density))


def parse(unit: str) -> tuple[str, Sequence[int]]:
    """The kind and sizes of a unit: `weight`, `channel`, `2:4` -> ("n:m", (2, 4)), `block:16`. Raises UserError."""
    kind, _, size = unit.partition(":")
    if unit in ("weight", "channel"):
        return unit, ()
    if kind == "block" and size.isdecimal() and int(size) > 1:
        return kind, (int(size),)
    if kind.isdecimal() and size.isdecimal() and 0 < int(kind) < int(size):
        return "n:m", (int(kind), int(size))
    raise UserError(f"a unit is weight, channel, n:m such as 2:4, or block:size such as block:16, got {unit!r}")
