"""Start or continue a study with one worker in this process, several processes, or a Ray cluster."""

import json
import os
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from subnet_search.core.errors import UserError
from subnet_search.extraction.provenance import versions
from subnet_search.search.engine.copies import adopt
from subnet_search.search.engine.multiobjective_pruner import check_options
from subnet_search.search.engine.worker import run_worker
from subnet_search.search.spec.samplers import make_pruner, make_sampler
from subnet_search.search.spec.space_parser import LAYERS, METHOD
from subnet_search.search.spec.study_spec import StudySpec, read_study, spec_of, trusted_spec_of
from subnet_search.search.storage.connect import DEFAULT_STORAGE, load_study, open_storage, safe_url
from subnet_search.search.storage.locks import exclusive
from subnet_search.search.storage.records import STOPPED, TASK, task_metrics
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
    spec: StudySpec | str | os.PathLike[str],
    *,
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

    spec            a StudySpec, or the path of a YAML file
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
    spec = spec if isinstance(spec, StudySpec) else read_study(os.fspath(spec))
    url = storage or spec.storage
    allowed = sorted(imports_of_spec(json.loads(spec.to_json())) if allow_imports is None else allow_imports)
    study = prepare_study(spec, url, wait)
    count, budget, limit = workers or spec.workers, trials or spec.trials, timeout or spec.timeout
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
            run_worker(spec.name, url, wait=PATIENCE, **common)
        else:
            warn_if_shared(count, spec.run.recipe.threads or 1)
            run_processes(study, spec, url, count, budget, limit, allowed, should_stop)
    again = open_storage(url, wait=PATIENCE)
    return patiently(lambda: load_study(spec.name, again, sampler=make_sampler(spec), pruner=make_pruner(spec)))


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
        spec = spec.model_copy(update={"space": {**spec.space, LAYERS: spec.searched.layers()}})
        spec = type(spec).model_validate(spec.model_dump() | {"run": spec.run})
    make_sampler(spec), make_pruner(spec)  # raises UserError for an invalid option
    if spec.pruner["name"] == "rungs":
        check_options(spec)
    if spec.artifacts is not None:
        from subnet_search.search.engine.artifact_store import open_store

        open_store(spec)
    with exclusive(store, spec.name):
        names = optuna.get_all_study_names(store)
        if spec.name in names and _is_half_made(load_study(spec.name, store)):
            optuna.delete_study(study_name=spec.name, storage=store)
            names.remove(spec.name)
        if spec.name not in names:
            return _make_study(spec, store)
    study = load_study(spec.name, store)
    adopt(study)
    if differences := spec_of(study).differences(spec):
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        raise UserError(
            f"the study {spec.name!r} exists with another specification: {differences[0]}{more}; choose another name"
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
    study = optuna.create_study(study_name=spec.name, storage=store, directions=spec.directions)
    try:
        study.set_user_attr("folder", new_folder(spec.name))
        study.set_user_attr("versions", versions())
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


def _is_half_made(study: optuna.Study) -> bool:
    """Whether a study is empty because its process was killed before writing the spec, which is written last."""
    attrs = study.user_attrs.keys()
    return attrs <= {"folder", "versions", "space", TASK} and ("folder" in attrs or not study.get_trials(deepcopy=False))
