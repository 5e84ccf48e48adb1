"""Summary of a study: space, progress, failures and results."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from subnet_search.core.parameter_names import key_and_condition
from subnet_search.core.search_domains import Int, OneOf, Real
from subnet_search.core.task_metrics import CLASSIFICATION
from subnet_search.search.queries.importance import importance
from subnet_search.search.queries.queries import counted, ranked_row
from subnet_search.search.storage.leases import is_dead
from subnet_search.search.storage.ranking import best_ranked, compared, objectives, parameters
from subnet_search.search.storage.read import Snapshot
from subnet_search.search.storage.records import FINISHED, STOPPED, TrialRecord, plain_spec, steps_spent, task_metrics
from subnet_search.search.storage.run_files import disk_usage
from subnet_search.search.storage.trust import imports_of_spec

NUMBER = re.compile(r"-?\b\d+(?:\.\d+)?(?:e[+-]?\d+)?\b")


def summarise_study(study: optuna.Study) -> dict[str, Any]:
    """Summary of a study, as shown by `study show`; works for any Optuna study."""
    seen = study if isinstance(study, Snapshot) else Snapshot(study)
    spec, trials, metrics = plain_spec(seen), seen.get_trials(), task_metrics(seen)
    records = list(map(TrialRecord, trials))
    run = spec.get("run", {})
    compares = bool(spec) and not spec["space"]
    ends = (TrialState.FAIL, TrialState.PRUNED, TrialState.COMPLETE)
    failed, pruned, complete = ([t for t in trials if t.state == state] for state in ends)
    return {
        "name": seen.study_name,
        "status": _status(seen, spec, trials),
        "objective": objectives(seen),
        "directions": [direction.name.lower() for direction in seen.directions],
        "constraints": spec.get("constraints", {}),
        "broken": dict(Counter(name for t in complete for name, beyond in t.constraints.items() if beyond > 0)),
        "sampler": None if compares else spec.get("sampler"),
        "pruner": None if compares else spec.get("pruner"),
        "repeats": spec.get("repeats", 1),
        "space": _compared(trials) if compares else study.user_attrs.get("space") or _space(trials),
        **{key: _name(run.get(key)) for key in ("network", "data", "extractor")},
        **({"task": _name(run.get("task"))} if metrics != CLASSIFICATION else {}),
        **{key: run.get(key) for key in ("unit", "round_to", "target")},
        "imports": sorted(imports_of_spec(spec)),
        "budget": spec.get("trials"),
        "budget_steps": spec.get("steps"),
        "finished": _finished(trials, compares),
        "states": counted(trial.state for trial in trials),
        "withdrawn": sum(record.withdrawn for record in records),
        "repeated": sum(record.repeats is not None for record in records),
        "imported": sum(record.imported_from is not None for record in records),
        "steps": steps_spent(trials),
        "seconds": sum(record.seconds for record in records if record.imported_from is None),
        "elapsed": _elapsed(trials),
        "failures": _reasons(failed),
        "stopped_early": _reasons(pruned),
        "interruptions": _interruptions(trials),
        "workers": [_worker(trial) for trial in trials if trial.state == TrialState.RUNNING],
        "versions": _versions(trials),
        "files": disk_usage(seen),
        "best": [ranked_row(ranked, metrics) for ranked in best_ranked(seen)],
        "rows": [ranked_row(row, metrics) for row in compared(seen)],
        "importance": None if compares else importance(seen),
    }


def _status(study: Snapshot, spec: Mapping[str, Any], trials: Sequence[FrozenTrial]) -> str:
    running = [trial for trial in trials if trial.state == TrialState.RUNNING]
    waiting = [trial for trial in trials if TrialRecord(trial).queued]
    if any(not is_dead(TrialRecord(trial).worker) for trial in running):
        return "stopping" if study.user_attrs.get(STOPPED) else "running"
    if study.user_attrs.get(STOPPED):
        return "stopped"
    if not trials:
        return "not started"
    compares = bool(spec) and not spec["space"]
    spent = spec.get("steps") and steps_spent(trials) >= spec["steps"]
    done = compares or spent or _finished(trials, compares) >= spec.get("trials", 0)
    return "finished" if done and not running and not waiting else "interrupted (no live worker)"


def _finished(trials: Iterable[FrozenTrial], compares: bool) -> int:
    """Trials that count in the budget. Imported results and repeats do not."""
    return sum(t.state in FINISHED and (compares or TrialRecord(t).counts) for t in trials)


def _name(part: Any) -> str | None:
    """The name in a section of a run: the section is the name, or a mapping with a name."""
    return part.get("name") if isinstance(part, Mapping) else part


def _space(trials: Iterable[FrozenTrial]) -> dict[str, str]:
    """Parameters and domains of the trials, for a study that subnet-search did not create."""
    seen = {name: distribution for trial in trials for name, distribution in trial.distributions.items()}
    return {name: _words(seen[name]) for name in sorted(seen, key=lambda name: key_and_condition(name)[1] != "")}


def _words(distribution: BaseDistribution) -> str:
    match distribution:
        case FloatDistribution():
            return str(Real(distribution.low, distribution.high, distribution.log, distribution.step))
        case IntDistribution():
            step = distribution.step if distribution.step > 1 else None
            return str(Int(distribution.low, distribution.high, distribution.log, step))
        case CategoricalDistribution():
            return str(OneOf(*distribution.choices))
    return str(distribution)


def _compared(trials: Iterable[FrozenTrial]) -> dict[str, str]:
    """Methods, densities and seeds of a comparison's cells."""
    seen: dict[str, dict[str, None]] = {}
    for trial in trials:
        for key, value in parameters(trial).items():
            seen.setdefault(key, {})[f"{value:g}" if isinstance(value, float) else str(value)] = None
    return {key: " | ".join(values) for key, values in seen.items()}


