"""The base classes of all methods, and what a method declares. An extractor holds hyperparameters and no state.

A run calls an extractor in this order: `check` (can this run be done at all?), `begin` (which units are alive at first), then
in every training step `sample` (differentiable gates, where relevance is learned), `penalty` (a term of the loss), after the
backward pass `adjust` (change gradients), after the optimizer's step `step` (a new topology), and at the end `finish` (the
topology to keep). The network holds all state; a probe gives gradients before training.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self, TypeVar, get_args

import torch
from torch import Tensor

from subnet_search.core.nested import Brief
from subnet_search.core.settings import Settings
from subnet_search.extractors.context import Clock as Clock
from subnet_search.extractors.context import Network, Probe, Span, Tensors
from subnet_search.extractors.fields import Interval, PhaseEnd, Rescaling, marked
from subnet_search.topology.masks import Masks
from subnet_search.topology.select import LayerDensities
from subnet_search.topology.units import Units

Learned = Literal["weights", "relevance", "both"]
Rewind = Literal["none", "weights", "schedule", "both"]


@dataclass(frozen=True)
class Paper:
    """The paper of a method, and the formula that its file implements."""

    authors: str
    """Last names: "Frankle & Carbin", "Zhou et al."."""
    year: int
    """Of the publication, or of the preprint where there is no other."""
    arxiv: str
    """The arXiv number, as "1803.03635", without a version; another identifier where the paper is not on arXiv."""
    title: str
    """The title as published."""
    formula: str
    """What decides which units are kept, in one line of plain text."""

    def __str__(self) -> str:
        return f"{self.authors} {self.year}, arXiv:{self.arxiv}"

    @property
    def short(self) -> str:
        """A citation for running text: Frankle & Carbin 2019, Ramanujan et al. 2020."""
        first, *others = self.authors.replace(" & ", ", ").split(", ")
        rest = "" if not others else f" & {others[0]}" if len(others) == 1 else " et al."
        return f"{first}{rest} {self.year}"


@dataclass(frozen=True)
class Paradigm:
    """What the catalogue compares methods by."""

    mask_from: str
    """When and from what the topology is found."""
    weights_from: str
    """Which weights the subnetwork has."""
    schedule: str
    """How the density changes during the run."""
    trains_after: bool
    """Whether weights are trained once the topology is fixed."""
    units: tuple[str, ...] = ("weight",)
    """The kinds of units that the method can prune, of `EVERY_KIND`; the first is the default."""

    def __str__(self) -> str:
        return f"mask {self.mask_from}; weights {self.weights_from}; {self.schedule}"


@dataclass(frozen=True)
class Published:
    """A method's published training settings, from a section of its paper or a file of its authors' repository.

    A run takes from `recipe` what its configuration does not set. `epochs` is shown, and is never a default.
    """

    source: str
    """Where the settings were read, or "none: ..." with the reason why none apply."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Keys of Recipe: the learning rate and its schedule, and others where they differ from Recipe's defaults."""
    epochs: int | None = None
    """Length of the whole published run, all its rounds together. None: not stated in epochs."""
    note: str = ""
    """What a recipe cannot hold: settings of other networks, warm-up, a second phase; and what was not verified."""

    @classmethod
    def none(cls, reason: str, note: str = "") -> "Published":
        """For a method without published settings that apply, for this `reason`: Recipe's defaults are used."""
        return cls(f"none: {reason}", note=note)

    def settings(self) -> str:
        """The recipe in one line, such as "lr 0.1, schedule cosine"."""
        return ", ".join(f"{key} {_value_in_words(value)}" for key, value in self.recipe.items())


