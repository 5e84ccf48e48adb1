"""Parameter names of a study: a configuration key, and the condition under which the parameter is searched."""

from collections.abc import Mapping
from typing import Any

CONDITION = " @"  # separates key and condition


def parameter_name(key: str, condition: str) -> str:
    """The parameter name of a configuration key, with its condition, if any."""
    return f"{key}{CONDITION}{condition}" if condition else key


def key_and_condition(parameter: str) -> tuple[str, str]:
    """Split a parameter name into key and condition; the condition is empty if the parameter is always searched."""
    key, _, condition = parameter.partition(CONDITION)
    return key, condition


def by_key(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameter values by configuration key."""
    return {key_and_condition(name)[0]: value for name, value in parameters.items()}