def _elapsed(trials: Iterable[FrozenTrial]) -> float | None:
    """Seconds from the start of the first trial to the end of the last; None if no trial has ended."""
    times = [(trial.datetime_start, trial.datetime_complete) for trial in trials if TrialRecord(trial).imported_from is None]
    started, ended = ([moment for moment in column if moment] for column in zip(*times, strict=True)) if times else ([], [])
    return (max(ended) - min(started)).total_seconds() if started and ended else None


def _reasons(trials: Iterable[FrozenTrial]) -> dict[str, int]:
    """Reasons with their counts, most frequent first; those that differ only in numbers become one, with their ranges."""
    groups: dict[str, list[str]] = {}
    for trial in trials:
        reason = str(TrialRecord(trial).reason)
        groups.setdefault(NUMBER.sub("#", reason), []).append(reason)
    alike = {_with_ranges(group): len(group) for group in groups.values()}
    return dict(sorted(alike.items(), key=lambda item: -item[1]))


def _with_ranges(texts: Sequence[str]) -> str:
    """One text for texts that differ only in numbers: `a to b` for each number that differs, its lowest and highest value."""
    columns = [sorted(set(column), key=float) for column in zip(*map(NUMBER.findall, texts), strict=True)]
    numbers = iter([column[0] if len(column) == 1 else f"{column[0]} to {column[-1]}" for column in columns])
    return NUMBER.sub(lambda _: next(numbers), texts[0])


def _interruptions(trials: Sequence[FrozenTrial]) -> dict[str, int]:
    """Numbers of interrupted trials, interruptions, worker deaths, and interrupted trials that have finished since."""
    found = {trial.number: TrialRecord(trial).interruptions for trial in trials}
    past = [one for interruptions in found.values() for one in interruptions]
    ended = sum(trial.state in FINISHED for trial in trials if found[trial.number])
    died = sum(one.died for one in past)
    return {"trials": sum(map(bool, found.values())), "times": len(past), "died": died, "ended": ended}


def _worker(trial: FrozenTrial) -> dict[str, Any]:
    record = TrialRecord(trial)
    worker, last = record.worker, {} if record.last_value is None else {"last": record.last_value}
    return {"trial": trial.number, "host": worker.host, "pid": worker.pid, "gone": is_dead(worker), **last}


def _versions(trials: Iterable[FrozenTrial]) -> dict[str, dict[str, int]]:
    """Packages of which trials used several versions: number of trials by version."""
    seen: dict[str, Counter[str]] = {}
    for trial in trials:
        for key, version in TrialRecord(trial).versions.items():
            seen.setdefault(key, Counter())[version] += 1
    return {key: dict(versions) for key, versions in seen.items() if len(versions) > 1}
