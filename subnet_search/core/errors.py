"""Errors: `UserError` for wrong input, `RunError` for a run that failed. Messages are one line, without passwords."""

import difflib
import re
import reprlib
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING

from subnet_search.core.redaction import scrub

if TYPE_CHECKING:
    from pydantic import ValidationError

LONGEST_VALUE, LONGEST_MESSAGE = 400, 3000  # characters
PACKAGE = str(Path(__file__).parents[1]) + "/"
MOST_NAMES = 100  # listed in a message; of more only the number is given
PAIR = re.compile(r"([A-Za-z_][\w.]*):([^\s:]+)")  # a key and a value without the space after the colon


class UserError(ValueError):
    """Wrong input: a configuration, argument or file. The message is one line; the command line exits with 2.

    key: the dotted configuration key at fault, used to find its line in the file.
    """

    def __init__(self, message: object, key: str = "") -> None:
        super().__init__(one_line(message))
        self.key = key


class UnknownKey(UserError):
    """A dotted key whose last part is unknown, with the nearest and all valid ones. more: the number of other mistakes."""

    def __init__(self, key: str, valid: Iterable[str], more: int = 0) -> None:
        self.valid, self.more = sorted(valid), more
        near = nearest(key.rpartition(".")[2], self.valid, 1, 0.6)
        hint = f"did you mean {near[0]!r}? " if near else ""
        super().__init__(f"unknown key {key!r}: {hint}valid: {', '.join(self.valid)}", key)


class RunError(RuntimeError):
    """A run failed, as by a NaN loss or a full disk. The message is one line; the command line exits with 1."""

    def __init__(self, message: object) -> None:
        super().__init__(one_line(message))


class Interrupted(RunError):
    """Stopped on request, at a step boundary, after a checkpoint was written."""


@contextmanager
def guarded(problem: str) -> Iterator[None]:
    """Turn any exception of third-party code or files into UserError `problem: reason`. UserError and RunError pass."""
    try:
        yield
    except (UserError, RunError):
        raise
    except Exception as error:
        raise UserError(f"{problem}: {reason(error)}") from error


@contextmanager
def reading(what: object, kind: str = "") -> Iterator[None]:
    """Turn any exception while reading `what` into UserError. UserError and RunError pass.

    what: the file or source, for the message. kind: the expected kind, as "a subnetwork file"; with it, errors other than
    those of the file system read "... is not a subnetwork file, or is damaged".
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


@contextmanager
def blaming(key: str) -> Iterator[None]:
    """Set the key of any UserError raised inside, unless it has one already."""
    try:
        yield
    except UserError as error:
        error.key = error.key or key
        raise


def reason(error: BaseException) -> str:
    """One line for an exception: the text of common errors, otherwise its type and first line."""
    match error:
        case RecursionError():
            return "nested too deeply"
        case MemoryError():
            return "not enough memory"
        case OSError() if error.strerror:
            return error.strerror
        case UserError() | RunError():
            return str(error)
        case UnicodeError():
            return "not UTF-8 text"
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}{': ' * bool(lines[0])}{lines[0]}"


def line_of(error: BaseException, module: str = "") -> str:
    """` (module, line N)`: the last line of `module` that an error passed; "" when there is none.

    module: by default that of any file of the user's own, which is in neither this package, Python nor site-packages.
    """
    frames = [
        (frame.f_globals.get("__name__", ""), frame.f_code.co_filename, line) for frame, line in walk_tb(error.__traceback__)
    ]
    lines = [(name, line) for name, file, line in frames if (name == module if module else _is_own(file))]
    return " ({}, line {})".format(*lines[-1]) if lines else ""


def _is_own(file: str) -> bool:
    installed = (PACKAGE, sysconfig.get_path("stdlib"), "<")
    return not file.startswith(installed) and not {"site-packages", "dist-packages"} & set(Path(file).parts)


def one_line(message: object) -> str:
    """A message as one line of limited length, without passwords."""
    words = (cut(word) for word in scrub(str(message)).split())
    return cut(" ".join(words), LONGEST_MESSAGE)


def shown(value: object) -> str:
    """`repr` of a value for a message, of limited length; never raises."""
    try:
        return cut(_short.repr(value))
    except Exception:  # a whole number of more digits than Python writes, an object whose repr fails
        return f"a value of type {type(value).__name__}"


def cut(text: str, longest: int = LONGEST_VALUE) -> str:
    """Shorten a text to about `longest` characters by leaving out its middle."""
    return text if len(text) <= longest else f"{text[: longest * 3 // 4]} ... {text[-(longest // 5) :]}"


def invalid(error: "ValidationError") -> UserError:
    """The first mistake in `error`, which pydantic raised, in one line with its key."""
    problem = error.errors()[0]
    path = [str(part) for part in problem["loc"]]
    text = problem["msg"].removeprefix("Value error, ")
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, UnknownKey):
        return UnknownKey(".".join([*path, cause.key]), cause.valid, cause.more)
    if problem["type"] == "literal_error" and path[-1] == "[key]":  # of a mapping with certain keys
        return UnknownKey(".".join(path[:-1]), re.findall("'([^']*)'", problem["ctx"]["expected"]))
    inner: str = getattr(cause, "key", "")
    if inner and text.startswith(f"{inner}: "):  # raised by a nested model
        path, inner, text = [*path, *inner.split(".")], "", text.removeprefix(f"{inner}: ")
    key = ".".join(path)
    got = "" if problem["type"] in ("missing", "value_error") else f", got {shown(problem['input'])}"
    if problem["type"] in ("dict_type", "model_type") and (pair := PAIR.fullmatch(str(problem["input"]))):
        got += f": write {{{pair[1]}: {pair[2]}}}"
    message = f"{key}: {text[0].lower()}{text[1:]}{got}" if key else f"{text}{got}"
    return UserError(message, ".".join([*path, inner] if inner else path))


def unknown(kind: str, name: object, valid: Iterable[object], where: str = "") -> UserError:
    """UserError for an unknown name, with close matches and all valid names."""
    names = sorted(map(str, valid))
    near = nearest(name, names)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    place = f" ({where})" if where else ""
    listed = f"{len(names)} names" if len(names) > MOST_NAMES else ", ".join(names)
    return UserError(f"unknown {kind} {cut(str(name))!r}{place}: {hint}valid: {listed}")


def nearest(name: object, names: Iterable[str], count: int = 3, cutoff: float = 0.5) -> list[str]:
    """The names most similar to a mistyped one, by difflib."""
    return difflib.get_close_matches(str(name)[:LONGEST_VALUE], list(names), n=count, cutoff=cutoff)


_short = reprlib.Repr()
_short.maxlevel, _short.maxstring, _short.maxother, _short.maxlong = 8, LONGEST_VALUE, LONGEST_VALUE, LONGEST_VALUE
_short.maxlist = _short.maxtuple = _short.maxdict = _short.maxset = 50
