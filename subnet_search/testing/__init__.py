"""What every extractor must pass, also one from outside the package.

    python -m subnet_search.testing mymodule:Class      # a line for each check; exit code 1 where one fails

and in the tests of a package of one's own:

    assert subnet_search.testing.failures("mymodule:Class") == []
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from subnet_search.core.errors import one_line
from subnet_search.evaluation.latency import on_threads
from subnet_search.testing import declarations, short_runs
from subnet_search.testing.method import Failed, Method

CHECKS: tuple[Callable[[Method], None], ...] = (
    declarations.describes_itself,
    declarations.states_published_settings,
    declarations.comes_back_from_yaml,
    short_runs.is_decided_by_the_seed,
    short_runs.meets_its_density,
    short_runs.keeps_dead_weights_at_zero,
    short_runs.leaves_test_data_alone,
    short_runs.goes_on_after_a_stop,
    short_runs.supports_its_units,
    short_runs.is_stored_as_asked,
    short_runs.runs_at_every_bound,
    short_runs.finds_a_planted_subnetwork,
)


def results(name: str) -> Iterator[tuple[str, str]]:
    """Each check of an extractor in turn: what a sound one does, and in one line what is wrong; "" where nothing is.

    name: a registered name, or `package.module:Class`. Raises UserError for a name that is not an extractor.
    """
    with tempfile.TemporaryDirectory() as folder:
        method = Method(name, Path(folder))
        for check in CHECKS:
            yield (check.__doc__ or "").rstrip("."), problem(check, method)


def failures(name: str) -> list[str]:
    """A line for each check that an extractor fails: its name, what a sound one does, and what is wrong."""
    return [f"{name}: {sound}: {wrong}" for sound, wrong in results(name) if wrong]


def problem(check: Callable[[Method], None], method: Method) -> str:
    """What is wrong, in one line; "" where the method passes."""
    try:
        with on_threads(1):
            check(method)
    except Failed as failed:
        return one_line(failed)
    except Exception as error:
        return one_line(method.reason(error))
    return ""
