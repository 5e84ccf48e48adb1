"""Names of the parameters of a study: the key of the run that one sets, and the condition under which it does."""

from collections.abc import Mapping
from typing import Any

CONDITION = " @"  # between a key and its condition, in the name of a parameter that is searched under several conditions


def parameter_name(key: str, condition: str) -> str:
    """The name of a parameter: the key of the run that it sets, with the condition under which it does, if any."""
    return f"{key}{CONDITION}{condition}" if condition else key


def key_and_condition(parameter: str) -> tuple[str, str]:
    """The two parts of a parameter's name; the condition is empty for one that is always searched."""
    key, _, condition = parameter.partition(CONDITION)
    return key, condition


def by_key(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Values of parameters by the keys of the run that they set."""
    return {key_and_condition(name)[0]: value for name, value in parameters.items()}
