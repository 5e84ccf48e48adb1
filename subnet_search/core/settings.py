"""What all models of settings have in common: frozen, no unknown keys, and no numbers that cannot be worked with."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, model_validator

from subnet_search.core.errors import UserError, shown

LARGEST = 3.4e38  # beyond it, a number is infinite in 32 bits, as networks compute


class Settings(BaseModel):
    """The base of everything that is read from a configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _numbers(cls, values: Any, made: ModelWrapValidatorHandler[Self]) -> Self:
        """Refuse them wherever they stand, in keys of any type too; those that a field refuses by itself, in its words."""
        _check(values, "", whole=True)
        settings = made(values)
        _check(values, "", whole=False)
        return settings


def _check(value: Any, key: str, whole: bool) -> None:
    """Raise UserError for a whole number, or for one with decimals, that is too large."""
    match value:
        case bool():
            return
        case int() if whole and not -(2**63) <= value < 2**64:
            raise UserError(f"{key}: a whole number has 64 bits at most, got {shown(value)}", key)
        case float() if not whole and not abs(value) <= LARGEST:
            raise UserError(f"{key}: input should be a finite number of at most {LARGEST:g}, got {value}", key)
        case Mapping():
            for name, inner in value.items():
                _check(inner, f"{key}.{name}" if key else str(name), whole)
        case list() | tuple():
            for place, inner in enumerate(value):
                _check(inner, f"{key}.{place}" if key else str(place), whole)
