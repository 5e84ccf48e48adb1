"""Search domains, declared with a hyperparameter: `density: Annotated[float, Real(0.01, 0.5, log=True)] = 0.1`.

A domain is the default search range of a study. Valid values are defined by the type and its constraints
(`Annotated[float, Gt(0), Le(1), Real(0.01, 0.5, log=True)]`), so users may set values outside the domain.
This module does not use Optuna.
"""

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Generic, TypeAlias, TypeVar

from pydantic import BaseModel

from subnet_search.core.errors import UserError, shown

N = TypeVar("N", int, float)


@dataclass(frozen=True)
class _Range(Generic[N]):
    low: N
    high: N
    log: bool = False
    step: N | None = None

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise UserError(f"the low end of a range must not be above the high end, got {self.low:g} to {self.high:g}")
        if self.log and self.low <= 0:
            raise UserError(f"a logarithmic range must start above 0, got {self.low:g}")
        if self.step is not None:
            self._check_step(self.step)

    def _check_step(self, step: N) -> None:
        if self.log:
            raise UserError("a logarithmic range has no step")
        if isinstance(step, bool) or not isinstance(step, int | float) or not 0 < step < math.inf:
            raise UserError(f"the step of a range must be a number above 0, got {shown(step)}")
        if (Decimal(str(self.high)) - Decimal(str(self.low))) % Decimal(str(step)):
            raise UserError(f"the high end of a range must be a whole number of steps above the low end, got {self}")

    def bounds(self) -> tuple[N, ...]:
        """The lowest and the highest value."""
        return self.low, self.high

    def _scale(self) -> str:
        return f"{', log' if self.log else ''}{'' if self.step is None else f', step {self.step:g}'}"


class Real(_Range[float]):
    """Real numbers from `low` to `high`, both included; `log`: sampled on a log scale.

    step: the distance between two values; `high` is a whole number of steps above `low`. Raises UserError for an empty range.
    """

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{self._scale()}"


class Int(_Range[int]):
    """Integers from `low` to `high`, both included; `log`: sampled on a log scale.

    step: the distance between two values; `high` is a whole number of steps above `low`. Raises UserError for an empty range.
    """

    def __str__(self) -> str:
        return f"{self.low} to {self.high}{self._scale()}"


@dataclass(frozen=True, init=False)
class OneOf:
    """One of the given choices, unordered. Raises UserError without choices."""

    choices: tuple[Any, ...]

    def __init__(self, *choices: Any) -> None:
        if not choices:
            raise UserError("a choice needs at least one value")
        object.__setattr__(self, "choices", choices)

    def __str__(self) -> str:
        return " | ".join("none" if choice is None else str(choice) for choice in self.choices)

    def bounds(self) -> tuple[Any, ...]:
        """All choices."""
        return self.choices


Domain: TypeAlias = Real | Int | OneOf


def domains(model: type[BaseModel]) -> dict[str, Domain]:
    """The declared domains of a model's fields, by field name."""
    fields = model.model_fields.items()
    return {name: item for name, field in fields for item in field.metadata if isinstance(item, Real | Int | OneOf)}