def _value_in_words(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(str, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, repr=False)
class Change(Brief):
    """A change to the network between two steps. Weights that grow begin at zero, with fresh optimizer state."""

    masks: Masks | None = None
    """The new topology, of units. None: unchanged."""
    survivors: Masks | None = None
    """The units that keep their weights and optimizer state; all others in `masks` begin at zero, also those alive before.
    None: all units that are alive before and after keep them."""
    rewind: Rewind = "none"
    """Go back to the weights of the step that `rewinds_to` gave, to the schedule's point at step `schedule_to`, or both."""
    schedule_to: int = 0
    """The step whose learning rate comes next, where the schedule is rewound."""
    learn: Learned | None = None
    """What is learned from now on. When relevance is no longer learned, its gates are folded into the weights."""
    weights: Tensors | None = None
    """New values for some weights."""
    relevance: Tensors | None = None
    """New values for the relevance of some units."""
    memory: Tensors | None = None
    """Tensors to store for later steps (`net.memory`), by name; each replaces a stored one of the same name."""
    reset_optimizer: bool = False
    """Reset the optimizer's state: momentum, running averages."""
    winners: float | None = None
    """The share of each layer's filters that an input computes from now on, in a dynamic network."""


class Extractor(Settings, ABC):
    """A method that finds a subnetwork. Frozen; holds numbers, never tensors.

    A run calls its methods with:

    net     the network: weights, gradients and masks, as tensors of the parameters' shapes, by the parameter's name
    clock   the number of steps done and of all steps, and random numbers
    probe   gradients on training data before the first step
    """

    name: ClassVar[str]
    """The name in configurations, trials and files: as registered in this package, else `package.module:Class`."""
    paper: ClassVar[Paper]
    paradigm: ClassVar[Paradigm]
    learns: ClassVar[Learned] = "weights"
    """What is learned at the start of a run."""
    dynamic: ClassVar[bool] = False
    """Whether each input chooses the filters that it computes: the network's convolutions get gates (nets/dynamic.py)."""
    published: ClassVar[Published] = Published.none("the method states none")
    """The published training settings; a run takes from them what its configuration does not set."""
    trained_defaults: ClassVar[Mapping[str, Any]] = {}
    """Defaults of hyperparameters for a network that starts from trained weights, where they differ."""

    replaces_step: ClassVar[bool] = False
    """Whether a change takes the place of the optimizer's step: `step` is then called before the optimizer."""
    changes_weights: ClassVar[bool] = False
    """Whether untrained weights are changed, so that the seed alone does not give the final ones."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        cls.name = f"{cls.__module__}:{cls.__qualname__}"

    def with_values(self, **values: Any) -> Self:
        """The same method with other hyperparameters, `values` by name, which are validated with the ones that were set.

        Raises pydantic.ValidationError, a ValueError, for an unknown hyperparameter and for a value that is not allowed.
        """
        return type(self).model_validate({**self.model_dump(exclude_unset=True), **values})

    @property
    def needs_momentum(self) -> bool:
        """Whether `step` reads `net.momentum`, which costs four bytes a weight. Default: with `grow` "momentum"."""
        return getattr(self, "grow", None) == "momentum"

    def looks_at(self, clock: Clock) -> bool:
        """Whether `step` reads `net.features` of the training step that begins at `clock`."""
        return False

    @classmethod
    def has_density(cls) -> bool:
        """Whether the method has a `density` to set."""
        return "density" in cls.model_fields

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

    def check_network(self, net: Network) -> None:
        """Raise UserError when the network lacks what the method looks at, as batch norms. Default: nothing is needed."""

    def rewinds_to(self, clock: Clock) -> int | None:
        """The step whose weights a later change goes back to; a copy is kept from that step on. None: no change does."""
        return None

    def schedule_steps(self, clock: Clock) -> int:
        """Length of the learning rate's schedule in steps, from the start or from a rewind of the schedule."""
        return clock.total

    def begin(self, net: Network, clock: Clock, probe: Probe) -> Change:
        """The change before the first step. Default: none, so every unit is alive."""
        return Change()

    def penalty(self, net: Network, clock: Clock) -> Tensor | None:
        """A scalar to add to the loss of this step, differentiable in what is learned."""
        return None

    def step(self, net: Network, clock: Clock) -> Change | None:
        """A change, or None. Called before training (`clock.step` is 0) and after every optimizer's step.

        Weights are those after the step; gradients are those of its batch, also of dead weights (zeros before training).
        With `replaces_step`: called before every optimizer's step, from `clock.step` 0 on; a change takes its place.
        """
        return None

    def adjust(self, net: Network, clock: Clock) -> None:
        """Change gradients in place before the optimizer's step. Default: leave them."""

    def finish(self, net: Network) -> Masks:
        """The topology of units to keep and to evaluate, at any time. Default: the current masks."""
        return net.masks

    def reached(self, net: Network, masks: Masks, clock: Clock) -> bool:
        """Whether the network is as small as was asked for: early stopping returns to no earlier epoch.

        masks: what `finish` returned; clock: the next step. True without a density to meet; a method that has no such
        hyperparameter reaches its size when its phases (`PhaseEnd`) have ended.
        """
        if not self.has_density():
            return all(clock.step >= clock.point(getattr(self, end)) for end in marked(type(self), PhaseEnd))
        return self.target_density is None or net.units.reached(masks, self.target_density)


class RelevanceLearner(Extractor):
    """An extractor that learns how relevant each weight is, alone or together with the weights.

    The network computes with s * w * gate, where s is the rescaling (`rescale`). Gates are mostly 0 or 1; other values are
    folded into the weights at the end. A change with `learn="weights"` ends the search, and the weights in the masks are
    trained.
    """

    learns: ClassVar[Learned] = "relevance"
    keeps_count: ClassVar[bool] = False
    """Whether every sample keeps the same number of units of a layer, so that numel/nnz is a constant."""

    draws_topologies: ClassVar[bool] = False
    """Whether relevance is, to the end of the run, the log-odds that a unit is kept, independently of all others."""

    rescale: Rescaling = "none"

    @abstractmethod
    def initial(self, weight: Tensor, rng: torch.Generator) -> Tensor:
        """The first relevance of a layer's units: of their shape, or of one that broadcasts to it.

        weight: the weights where each weight is a unit, else the mean |w| of each unit. rng: the generator to draw from.
        """

    @abstractmethod
    def sample(self, net: Network, clock: Clock) -> dict[str, Tensor]:
        """The gates of one training step, of the units' shapes, differentiable in what is learned."""

    @abstractmethod
    def finish(self, net: Network) -> Masks:
        """The topology that the current relevance gives, without random draws."""

    def gates(self, net: Network, masks: Masks) -> dict[str, Tensor]:
        """The gates without random draws, under the masks that `finish` returned. Default: 1 where a unit is kept."""
        return {name: mask.to(next(iter(net.weights.values())).dtype) for name, mask in masks.items()}

    @property
    def follows_dense(self) -> bool:
        """Whether relevance is learned on the distance of the dense network's outputs from the sparse network's.

        For classes this is the divergence D(sparse || dense). Default: it is learned on the task's loss.
        """
        return False


def raised_intervals(extractor: Extractor, clock: Clock) -> dict[str, int]:
    """Intervals that are longer in this run than the fraction asked for, in steps, by name."""
    spans: dict[str, Span] = {name: getattr(extractor, name) for name in marked(type(extractor), Interval)}
    return {
        f"{extractor.name}.{name}": clock.interval(every)
        for name, every in spans.items()
        if clock.interval(every) > max(1, clock.steps(every))
    }


def only_begins(method: type[Extractor]) -> bool:
    """Whether a method changes the topology only before the first step."""
    return method.begin is not Extractor.begin and method.step is Extractor.step and method.finish is Extractor.finish


def trains_weights(method: type[Extractor]) -> bool:
    """Whether a method trains weights at all: with relevance, after it, or alone."""
    return method.learns != "relevance" or method.paradigm.trains_after


def layer_field(cls: type[Extractor]) -> str | None:
    """The hyperparameter that takes a relative density for each layer, `allocation` or `scope`. None: there is none."""
    return next((name for name, field in cls.model_fields.items() if LayerDensities in get_args(field.annotation)), None)


E = TypeVar("E", bound=type[Extractor])
