"""The two ways things go wrong: the user can mend it, or the run cannot go on."""

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class UserError(ValueError):
    """A mistake in what was asked for. The message is one line, in the user's words; the command line exits with 2."""


class RunError(RuntimeError):
    """A run that cannot go on (a loss that is not a number, a full disk). The command line exits with 1."""


class Interrupted(RunError):
    """Stopped on request, at a step boundary, after a checkpoint was written."""


def invalid(error: "ValidationError") -> UserError:
    """The first mistake that pydantic found, in one line."""
    problem = error.errors()[0]
    key = ".".join(map(str, problem["loc"]))
    text = problem["msg"].removeprefix("Value error, ")
    got = "" if problem["type"] in ("missing", "value_error") else f", got {problem['input']!r}"
    return UserError(f"{key}: {text[0].lower()}{text[1:]}{got}" if key else f"{text}{got}")


def unknown(kind: str, name: object, valid: Iterable[str], where: str = "") -> UserError:
    """An error for a name that does not exist: it gives the nearest valid ones, then all of them."""
    names = sorted(valid)
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    place = f" ({where})" if where else ""
    return UserError(f"unknown {kind} {str(name)!r}{place}: {hint}valid: {', '.join(names)}")
