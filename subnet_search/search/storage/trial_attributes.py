"""User attributes of trials and studies that decide what is done with them. Light: whoever only looks on needs no more."""

import json
from typing import Any

import optuna

KNOWN = "known"  # of a result that was imported: its source. Known to the sampler from the start, and no part of the budget
REPEATS = "repeats"  # of a trial that repeats another on a fresh seed: the number of that one
RETRIES = "retries"  # of a trial that runs a failed one again: the number of that one
WITHDRAWN = "withdrawn"  # of a trial that waits, and is not to be run
STOPPED = "stopped"  # of a study whose workers are to begin no more trials


def plain_spec(study: optuna.Study) -> dict[str, Any]:
    """The specification that a study was made with, as plain values; empty for a study that is none of ours."""
    found: dict[str, Any] = json.loads(study.user_attrs.get("spec", "{}"))
    return found
