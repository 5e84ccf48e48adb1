"""Names of Optuna parameters: the key of the run, and the condition if the parameter has one."""

from collections.abc import Mapping
from typing import Any

CONDITION = " @"  # separates key and condition


def parameter_name(key: str, condition: str) -> str:
    """The name of a parameter: its key, and its condition if it has one."""
    return f"{key}{CONDITION}{condition}" if condition else key


def key_and_condition(parameter: str) -> tuple[str, str]:
    """Split the name of a parameter; the condition is empty if it has none."""
    key, _, condition = parameter.partition(CONDITION)
    return key, condition


def by_key(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Values of parameters by key, without conditions."""
    return {key_and_condition(name)[0]: value for name, value in parameters.items()}
