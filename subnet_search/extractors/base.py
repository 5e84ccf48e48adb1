"""The base classes of all methods, and what a method declares. An extractor holds hyperparameters and no state.

A run calls an extractor in this order: `check` (can this run be done at all?), `begin` (which units are alive at first), then
in every training step `sample` (differentiable gates, where relevance is learned), `penalty` (a term of the loss), after the
backward pass `adjust` (change gradients), after the optimizer's step `step` (a new topology), and at the end `finish` (the
topology to keep). The network holds all state; a probe gives gradients before training.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar, get_args

import torch
from torch import Tensor

from subnet_search.core.settings import Settings
from subnet_search.extractors.context import Clock as Clock
from subnet_search.extractors.context import Network, Probe, Span, Tensors
from subnet_search.extractors.fields import Interval, PhaseEnd, Rescaling, marked
from subnet_search.topology.masks import Masks
from subnet_search.topology.select import LayerShares
from subnet_search.topology.units import Units

Learned = Literal["weights", "relevance", "both"]
Rewind = Literal["none", "weights", "schedule", "both"]


@dataclass(frozen=True)
class Paper:
    """Where a method comes from, and which of its equations the file implements."""

    authors: str
    year: int
    arxiv: str
    title: str
    formula: str

    def __str__(self) -> str:
        return f"{self.authors} {self.year}, arXiv:{self.arxiv}"

    @property
    def short(self) -> str:
        """As papers are cited in running text: Frankle & Carbin 2019, Ramanujan et al. 2020."""
        first, *others = self.authors.replace(" & ", ", ").split(", ")
        rest = "" if not others else f" & {others[0]}" if len(others) == 1 else " et al."
        return f"{first}{rest} {self.year}"


@dataclass(frozen=True)
class Paradigm:
    """The answers that tell one family of methods from another."""

    mask_from: str  # when and from what the topology is found
    weights_from: str  # which weights the subnetwork has
    schedule: str  # how density moves over the run
    trains_after: bool  # whether weights are trained once the topology is fixed
    units: tuple[str, ...] = ("weight",)

    def __str__(self) -> str:
        return f"mask {self.mask_from}; weights {self.weights_from}; {self.schedule}"


@dataclass(frozen=True)
class Published:
    """A method's published training settings, as its own source has them: a paper's section, or a file of a repository.

    The recipe fills what a run with the method leaves open. The length is stated and never a default.
    """

    source: str
    """Where the settings were read, or "none: ..." with the reason why none apply."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Keys of Recipe: the rate and the schedule, and the others where they differ from Recipe's defaults."""
    epochs: int | None = None
    """Passes over the training images of the whole published run, all its rounds together. None: not stated in epochs."""
    note: str = ""
    """What the recipe cannot say: other networks' settings, warm-up, a second phase; and what was not verified."""

    @classmethod
    def none(cls, reason: str, note: str = "") -> "Published":
        """For a method to which no published settings apply: Recipe's defaults are what is left open."""
        return cls(f"none: {reason}", note=note)

    def settings(self) -> str:
        """The recipe in words, such as "lr 0.1, schedule cosine"."""
        return settings_in_words(self.recipe)


def settings_in_words(recipe: Mapping[str, Any]) -> str:
    """Keys of a recipe with their values, in one line."""
    return ", ".join(f"{key} {_value_in_words(value)}" for key, value in recipe.items())


