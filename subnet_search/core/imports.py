"""Functions of the user's own modules, by their names."""

import importlib
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

from subnet_search.core.errors import UserError, reason
from subnet_search.core.rng import own_random_state

IMPORT_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
"""`package.module:function`."""


def import_function(name: str, kind: str) -> Callable[..., Any]:
    """The function `package.module:function`, from the current folder or PYTHONPATH.

    kind: what the function makes, for messages: "network". Raises UserError when it cannot be imported.
    """
    module, _, attribute = name.partition(":")
    try:
        with own_random_state():  # else the first network made in a process depends on what the module draws or seeds
            imported = importlib.import_module(module)
    except Exception as error:  # anything that a user's module raises when imported
        why = error if isinstance(error, ImportError) else reason(error)
        absent = isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]
        todo = "; start the command in the folder that contains it, or add that folder to PYTHONPATH" if absent else ""
        raise UserError(f"cannot import {module!r} for the {kind} {name!r}: {why}{todo}") from error
    function: Any = getattr(imported, attribute, None)
    if not callable(function):
        raise UserError(f"{module} has no function {attribute!r} ({kind} {name!r})")
    return function  # type: ignore[no-any-return]


def required(module: str, extra: str, what: str) -> ModuleType:
    """An optional package. extra: that installs it. Raises UserError that says what needs it, when it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{what} needs the package {module}: pip install 'subnet-search[{extra}]' ({error})") from error
