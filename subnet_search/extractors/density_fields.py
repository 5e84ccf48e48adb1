"""The two hyperparameters that share a density among layers: `allocation` by layer, `scope` by layer or over all.

Each is a rule, or a relative density for every layer: `{conv1: 2, conv2: 1, fc: 0.5}` keeps a part of conv1 twice as
large as that of conv2, and the density over all weights is met all the same. A layer that would be more than dense is
dense. Layers are called by their modules' names, as `layer_name` has them; with `.weight` at the end they are known too.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ValidationError, ValidationInfo, ValidatorFunctionWrapHandler, WrapValidator

from subnet_search.core.errors import UserError
from subnet_search.core.search_domains import OneOf
from subnet_search.topology.select import LayerDensities, layer_name


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


PlainAllocation = Annotated[Literal["uniform", "er", "erk"] | LayerDensities, WrapValidator(_checked)]
"""How a density is shared among layers. Without a domain: where a published method has but one rule, studies keep to it."""
PlainScope = Annotated[Literal["global", "uniform", "erk"] | LayerDensities, WrapValidator(_checked)]
"""Whether weights compete over all layers, or each layer gets its share. Without a domain."""
Allocation = Annotated[PlainAllocation, OneOf("uniform", "er", "erk")]
Scope = Annotated[PlainScope, OneOf("global", "uniform", "erk")]
