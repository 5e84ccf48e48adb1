"""What every extractor is: numbers only, a few questions answered, and no state.

A run asks an extractor, in this order: `begin` (which units live at first), then at every step `step` (a new
topology?), `penalty` (what to add to the loss?) and, if relevance is learned, `sample` (a differentiable topology),
and at the end `finish` (the topology to keep). Extractors hold hyperparameters; the network holds all state.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol, TypeVar

import torch
from annotated_types import Gt, Le
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from subnet_search.domains import OneOf
from subnet_search.errors import UserError, unknown
from subnet_search.seeds import derive, generator
from subnet_search.topology.masks import Masks
from subnet_search.topology.rescale import Rescale
from subnet_search.topology.samplers import uniform_noise

Density = Annotated[float, Gt(0), Le(1)]


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
        """As papers are cited in running text: Ramanujan et al. 2020."""
        return f"{self.authors.split(',')[0].split(' & ')[0]} et al. {self.year}"


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
class Clock:
    """Where a run stands, and the only source of random numbers at that point."""

    step: int  # from 0, over the whole run
    total: int  # steps in the whole run
    seed: int

    @property
    def progress(self) -> float:
        """From 0 at the first step to 1 at the last."""
        return self.step / max(1, self.total - 1)

    def generator(self, *names: str, device: torch.device | str = "cpu") -> torch.Generator:
        """A generator for this step and these names: the same on every rank and after every resume."""
        return generator(self.seed, "step", self.step, *names, device=device)

    def uniform(self, name: str, like: Tensor) -> Tensor:
        """Uniform random numbers in (0, 1), of the shape, type and device of `like`."""
        return uniform_noise(like, derive(self.seed, "step", self.step, name))


class Network(Protocol):
    """What an extractor may ask of the network it works on. `training.supernet.Supernet` answers."""

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Prunable weights by name; while weights are learned, dead ones are exactly zero."""

    @property
    def relevance(self) -> Mapping[str, Tensor]:
        """Learned relevance of each prunable weight, by the same names; empty unless relevance is learned."""

    @property
    def masks(self) -> Masks:
        """The topology in force."""


@dataclass(frozen=True)
class Change:
    """A new topology to apply between two steps. Weights that are newly alive begin at zero, with fresh state."""

    masks: Masks


class Extractor(BaseModel, ABC):
    """A method that finds a subnetwork. Frozen; holds numbers, never tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: ClassVar[str]
    paper: ClassVar[Paper]
    paradigm: ClassVar[Paradigm]
    recipe: ClassVar[Mapping[str, Any]] = {}
    """The paper's training settings, where they differ from Recipe's: the defaults of a run with this extractor."""

    def begin(self, net: Network, clock: Clock) -> Masks:
        """The topology before the first step. Default: everything lives."""
        return Masks.ones(net.weights)

    def penalty(self, net: Network, clock: Clock) -> Tensor | None:
        """A scalar to add to the loss of this step, differentiable in what is learned."""
        return None

    def step(self, net: Network, clock: Clock) -> Change | None:
        """A new topology, or None. Called after the backward pass: gradients are dense. A change consumes its step."""
        return None

    def finish(self, net: Network) -> Masks:
        """The topology to keep and to evaluate, at any time. Default: the masks in force."""
        return net.masks


class RelevanceLearner(Extractor):
    """An extractor that leaves the weights as they are and learns how relevant each one is."""

    rescale: Annotated[Rescale, OneOf("none", "learned", "dynamic", "fan_in")] = "none"
    """Factor on each layer after weights are dropped: learned (a scalar), dynamic (numel/nnz), fan_in (per output)."""

    @abstractmethod
    def initial(self, weight: Tensor, rng: torch.Generator) -> Tensor:
        """The relevance that a weight tensor begins with, of its shape."""

    @abstractmethod
    def sample(self, relevance: Mapping[str, Tensor], clock: Clock) -> dict[str, Tensor]:
        """A topology for one step: tensors of 0 and 1, differentiable in relevance."""

    @abstractmethod
    def finish(self, net: Network) -> Masks:
        """The topology that the relevance stands for, without chance."""


REGISTRY: dict[str, type[Extractor]] = {}
E = TypeVar("E", bound=type[Extractor])


def register(name: str) -> Callable[[E], E]:
    """Make an extractor known by `name`: selectable, searchable, listed, documented and tested."""

    def add(cls: E) -> E:
        if name in REGISTRY and REGISTRY[name].__qualname__ != cls.__qualname__:
            raise ValueError(f"two extractors are called {name!r}")
        cls.name = name
        REGISTRY[name] = cls
        return cls

    return add


def extractor_names() -> list[str]:
    """The registered names, in alphabetical order."""
    return sorted(REGISTRY)


def get_extractor(name: str) -> type[Extractor]:
    """The class registered under `name`. Raises UserError with the nearest names."""
    if name not in REGISTRY:
        raise unknown("extractor", name, REGISTRY)
    return REGISTRY[name]


def create(spec: Any) -> Extractor:
    """An extractor from a name, from `{name: ..., hyperparameter: value}`, or from an extractor (returned as it is)."""
    if isinstance(spec, Extractor):
        return spec
    if isinstance(spec, str):
        return get_extractor(spec)()
    if isinstance(spec, Mapping) and "name" in spec:
        return get_extractor(str(spec["name"]))(**{key: value for key, value in spec.items() if key != "name"})
    raise UserError(f"an extractor is a name or {{name: ..., ...}}, got {spec!r}")
