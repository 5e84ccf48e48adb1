"""The user's functions that a worker calls after each epoch and each trial. An error in one does not change the trial."""

import inspect
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import optuna

from subnet_search.core.errors import UserError, reason, shown
from subnet_search.core.imports import import_function
from subnet_search.extraction.passed import Passed
from subnet_search.search.engine.trial_lease import TrialLease
from subnet_search.search.spec.hub import class_from_hub, make_from_hub
from subnet_search.search.spec.study_spec import StudySpec
from subnet_search.search.storage.connect import database_of, scrub
from subnet_search.search.storage.records import STOPPED
from subnet_search.search.storage.retry import patiently
from subnet_search.search.storage.write import add_attrs
from subnet_search.training import Epoch

ARGUMENTS: dict[Literal["on_epoch", "on_trial"], tuple[str, ...]] = {
    "on_epoch": ("study", "trial", "epoch"),
    "on_trial": ("study", "trial"),
}

log = logging.getLogger("subnet_search")


def import_callbacks(spec: StudySpec) -> Passed:
    """The objects of a spec, with the functions that its `callbacks` name; a function that was passed replaces such a name.

    Raises UserError for a name that cannot be imported, and for a function that does not take the arguments.
    """
    check_callbacks(spec)
    found: dict[str, Any] = {}
    for key, named in spec.callbacks.items():
        if getattr(spec.passed, key) is None:
            found[key] = import_function(named, key) if isinstance(named, str) else make_from_hub("callback", named)
    return replace(spec.passed, **found)


def check_callbacks(spec: StudySpec) -> None:
    """Raise UserError for callbacks that cannot be imported or called. No callback of OptunaHub is made: it may open a run."""
    for key, arguments in ARGUMENTS.items():
        function, named = getattr(spec.passed, key), spec.callbacks.get(key)
        if function is None and isinstance(named, dict):
            class_from_hub("callback", named)
            continue
        if function is None and isinstance(named, str):
            function = import_function(named, f"callback {key}")
        if function is not None:
            _check_callback(key, function, arguments)


def _check_callback(key: str, function: Any, arguments: tuple[str, ...]) -> None:
    """Raise UserError unless `function` can be called with these arguments."""
    if not callable(function):
        raise UserError(f"{key} must be a function({', '.join(arguments)}) or package.module:function, got {shown(function)}")
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        name = getattr(function, "__qualname__", type(function).__name__)
        raise UserError(f"{key} is called as {name}({', '.join(arguments)}), which {name} does not accept: {error}") from error
    except ValueError:  # a built-in function without a signature
        pass


def after_epoch(lease: TrialLease, function: Callable[..., Any] | None) -> Callable[[Epoch], None]:
    """What to call after each epoch of a trial; it stores the reason of the first error in the trial's `on_epoch_error`."""
    if function is None:
        return lambda epoch: None
    trial = patiently(database_of(lease.study).get_trial, lease.trial_id)
    failed = False

    def call(epoch: Epoch) -> None:
        nonlocal failed
        why = _call("on_epoch", lease, function, trial, epoch, quiet=failed)
        if why and not failed:
            failed = True
            lease.note(on_epoch_error=f"{why} (epoch {epoch.epoch})")

    return call


def after_trial(lease: TrialLease, function: Callable[..., Any] | None) -> None:
    """Call the function for a trial that has ended; stores the reason of an error in the trial's `on_trial_error`."""
    if function is None:
        return
    database = database_of(lease.study)
    trial = patiently(database.get_trial, lease.trial_id)
    if why := _call("on_trial", lease, function, trial):
        patiently(add_attrs, database, lease.trial_id, {"on_trial_error": why})


def _call(key: str, lease: TrialLease, function: Callable[..., Any], *arguments: Any, quiet: bool = False) -> str | None:
    """Call a function with the study and the arguments; returns the reason of its error. `study.stop()` stops the study."""
    study: optuna.Study = lease.study
    study._thread_local.in_optimize_loop = True  # else `study.stop` raises
    try:
        function(study, *arguments)
        return None
    except Exception as error:  # anything that a user's function raises
        why = scrub(reason(error))
        if not quiet:
            log.warning("the callback %s failed in trial %d, which is not changed by it: %s", key, lease.number, why)
        return why
    finally:
        study._thread_local.in_optimize_loop = False
        if study._stop_flag:
            study._stop_flag = False
            patiently(study.set_user_attr, STOPPED, True)
