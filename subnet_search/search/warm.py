"""Warm starts: what a new study tries first, and what it knows from others."""

import optuna

from subnet_search.search.spec import StudySpec


def warm_start(study: optuna.Study, spec: StudySpec) -> None:
    """Queue what the spec's `enqueue` asks for, and add the results that its `imports` name."""
    for values in spec.enqueue:
        study.enqueue_trial(spec.searched.named(values))
