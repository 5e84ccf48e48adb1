"""The command line: parses options, calls the library, prints. Heavy modules are imported only when a command runs."""

import logging
import os
import sys
import tempfile
import threading
import traceback

import typer

from subnet_search.cli.app import app
from subnet_search.core.errors import Interrupted, RunError, UserError, line_of, one_line
from subnet_search.core.redaction import Redacting, remember, scrub

# Base class of the parser's errors; its module differs between versions of typer.
PARSER_ERROR: type[Exception] = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")

USER_MISTAKE, FAILURE, STOPPED = 2, 1, 130

# Read by OpenMP when torch is imported. With the default, waiting threads spin so long that a second busy process makes small
# networks twenty times slower; a short spin costs a few percent.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def main(arguments: list[str] | None = None) -> None:
    """Run a command. Errors are one line on standard error, with exit code 2 for bad input, 1 for a failure, 130 if stopped.

    The traceback of an unexpected error is written to a file that the line names.
    """
    if logging.lastResort:
        logging.lastResort.setFormatter(Redacting("warning: %(message)s"))
    threading.excepthook = lambda thread: unforeseen(thread.exc_value)
    for word in (*(sys.argv[1:] if arguments is None else arguments), os.environ.get("SUBNET_SEARCH_STORAGE", "")):
        remember(word)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for the user's own networks and extractors
    try:
        code = app(args=arguments, prog_name="subnet-search", standalone_mode=False)
    except UserError as error:
        code = complain(error, USER_MISTAKE)
    except Interrupted as error:
        code = complain(error, STOPPED, "stopped")
    except PARSER_ERROR as error:
        text = error.format_message()  # type: ignore[attr-defined]
        if type(error).__name__ == "NoArgsIsHelpError":  # a command without arguments: its help
            print(text)
            sys.exit(0)
        code = complain(text, USER_MISTAKE)
    except (KeyboardInterrupt, typer.Abort):
        code = complain("stopped", STOPPED, "stopped")
    except BrokenPipeError:
        sys.stderr.close()  # the reader has closed the pipe (`| head`)
        code = FAILURE
    except (RunError, OSError) as error:
        code = complain(error, FAILURE)
    except Exception as error:
        code = unforeseen(error)
    sys.exit(code or 0)


def complain(message: object, code: int, word: str = "error") -> int:
    """Print one line on standard error and return the exit code."""
    text = one_line(message)
    print(text if text.startswith(word) else f"{word}: {text}", file=sys.stderr)
    return code


def unforeseen(error: BaseException | None) -> int:
    """Print one line for an unexpected error, with the line of the user's own file, and write its traceback to a file."""
    what = f"unexpected {type(error).__name__}: {error}{line_of(error) if error else ''}"
    try:
        handle, path = tempfile.mkstemp(prefix="subnet-search-", suffix=".log")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(scrub("".join(traceback.format_exception(error))))
    except OSError as full:
        return complain(f"{what} (cannot write the traceback: {full.strerror})", FAILURE)
    return complain(f"{what} (traceback: {path})", FAILURE)
