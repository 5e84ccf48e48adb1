"""Start or continue a study with one worker in this process, several processes, or a Ray cluster."""

import json
import os
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from subnet_search.core.errors import UserError, shown
from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.config_file import check, read_values
from subnet_search.extraction.passed import PLACEHOLDER, put_objects, values_of
from subnet_search.extraction.provenance import versions
from subnet_search.search.engine.callbacks import ARGUMENTS, check_callbacks
from subnet_search.search.engine.copies import adopt
from subnet_search.search.engine.multiobjective_pruner import check_options
from subnet_search.search.engine.sampler_check import check_sampler
from subnet_search.search.engine.worker import run_worker
from subnet_search.search.spec.check_measures import check_measures
from subnet_search.search.spec.hub import warn_if_moving
from subnet_search.search.spec.samplers import make_pruner, make_sampler
from subnet_search.search.spec.space_parser import LAYERS, METHOD
from subnet_search.search.spec.study_spec import StudySpec, check_passed, read_study, spec_of, trusted_spec_of
from subnet_search.search.storage.connect import DEFAULT_STORAGE, load_study, open_storage, safe_url
from subnet_search.search.storage.locks import exclusive
from subnet_search.search.storage.records import PASSED, STOPPED, TASK, TrialRecord, task_metrics
from subnet_search.search.storage.retry import PATIENCE, guarded, patiently
from subnet_search.search.storage.study_folder import new_folder
from subnet_search.search.storage.trust import imports_of_spec
from subnet_search.search.studies.processes import release_lost_trials, run_processes
from subnet_search.search.studies.progress import study_progress
from subnet_search.search.studies.warm_start import warm_start
from subnet_search.training.processors import warn_if_shared


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster, and the resources of each worker."""

    address: str | None = None  # of the cluster; None starts a local one
    gpus: float = 0.0  # per worker, which runs one trial at a time
    cpus: float | None = None  # per worker; default: the threads of a trial


def run_study(
    spec: StudySpec | Mapping[str, Any] | str | os.PathLike[str],
    *,
    network: Any = None,
    data: Any = None,
    task: Any = None,
    trained: bool | None = None,
    on_epoch: Callable[..., Any] | str | None = None,
    on_trial: Callable[..., Any] | str | None = None,
    storage: str | None = None,
    workers: int | None = None,
    trials: int | None = None,
    timeout: float | None = None,
    cluster: Cluster | None = None,
    wait: float = 0,
    allow_imports: Collection[str] | None = None,
    progress: bool | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> optuna.Study:
    """Start a study, or continue it if the storage has one of this name; returns the Optuna study.

    spec            the path of a YAML file, its values, or a StudySpec
    network, data, task
                    in place of those of the spec's `run`: names or settings, or the objects that `extract` takes. A module
                    keeps its weights unless `network.init` is set or searched. Objects need one worker, in this process, and
                    are passed again to continue the study: another network or other data is refused
    trained         whether the weights of the network are trained, as for `extract`
    on_epoch        function(study, trial, epoch), called after each epoch of a trial; an object (one worker) or its name,
                    `package.module:function`, in place of that in the spec's `callbacks`
    on_trial        function(study, trial), called after each trial, as Optuna's callbacks are. An error in either is a warning
                    and is stored in the trial, which continues
    storage         storage URL; this and the next three override the spec
    workers         number of workers; a single one runs in this process
    trials          finished trials at which the study ends, including those of earlier calls
    timeout         seconds after which no trial is started
    cluster         run the workers on a Ray cluster; default: processes on this machine
    wait            seconds to wait for a storage that does not respond at first
    allow_imports   names or modules that the workers may import; default: those named in the spec
    progress        show progress on standard error: True or False; default: in a terminal or a notebook
    should_stop     when it returns True, running trials write a checkpoint and are requeued

    Raises UserError if the stored study has another spec, and names the difference; Interrupted when stopped; RunError
    when five trials in a row fail, or the workers fail.
    """
    spec = _with_callbacks(_with_objects(spec, network, data, task, trained), on_epoch, on_trial)
    url = storage or spec.storage
    count, budget, limit = workers or spec.workers, trials or spec.trials, timeout or spec.timeout
    if count > 1 or cluster:
        check_no_objects(spec)
    check_callbacks(spec)
    allowed = sorted(imports_of_spec(json.loads(spec.to_json())) if allow_imports is None else allow_imports)
    if spec.identity():
        allowed += [PLACEHOLDER, spec.run.task.name]
    study = prepare_study(spec, url, wait)
    for kind, settings in (("sampler", spec.sampler), *spec.callbacks.items()):
        warn_if_moving(kind, settings)
    common: dict[str, Any] = {"trials": budget, "timeout": limit, "allow_imports": allowed, "should_stop": should_stop}
    with study_progress(study, budget, progress, spec.task_metrics):
        if cluster:
            from subnet_search.search.studies.ray_launcher import run_on_ray

            cpus = (spec.run.recipe.threads or 1) if cluster.cpus is None else cluster.cpus
            try:
                run_on_ray(spec.name, url, workers=count, address=cluster.address, gpus=cluster.gpus, cpus=cpus, **common)
            finally:
                release_lost_trials(study)
        elif count == 1:
            run_worker(spec.name, url, wait=PATIENCE, like=spec, **common)
        else:
            warn_if_shared(count, spec.run.recipe.threads or 1)
            run_processes(study, spec, url, count, budget, limit, allowed, should_stop)
    again = open_storage(url, wait=PATIENCE)
    return patiently(lambda: load_study(spec.name, again, sampler=make_sampler(spec), pruner=make_pruner(spec)))


def _with_objects(
    spec: StudySpec | Mapping[str, Any] | str | os.PathLike[str], network: Any, data: Any, task: Any, trained: bool | None
) -> StudySpec:
    """The checked spec, with the network, data and task in place of those of its run."""
    nothing = network is None and data is None and task is None and trained is None
    if isinstance(spec, StudySpec):
        if nothing:
            return spec
        values, places = {**spec.model_dump(exclude_unset=True), "run": values_of(spec.run)}, dict[str, str]()
    elif isinstance(spec, Mapping):
        values, places = dict(spec), {}
    elif isinstance(spec, str | os.PathLike):
        values, places = read_values(StudySpec, os.fspath(spec))
    else:
        raise UserError(f"a study is a path, a mapping or a StudySpec, got {shown(spec)}")
    if nothing:
        return check(StudySpec, values, places)
    run = values.get("run", {})
    run = values_of(run) if isinstance(run, RunConfig) else run
    if not isinstance(run, Mapping):
        raise UserError(f"run: give keys and values, got {shown(run)}")
    values["run"], passed = put_objects(run, network, data, task, trained)
    return check(StudySpec, values, places).with_passed(passed)


def _with_callbacks(spec: StudySpec, on_epoch: Any, on_trial: Any) -> StudySpec:
    """The spec with the callbacks: names become part of it, objects are passed."""
    given = {key: one for key, one in (("on_epoch", on_epoch), ("on_trial", on_trial)) if one is not None}
    names = {key: one for key, one in given.items() if isinstance(one, str)}
    if names:
        passed, values = spec.passed, {**spec.model_dump(exclude_unset=True), "run": spec.run}
        spec = check(type(spec), {**values, "callbacks": {**spec.callbacks, **names}}).with_passed(passed)
    return spec.with_passed(replace(spec.passed, **{key: one for key, one in given.items() if key not in names}))


def check_no_objects(spec: StudySpec) -> None:
    """Raise UserError for objects, which no other process can have."""
    callbacks = [key for key in ARGUMENTS if getattr(spec.passed, key) is not None]
    for part in [*(part for part in ("network", "data", "task") if part in spec.identity()), *callbacks]:
        raise UserError(
            f"{part} is a Python object, which only this process has: run it with workers=1, or give an import path, "
            "package.module:name, for any number of workers"
        )


def find_spec(
    given: str, overrides: list[str], storage: str | None, allow_imports: Collection[str] = ()
) -> tuple[StudySpec, list[str]]:
    """The spec of a YAML file or of a stored study, and the names that its workers may import.

    A file that the user passes may import anything; a stored study only what `allow_imports` names.
    """
    if Path(given).suffix in (".yaml", ".yml") or Path(given).is_file():
        spec = read_study(given, overrides)
        return spec, sorted({*allow_imports, *imports_of_spec(json.loads(spec.to_json()))})
    study = load_study(given, open_storage(storage or DEFAULT_STORAGE))
    if overrides:
        raise UserError(
            f"-s cannot change the stored study {given!r}; use it with a YAML file, or --trials to extend the study"
        )
    spec = trusted_spec_of(study, allow_imports)
    return spec.model_copy(update={"storage": storage or DEFAULT_STORAGE}), sorted(allow_imports)


def prepare_study(spec: StudySpec, url: str, wait: float = 0) -> optuna.Study:
    """Create the study, or check that the stored one has the same spec and clear its stop flag.

    Waits up to `wait` seconds for a storage that does not respond. Raises UserError if the specs differ.
    """
    store = open_storage(url, create=True, wait=wait)
    with guarded(f"the study {spec.name!r} in {safe_url(url)}"):
        return patiently(_prepare, spec, store)


def _prepare(spec: StudySpec, store: optuna.storages.BaseStorage) -> optuna.Study:
    if spec.space.get(LAYERS) is True:
        spec = spec.model_copy(update={"space": {**spec.space, LAYERS: spec.searched.layers(spec.passed)}})
        spec = type(spec).model_validate(spec.model_dump() | {"run": spec.run}).with_passed(spec.passed)
    make_sampler(spec), make_pruner(spec)  # raises UserError for an invalid option
    if spec.pruner["name"] == "rungs":
        check_options(spec)
    if spec.artifacts is not None:
        from subnet_search.search.engine.artifact_store import open_store

        open_store(spec)
    if spec.name not in optuna.get_all_study_names(store) or _is_unused(spec, store):
        spec.searched.check_networks(spec.passed)
        check_measures(spec)
    with exclusive(store, spec.name):
        names = optuna.get_all_study_names(store)
        if spec.name in names and (_is_half_made(load_study(spec.name, store)) or _is_unused(spec, store)):
            optuna.delete_study(study_name=spec.name, storage=store)
            names.remove(spec.name)
        if spec.name not in names:
            return _make_study(spec, store)
    study = load_study(spec.name, store)
    adopt(study)
    check_passed(study, spec.identity())
    if differences := spec_of(study, spec).differences(spec):
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        raise UserError(
            f"the study {spec.name!r} exists with another specification: {differences[0]}{more}; choose another name, "
            f"or remove it with subnet-search study delete {spec.name}"
        )
    if study.user_attrs.get(STOPPED):
        study.set_user_attr(STOPPED, False)
    _note_metrics(study, spec)
    if not spec.compares and study.user_attrs["spec"] != spec.to_json():  # the budget or another key that may change
        study.set_user_attr("spec", spec.to_json())
    return study


def _check_reach(spec: StudySpec) -> None:
    """Raise UserError for a hyperparameter that `run` sets for its own method if trials can have other methods."""
    own, methods = spec.run.extractor.name, spec.searched.methods()
    given = [key for key in spec.run.given().get(METHOD, {}) if key != "name" and not (key == "density" and spec.run.target)]
    for_all = {entry.key for entry in spec.searched.entries if not entry.when}
    for key in given:
        if f"{METHOD}.{key}" not in for_all and methods != [own]:
            value = getattr(spec.run.extractor, key)
            alone = f"{{when: {{{METHOD}: {own}}}, value: {value}}}"
            raise UserError(
                f"run.{METHOD} sets {key} for {own} only, but this study searches {', '.join(methods)}: set it in the space "
                f"for all methods ({METHOD}.{key}: {value}) or for one ({METHOD}.{key}: {alone})"
            )


def _make_study(spec: StudySpec, store: optuna.storages.BaseStorage) -> optuna.Study:
    _check_reach(spec)
    check_sampler(spec)
    study = optuna.create_study(study_name=spec.name, storage=store, directions=spec.directions)
    try:
        study.set_user_attr("folder", new_folder(spec.name))
        study.set_user_attr("versions", versions())
        if identity := spec.identity():
            study.set_user_attr(PASSED, identity)
        _note_metrics(study, spec)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(spec.objective)  # names of the values in Optuna's tools
        warm_start(study, spec)
        study.set_user_attr("space", spec.searched.words())  # for commands that do not parse the spec
        study.set_user_attr("spec", spec.to_json())
    except UserError:
        optuna.delete_study(study_name=spec.name, storage=store)
        raise
    return study


def _note_metrics(study: optuna.Study, spec: StudySpec) -> None:
    """Store the metrics of the task, for commands that do not import it, if they differ from what is stored."""
    if spec.task_metrics != task_metrics(study):
        study.set_user_attr(TASK, spec.task_metrics.plain())


def _is_unused(spec: StudySpec, store: optuna.storages.BaseStorage) -> bool:
    """Whether the stored study has another specification and no results: its trials failed untrained, or never began."""
    study = load_study(spec.name, store)
    for trial in study.get_trials(deepcopy=False):
        never_begun = trial.state == TrialState.WAITING and not TrialRecord(trial).began
        if not (never_begun or (trial.state == TrialState.FAIL and not trial.intermediate_values)):
            return False
    if "spec" not in study.user_attrs:
        return False
    return study.user_attrs.get(PASSED, {}) != spec.identity() or bool(spec_of(study, spec).differences(spec))


def _is_half_made(study: optuna.Study) -> bool:
    """Whether a study is empty because its process was killed before writing the spec, which is written last."""
    attrs, early = study.user_attrs.keys(), {"folder", "versions", "space", TASK, PASSED}
    return attrs <= early and ("folder" in attrs or not study.get_trials(deepcopy=False))
