"""The two ways things go wrong: the user can mend it, or the run cannot go on. Every message is one line, and no secret."""

import difflib
import reprlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from subnet_search.core.redaction import scrub

if TYPE_CHECKING:
    from pydantic import ValidationError

LONGEST_VALUE, LONGEST_MESSAGE = 400, 3000  # characters


class UserError(ValueError):
    """A mistake in what was asked for. The message is one line, in the user's words; the command line exits with 2.

    key: the dotted key that is at fault, where it is deeper than where the error was raised, to look up its line by.
    """

    def __init__(self, message: object, key: str = "") -> None:
        super().__init__(one_line(message))
        self.key = key


class RunError(RuntimeError):
    """A run that cannot go on (a loss that is not a number, a full disk). The command line exits with 1."""

    def __init__(self, message: object) -> None:
        super().__init__(one_line(message))


class Interrupted(RunError):
    """Stopped on request, at a step boundary, after a checkpoint was written."""


@contextmanager
def guarded(problem: str) -> Iterator[None]:
    """Around what others wrote: whatever goes wrong is a UserError of one line, `problem: reason`. Our own errors pass."""
    try:
        yield
    except (UserError, RunError):
        raise
    except Exception as error:
        raise UserError(f"{problem}: {reason(error)}") from error


@contextmanager
def reading(what: object, kind: str = "") -> Iterator[None]:
    """Around reading what others wrote: whatever goes wrong is a UserError of one line that names it.

    what: the file, or what else is read, in words. kind: what it should be, as in "a subnetwork file"; where this is given, an
    error that is none of the file system's says that it is none, or damaged. Errors of one line already pass through.
    """
    try:
        yield
    except (UserError, RunError):
        raise
    except Exception as error:
        known = kind and not (isinstance(error, OSError) and error.strerror)
        raise UserError(
            f"{what} is not {kind}, or is damaged: {reason(error)}" if known else f"cannot read {what}: {reason(error)}"
        ) from error


def blamed(error: UserError, key: str) -> UserError:
    """The same mistake, as one of a dotted key, unless it names a deeper one."""
    error.key = error.key or key
    return error


@contextmanager
def blaming(key: str) -> Iterator[None]:
    """Mistakes that are found inside are those of a dotted key, unless they name a deeper one."""
    try:
        yield
    except UserError as error:
        blamed(error, key)
        raise


def reason(error: BaseException) -> str:
    """What an error says, in one line, or its kind where that says more."""
    match error:
        case RecursionError():
            return "it is nested too deeply"
        case MemoryError():
            return "there is not enough memory for it"
        case OSError() if error.strerror:
            return error.strerror
        case UserError() | RunError():
            return str(error)
        case UnicodeError():
            return "it is not text in UTF-8"
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}{': ' * bool(lines[0])}{lines[0]}"


def one_line(message: object) -> str:
    """A message in one line of sane length, without passwords."""
    words = (cut(word) for word in scrub(str(message)).split())
    return cut(" ".join(words), LONGEST_MESSAGE)


def shown(value: object) -> str:
    """A value as it stands in a message: of sane length, whatever it is."""
    try:
        return cut(_short.repr(value))
    except Exception:  # a whole number of more digits than Python writes, an object whose repr fails
        return f"a value of type {type(value).__name__}"


def cut(text: str, longest: int = LONGEST_VALUE) -> str:
    """A text, without its middle where it is longer than a message can hold."""
    return text if len(text) <= longest else f"{text[: longest * 3 // 4]} ... {text[-(longest // 5) :]}"


def invalid(error: "ValidationError") -> UserError:
    """The first mistake that pydantic found, in one line."""
    problem = error.errors()[0]
    path = [str(part) for part in problem["loc"]]
    text = problem["msg"].removeprefix("Value error, ")
    inner: str = getattr(problem.get("ctx", {}).get("error"), "key", "")
    if inner and text.startswith(f"{inner}: "):  # said by a model inside of another
        path, inner, text = [*path, *inner.split(".")], "", text.removeprefix(f"{inner}: ")
    key = ".".join(path)
    got = "" if problem["type"] in ("missing", "value_error") else f", got {shown(problem['input'])}"
    message = f"{key}: {text[0].lower()}{text[1:]}{got}" if key else f"{text}{got}"
    return UserError(message, ".".join([*path, inner] if inner else path))


def unknown(kind: str, name: object, valid: Iterable[object], where: str = "") -> UserError:
    """An error for a name that does not exist: it gives the nearest valid ones, then all of them."""
    names = sorted(map(str, valid))
    near = nearest(name, names)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    place = f" ({where})" if where else ""
    return UserError(f"unknown {kind} {cut(str(name))!r}{place}: {hint}valid: {', '.join(names)}")


def nearest(name: object, names: Iterable[str], count: int = 3, cutoff: float = 0.5) -> list[str]:
    """Those of the names that a mistyped one is most like."""
    return difflib.get_close_matches(str(name)[:LONGEST_VALUE], list(names), n=count, cutoff=cutoff)


_short = reprlib.Repr()
_short.maxlevel, _short.maxstring, _short.maxother, _short.maxlong = 8, LONGEST_VALUE, LONGEST_VALUE, LONGEST_VALUE
_short.maxlist = _short.maxtuple = _short.maxdict = _short.maxset = 50