def _value_in_words(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(str, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Change:
    """What happens to a network between two steps. Weights that are newly alive begin at zero, with fresh state."""

    masks: Masks | None = None
    """The new topology, of units. None: it stays."""
    survivors: Masks | None = None
    """The units that keep their weights and optimizer state; others in `masks` begin at zero, even if they were alive.
    None: all that are alive before and after keep them."""
    rewind: Rewind = "none"
    """Go back to the weights of the step that `rewinds_to` named, to the schedule's point at step `schedule_to`, or both."""
    schedule_to: int = 0
    """The step whose learning rate is next, where the schedule is rewound."""
    learn: Learned | None = None
    """What is learned from now on. Relevance that is no longer learned is settled in the weights."""
    weights: Tensors | None = None
    """New values for some weights."""
    relevance: Tensors | None = None
    """New values for the relevance of some units."""
    memory: Tensors | None = None
    """What to keep for later steps, by a name, in place of what is kept by these names."""
    reset_optimizer: bool = False
    """Begin the optimizer's state anew: momentum, running averages."""
    winners: float | None = None
    """The share of each layer's filters that an input computes from now on, in a dynamic network."""


class Extractor(Settings, ABC):
    """A method that finds a subnetwork. Frozen; holds numbers, never tensors."""

    name: ClassVar[str]
    """What it goes by in configurations, trials and files: `package.module:Class`, or the registered name of this package's."""
    paper: ClassVar[Paper]
    paradigm: ClassVar[Paradigm]
    learns: ClassVar[Learned] = "weights"
    """What is learned at first."""
    dynamic: ClassVar[bool] = False
    """Whether each input chooses the filters that it computes: the network's convolutions get gates (nets/dynamic.py)."""
    published: ClassVar[Published] = Published.none("the method states none")
    """The published training settings: what a run with this extractor leaves open takes them. Every method states its own."""

    replaces_step: ClassVar[bool] = False
    """Whether a change takes the place of the optimizer's step: `step` is then asked before the optimizer."""
    changes_weights: ClassVar[bool] = False
    """Whether weights that are not trained end as others than they began, so that the seed does not make them."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        cls.name = f"{cls.__module__}:{cls.__qualname__}"

    @property
    def needs_momentum(self) -> bool:
        """Whether `step` looks at `net.momentum`, which costs four bytes a weight."""
        return False

    def looks_at(self, clock: Clock) -> bool:
        """Whether `step` looks at `net.features` of the training step that begins at `clock`."""
        return False

    @property
    def target_density(self) -> float | None:
        """The density asked for. None: the method has no `density`, or none was set."""
        return getattr(self, "density", None)

    def check(self, units: Units, clock: Clock) -> None:
        """Raise UserError when no run of `clock.total` steps on a network of these units can do what is asked for.

        Default: checks the density and how layers share it, then every span marked as a `PhaseEnd`, then every interval.
        """
        shared = layer_field(type(self))
        units.check(self.target_density, getattr(self, shared) if shared else "global")
        for name, phase in marked(type(self), PhaseEnd).items():
            start = getattr(self, phase.start) if isinstance(phase.start, str) else phase.start
            clock.check_end(f"{self.name}.{name}", start, getattr(self, name))
        for name in marked(type(self), Interval):
            clock.check_interval(f"{self.name}.{name}", getattr(self, name), least=2 if self.replaces_step else 1)

    def rewinds_to(self, clock: Clock) -> int | None:
        """The step whose weights a later change goes back to; a copy is kept from then on. None: no change does."""
        return None

    def schedule_steps(self, clock: Clock) -> int:
        """Steps over which the recipe's learning rate runs its course, from the start or from a rewind of the schedule."""
        return clock.total

    def begin(self, net: Network, clock: Clock, probe: Probe) -> Change:
        """What to change before the first step. Default: nothing, so everything lives."""
        return Change()

    def penalty(self, net: Network, clock: Clock) -> Tensor | None:
        """A scalar to add to the loss of this step, differentiable in what is learned."""
        return None

    def step(self, net: Network, clock: Clock) -> Change | None:
        """A change, or None. Asked before training (`clock.step` is 0) and after every optimizer's step.

        Weights are those after the step; gradients are those of its batch, of dead weights too (zeros before training).
        With `replaces_step`: asked before every optimizer's step, from `clock.step` 0 on; a change takes its place.
        """
        return None

    def adjust(self, net: Network, clock: Clock) -> None:
        """Change gradients in place before the optimizer sees them. Default: leave them."""

    def finish(self, net: Network) -> Masks:
        """The topology of units to keep and to evaluate, at any time. Default: the masks in force."""
        return net.masks

    def reached(self, net: Network, masks: Masks, clock: Clock) -> bool:
        """Whether the network is as small as was asked for: early stopping goes back to no epoch before.

        masks: what `finish` gave; clock: the next step. Default: when `density` is met, where there is one.
        """
        return self.target_density is None or net.units.reached(masks, self.target_density)


class RelevanceLearner(Extractor):
    """An extractor that learns how relevant each weight is, alone or together with the weights.

    The network computes with s * w * gate, where s is the rescaling. Gates are mostly 0 or 1; other values are settled
    in the weights at the end. A change with `learn="weights"` ends the search, and plain training in the masks follows.
    """

    learns: ClassVar[Learned] = "relevance"
    keeps_count: ClassVar[bool] = False
    """Whether every sample keeps the same number of a layer's units, whatever their relevance: numel/nnz is a constant then."""

    rescale: Rescaling = "none"

    @abstractmethod
    def initial(self, weight: Tensor, rng: torch.Generator) -> Tensor:
        """The relevance that a layer's units begin with: of their shape, or of one that broadcasts to it.

        weight: where each weight is a unit the weights, else the mean |w| of each unit.
        """

    @abstractmethod
    def sample(self, net: Network, clock: Clock) -> dict[str, Tensor]:
        """The gates of one step, of the units' shapes, differentiable in what is learned."""

    @abstractmethod
    def finish(self, net: Network) -> Masks:
        """The topology that the relevance stands for, without chance."""

    def gates(self, net: Network, masks: Masks) -> dict[str, Tensor]:
        """The gates without chance, under the masks that `finish` gave. Default: 1 where a weight is kept."""
        return {name: mask.to(next(iter(net.weights.values())).dtype) for name, mask in masks.items()}

    def objective(self, logits: Tensor, dense: Callable[[], Tensor]) -> Tensor | None:
        """A loss in place of the cross-entropy with the labels; `dense()` gives the logits of all weights.

        logits: (batch, classes). Default: None, the cross-entropy.
        """
        return None


def raised_intervals(extractor: Extractor, clock: Clock) -> dict[str, int]:
    """The intervals that are longer in this run than the fraction that was asked for, in steps, by their names."""
    spans: dict[str, Span] = {name: getattr(extractor, name) for name in marked(type(extractor), Interval)}
    return {
        f"{extractor.name}.{name}": clock.interval(every)
        for name, every in spans.items()
        if clock.interval(every) > max(1, clock.steps(every))
    }


def only_begins(method: type[Extractor]) -> bool:
    """Whether all that a method does to the topology, it does before the first step."""
    return method.begin is not Extractor.begin and method.step is Extractor.step and method.finish is Extractor.finish


def trains_weights(method: type[Extractor]) -> bool:
    """Whether a method trains weights at all: with its relevance, after it, or alone."""
    return method.learns != "relevance" or method.paradigm.trains_after


def layer_field(cls: type[Extractor]) -> str | None:
    """The hyperparameter that takes a relative density for each layer, `allocation` or `scope`; None: no such."""
    return next((name for name, field in cls.model_fields.items() if LayerShares in get_args(field.annotation)), None)


E = TypeVar("E", bound=type[Extractor])
