"""The command line: parse, call, print. No logic, and nothing heavy imported before a command runs."""

import logging
import os
import sys
import tempfile
import threading
import traceback

import typer

from subnet_search.cli.app import app
from subnet_search.core.errors import Interrupted, RunError, UserError, one_line
from subnet_search.core.redaction import Redacting, remember, scrub

# Every mistake that the parser finds derives from this class, wherever the installed typer keeps it.
PARSER_ERROR: type[Exception] = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")

USER_MISTAKE, FAILURE, STOPPED = 2, 1, 130

# Read by OpenMP when torch is imported. By default a thread that waits for another spins so long that a second busy
# process makes small networks twenty times slower; with a short spin it costs a few percent alone, and nothing worse.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def main(arguments: list[str] | None = None) -> None:
    """Run a command. Errors are one line on standard error: exit code 2 for a mistake, 1 for a failure, 130 if stopped.

    An error that nothing foresaw is a failure too; its traceback is in a file, which the line names.
    """
    if logging.lastResort:
        logging.lastResort.setFormatter(Redacting("warning: %(message)s"))
    threading.excepthook = lambda thread: unforeseen(thread.exc_value)
    for word in (*(sys.argv[1:] if arguments is None else arguments), os.environ.get("SUBNET_SEARCH_STORAGE", "")):
        remember(word)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # networks and extractors of one's own may be in a file of the current folder
    try:
        code = app(args=arguments, prog_name="subnet-search", standalone_mode=False)
    except UserError as error:
        code = complain(error, USER_MISTAKE)
    except Interrupted as error:
        code = complain(error, STOPPED, "stopped")
    except RunError as error:
        code = complain(error, FAILURE)
    except PARSER_ERROR as error:
        code = complain(error.format_message(), USER_MISTAKE)  # type: ignore[attr-defined]
    except (KeyboardInterrupt, typer.Abort):
        code = complain("stopped", STOPPED, "stopped")
    except BrokenPipeError:
        sys.stderr.close()  # the reader went away (`| head`); nothing to say
        code = FAILURE
    except OSError as error:
        code = complain(error, FAILURE)
    except Exception as error:
        code = unforeseen(error)
    sys.exit(code or 0)


def complain(message: object, code: int, word: str = "error") -> int:
    """One line on standard error."""
    text = one_line(message)
    print(text if text.startswith(word) else f"{word}: {text}", file=sys.stderr)
    return code


def unforeseen(error: BaseException | None) -> int:
    """One line on standard error for an error that nothing foresaw, and a file with its traceback."""
    what = f"unexpected {type(error).__name__}: {error}"
    try:
        handle, path = tempfile.mkstemp(prefix="subnet-search-", suffix=".log")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(scrub("".join(traceback.format_exception(error))))
    except OSError as full:
        return complain(f"{what} (its traceback cannot be written: {full.strerror})", FAILURE)
    return complain(f"{what} (its traceback is in {path})", FAILURE)
