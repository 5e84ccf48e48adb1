"""Data that a function of the user's makes: `package.module:make`, called with `data.options`."""

from dataclasses import replace

from subnet_search.core.errors import UserError, reason, shown
from subnet_search.core.imports import import_function
from subnet_search.data.batch import Labels
from subnet_search.data.given import from_user
from subnet_search.data.items import fixed_random_state
from subnet_search.data.sources import IMPORTED, Data, DataSpec, reads


def check_import(name: str) -> None:
    """Raise UserError when a data set is a function of the user's that cannot be imported."""
    if DataSpec.of(name).kind == IMPORTED:
        import_function(name, "data")


@reads(IMPORTED)
def imported(spec: DataSpec, labels: Labels, all_is_test: bool) -> Data:
    """What `make(**options)` returns, as if it was passed from Python.

    Its random numbers are the same at every call: a run that is resumed has the same data.
    """
    make = import_function(spec.name, "data")
    with fixed_random_state("make data"):
        try:
            made = make(**spec.options)
        except UserError:
            raise
        except Exception as error:  # anything that a user's function raises
            raise UserError(f"{spec.name} fails with options {shown(spec.options)}: {reason(error)}") from error
    try:
        found = from_user(made, labels=labels, workers=spec.workers, all_is_test=all_is_test, named=spec)
    except UserError as error:
        raise error if spec.name in str(error) else UserError(f"{spec.name}: {error}") from error
    return replace(found, name=spec.name, spec=spec)
