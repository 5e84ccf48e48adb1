"""Whether a sampler from outside of Optuna can be used here: each trial is drawn by a new one, from the results in the storage.

Optuna's own samplers keep their state in the storage. A sampler that keeps it in the object would begin anew in each trial,
and one that does not draw from its seed would give other trials in each worker.
"""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from subnet_search.core.errors import UserError, guarded
from subnet_search.core.rng import derive
from subnet_search.search.engine.history import History
from subnet_search.search.spec.samplers import make_sampler
from subnet_search.search.spec.study_spec import StudySpec
from subnet_search.search.storage.optuna_private import LazyRandomState

DRAWS = 14  # trials with results that a sampler is tried on: most draw their first 10 at random
DEPTH = 6  # of objects inside a sampler in which random number generators are searched
WARM_STARTS = ("_gprs_cache_list", "_constraints_gprs_cache_list")  # of Optuna's GPSampler: where its fit starts


def check_sampler(spec: StudySpec) -> None:
    """Raise UserError for a sampler of OptunaHub that keeps state outside of the storage, or does not draw from its seed.

    A sampler that has drawn a number of trials must propose the same as a new one for the same results, when the random number
    generators of both are in the same state.
    """
    if spec.sampler["name"] != "hub":
        return
    what, trials = f"the sampler {spec.sampler['hub']}", list[FrozenTrial]()
    spec = spec.model_copy(update={"parallel": None})  # each draw sees all results
    with guarded(f"{what} cannot draw trials of this study"):
        used = make_sampler(spec)
        for number in range(DRAWS):
            trials.append(_with_result(spec, number, trials, used))
        first, second = make_sampler(spec, len(trials)), make_sampler(spec, len(trials))
        seeded = _proposal(spec, trials, first) == _proposal(spec, trials, second)
        for sampler in (used, first):
            _reset(sampler)
        stateless = _proposal(spec, trials, used) == _proposal(spec, trials, first)
    if not seeded:
        raise UserError(f"{what} proposes other values each time it is made with one seed, so no trial could be repeated")
    if not stateless:
        raise UserError(
            f"{what} keeps state between trials that is not in the storage, so a study that is resumed, or run by several "
            "workers, would have other trials: use a sampler that only reads the trials of the study"
        )


def _proposal(spec: StudySpec, trials: Sequence[FrozenTrial], sampler: BaseSampler) -> dict[str, Any]:
    """The parameters that a sampler proposes for the next trial."""
    return History(spec).draw(len(trials), trials, {}, sampler)[0].params


def _with_result(spec: StudySpec, number: int, trials: Sequence[FrozenTrial], sampler: BaseSampler) -> FrozenTrial:
    """A trial that a sampler draws, with an arbitrary result, of which the sampler is told."""
    in_memory, _ = History(spec).draw(number, trials, {}, sampler)
    drawn = in_memory.study._storage.get_trial(in_memory._trial_id)
    values = [derive(number, name) % 1000 / 1000 for name in spec.objective]
    sampler.after_trial(in_memory.study, drawn, TrialState.COMPLETE, values)
    ended = create_trial(
        state=TrialState.COMPLETE,
        values=values,
        params=drawn.params,
        distributions=drawn.distributions,
        system_attrs=drawn.system_attrs,
    )
    ended.number = number
    return ended


def _reset(value: Any, seen: set[int] | None = None, depth: int = DEPTH) -> None:
    """Set all random number generators inside a sampler to the same state, and forget where its fits start."""
    seen = set() if seen is None else seen
    if id(value) in seen or depth == 0 or isinstance(value, type | str | bytes | np.ndarray):
        return
    seen.add(id(value))
    inner: list[Any] = []
    match value:
        case LazyRandomState():
            value.rng.seed(0)
        case np.random.RandomState() | random.Random():
            value.seed(0)
        case np.random.Generator():
            value.bit_generator.state = type(value.bit_generator)(0).state
        case dict():
            inner = list(value.values())
        case list() | tuple():
            inner = list(value)
        case _:
            own = getattr(value, "__dict__", {})
            for name in own.keys() & set(WARM_STARTS):
                setattr(value, name, None)
            if type(own.get("_seed")) is int:  # a counter, as in the sampler of BoTorch
                value._seed = 0
            inner = list(own.values())
    for one in inner:
        _reset(one, seen, depth - 1)
