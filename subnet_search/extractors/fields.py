"""Hyperparameters that several methods share: type, bounds, search domain and help text, each declared once.

    density: Density = 0.1
    every: Annotated[Every, Real(0.02, 0.1, log=True)] = 0.05

A method takes another search domain by `Annotated`, as `every` does here, and another help text by a docstring below the field.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Ge, Gt, Le
from pydantic import BaseModel, ValidationError, ValidationInfo, ValidatorFunctionWrapHandler, WrapValidator

from subnet_search.core.errors import UserError
from subnet_search.core.search_domains import OneOf, Real
from subnet_search.extractors.context import Span
from subnet_search.topology import rescale, units
from subnet_search.topology.select import LayerDensities, layer_name


@dataclass(frozen=True)
class Help:
    """The help text of a field without a docstring."""

    text: str


@dataclass(frozen=True)
class Interval:
    """Marks a span as the interval between two changes: `Clock.interval` says how many steps it is."""


@dataclass(frozen=True)
class PhaseEnd:
    """Marks a span as the end of a phase: not before the start of the phase, and not after the end of the run.

    start: a step, or the name of the field that holds the start.
    """

    start: int | str = 0


def _checked(value: Any, rule: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    try:
        shares = _by_layer(value) if isinstance(value, Mapping) else rule(value)
    except ValidationError as error:
        text = error.errors()[0]["msg"]  # of the rules, which come first
        raise UserError(f"{text}, or relative densities by layer, got {value!r}") from error
    if shares != "global" and info.data.get("density", 1) is None:
        raise UserError("without a density there is none to share among the layers: set density too")
    return shares


def _by_layer(given: Mapping[Any, Any]) -> dict[str, float]:
    shares = {}
    for key, value in given.items():
        name = layer_name(str(key))  # in YAML, the layers of a Sequential are numbers
        try:
            shares[name] = float(value)
        except (TypeError, ValueError):
            shares[name] = math.nan
        if not 0 < shares[name] < math.inf:
            raise UserError(f"the relative density of layer {name} must be above 0, got {value!r}")
    if len(shares) < len(given):
        raise UserError(f"a layer is named twice: {', '.join(map(str, given))}")
    return shares


Density = Annotated[
    float,
    Gt(0),
    Le(1),
    Real(0.01, 0.5, log=True),
    Help("Fraction of prunable weights kept; with units of several weights, of the units."),
]
ChannelDensity = Annotated[Density, Real(0.1, 0.9), Help("Fraction of channels kept.")]

# How a density is divided among layers: by a rule, or by relative densities of all layers. `{conv1: 2, conv2: 1, fc: 0.5}`
# keeps twice as large a part of conv1 as of conv2; the density over all weights stays what was asked for, and a layer that
# would be more than dense is dense. Layers go by their modules' names, with or without `.weight`.
PlainAllocation = Annotated[
    Literal["uniform", "er", "erk"] | LayerDensities,
    WrapValidator(_checked),
    Help("How the density is divided among layers."),
]
"""Without a search domain: for methods that are published with one rule."""
Allocation = Annotated[PlainAllocation, OneOf("uniform", "er", "erk")]
PlainScope = Annotated[
    Literal["global", "uniform", "erk"] | LayerDensities,
    WrapValidator(_checked),
    Help("Whether units compete over all layers, or each layer gets its share of the density."),
]
"""Without a search domain."""
Scope = Annotated[PlainScope, OneOf("global", "uniform", "erk")]
Normalise = Annotated[
    units.Normalise,
    Help(
        "Where channels or blocks compete over all layers: bring each layer's scores to one scale (layer); the same, and "
        "multiply by the number of layers that are coupled, so that channels of a residual stream are pruned last (joint); "
        "or compare raw scores (none). Single weights and n:m always compete by raw scores."
    ),
]
Isometry = Annotated[
    Literal["none", "orthogonal"],
    Help(
        "What restores dynamical isometry after each pruning: nothing, or orthogonal weights (OrthP, arXiv:2105.05916), the QR "
        "factor of each layer's kept rows and columns. Needs unit: channel, and training afterwards."
    ),
]
"""Without a search domain: with single weights it is refused."""
IsometryGain = Annotated[
    float,
    Gt(0),
    Help("Singular value of orthogonal weights: 1 for linear layers; the authors use 1.414 (the square root of 2) with ReLU."),
]

Every = Annotated[
    Span, Interval(), Real(0.005, 0.1, log=True), Help("Interval between two changes: steps, or a fraction of the run.")
]
"""A fraction is raised to 10 steps, or to a quarter of a run of fewer than 40 steps."""
Until = Annotated[Span, PhaseEnd(), Real(0.5, 1.0), Help("When changes stop: steps, or a fraction of the run.")]
DropFraction = Annotated[float, Gt(0), Le(1), Real(0.05, 0.6)]
Grow = Annotated[
    Literal["gradient", "momentum", "random"],
    OneOf("gradient", "momentum", "random"),
    Help("What decides which dead weights grow: |gradient| of this batch, |running mean of gradients|, or chance."),
]

Strength = Annotated[float, Ge(0), Real(1e-5, 1e-2, log=True), Help("Weight of the penalty in the loss (lambda).")]
Rounds = Annotated[int, Ge(1), Help("Number of times that weights are dropped.")]
Images = Annotated[
    Annotated[int, Ge(1)] | None,
    Help("Training images in the batch that gradients are measured on. None: as many as in a training step."),
]
Invert = Annotated[bool, Help("Keep the lowest scores instead: a sanity check.")]
Rescaling = Annotated[
    rescale.Rescale,
    OneOf("none", "learned", "dynamic", "fan_in"),
    Help("Factor on each layer after weights are dropped: learned (a scalar), dynamic (numel/nnz), fan_in (per output)."),
]
LearnedRescaling = Annotated[
    Literal["none", "learned"], OneOf("none", "learned"), Help("Factor on each layer: none, or learned (a scalar).")
]
"""For gates that are not 0 or 1, which the factors numel/nnz and fan_in would take for counts."""


Mark = TypeVar("Mark")


def marked(model: type[BaseModel], kind: type[Mark]) -> dict[str, Mark]:
    """The mark of this kind on every field that has one, by field name; of two, the one declared last."""
    return {name: mark for name, field in model.model_fields.items() for mark in field.metadata if isinstance(mark, kind)}
