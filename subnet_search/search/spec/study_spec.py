"""A study's specification: search space, objectives, sampler, pruner and budget."""

import json
import re
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeAlias

import optuna
from pydantic import Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from subnet_search.core.documents import read_json
from subnet_search.core.errors import UserError, blaming, reading, shown, unknown
from subnet_search.core.imports import IMPORT_PATH
from subnet_search.core.redaction import remember
from subnet_search.core.settings import Settings
from subnet_search.core.task_metrics import TaskMetrics
from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.config_file import check, flatten, read_config, with_values
from subnet_search.extraction.passed import Passed, config_like, is_object
from subnet_search.search.spec.hub import check_hub
from subnet_search.search.spec.metrics import Constraint, find_measure, parse_constraint
from subnet_search.search.spec.sampler_options import check_options
from subnet_search.search.spec.search_space import Space
from subnet_search.search.spec.space_parser import LAYERS
from subnet_search.search.storage.connect import DEFAULT_STORAGE
from subnet_search.search.storage.records import PASSED
from subnet_search.search.storage.retry import in_one_line
from subnet_search.search.storage.trust import check_imports, imports_of_spec

BUCKET = ("bucket", "endpoint_url", "region_name")  # keys that locate an S3 bucket

Options: TypeAlias = dict[str, Any]

OPTUNA_WORDS = {
    "study_name": "write name",
    "n_trials": "write trials",
    "n_jobs": "write workers",
    "search_space": "write space",
    **dict.fromkeys(
        ("direction", "directions"), "each metric has its own direction (subnet-search tasks); name it in objective"
    ),
}
"""Arguments of Optuna, and what to write in a study."""


class StudySpec(Settings):
    """The specification of a study. Every key but `name` has a default."""

    compares: ClassVar[bool] = False
    other_kind = (frozenset(RunConfig.model_fields), "the configuration of one run: start it with subnet-search extract")

    name: str = Field(min_length=1)
    """The study's name in its storage."""
    run: RunConfig = RunConfig()
    """The base configuration of all trials. Runs use one CPU thread unless `recipe.threads` is set."""
    space: dict[str, Any] = Field(default={"extractor": "all"}, min_length=1)
    """Keys of a run with `{float: [low, high], log: true}`, `{int: ...}` or `{choice: [...]}`, a fixed value, or a
    list of these, each with a condition `when: {key: value}`. For `extractor`: `all` declared domains, a list of
    hyperparameters, or a mapping from hyperparameters to a domain, a value or null (the declared domain);
    `{choice: [...]}` searches methods, each with its declared domains."""
    objective: list[str] = []
    """Metrics to optimise: val_accuracy or another metric of the run's task, density, flops, latency, ... Several give a
    Pareto front. Default: the task's leading metric, val_accuracy for classification."""
    constraints: dict[str, str] = {}
    """Bounds on metrics, as in `density: "<= 0.1"`. The best trial satisfies all of them; a trial that is certain
    to violate one is not trained."""
    sampler: Options = {"name": "tpe"}
    """tpe, random, gp, nsga2 or cmaes, with Optuna's options; or `{hub: samplers/NAME, folder: ...}`, a sampler of OptunaHub
    (from `folder`, a copy of the registry's folder `package`, or downloaded), with its own options."""
    pruner: Options = {"name": "none"}
    """Stops trials early: hyperband, median or patient by the objective after each epoch, wilcoxon by the seeds of a trial
    (`repeats`), rungs for several objectives; with Optuna's options."""
    trials: int = Field(default=50, ge=1)
    """Number of trials to finish. Complete and pruned trials count, failed ones do not."""
    timeout: float | None = Field(default=None, gt=0)
    """Seconds after which no new trial is started."""
    steps: int | None = Field(default=None, ge=1)
    """Training steps over all trials after which no new trial is started."""
    repeats: int = Field(default=1, ge=1)
    """Number of seeds for the best trials, which are repeated on new seeds once all trials are finished."""
    promising: int = Field(default=5, ge=1)
    """Number of best trials to repeat."""
    duplicates: Literal["rerun", "reuse", "prune"] = "rerun"
    """What to do with a trial whose configuration was run before: run it with its own seed, reuse the result, or prune it."""
    enqueue: list[dict[str, Any]] = []
    """Values of searched keys to try first; `{study: NAME, best: 5}` takes the best trials of a study in the same storage."""
    imports: list[str] = []
    """Studies in the same storage, or files from `study export`, whose results are added to the sampler's history."""
    parallel: int | None = Field(default=8, ge=1)
    """Most trials that can run at once. Trial n is drawn from the results of trials up to n - parallel, so any number of
    workers finds the same trials. null: from all trials finished by then, as in Optuna."""
    workers: int = Field(default=1, ge=1)
    """Worker processes on this machine."""
    heartbeat: float = Field(default=60.0, gt=0, le=1e6)
    """Seconds between a worker's heartbeats. A worker without a heartbeat for five intervals loses its trial."""
    seed: int = Field(default=0, ge=0)
    """Determines the sampler's draws and, with the trial number, the seed of each run."""
    storage: str = DEFAULT_STORAGE
    """An Optuna storage URL: sqlite:///FILE for one machine, postgresql://... for many."""
    callbacks: dict[Literal["on_epoch", "on_trial"], str | dict[str, Any]] = {}
    """Your own functions, called by the workers, as `package.module:function`: `on_epoch` as function(study, trial, epoch) and
    `on_trial` as function(study, trial), as in Optuna; or `{hub: callbacks/NAME, ...}`, a callback of OptunaHub."""
    artifacts: str | dict[str, Any] | None = None
    """Where files of trials are stored for other machines: a shared folder, such as `runs/artifacts`, or
    `{bucket: NAME, endpoint_url: ..., region_name: ...}` (S3), with credentials from boto3's environment. null: not stored;
    one machine needs only its run folders."""

    _passed: Passed = PrivateAttr(default_factory=Passed)

    @model_validator(mode="before")
    @classmethod
    def _without_optunas_words(cls, values: Any) -> Any:
        for word, ours in OPTUNA_WORDS.items() if isinstance(values, Mapping) else ():
            if word in values:
                raise UserError(f"unknown key {word!r}: {ours}", word)
        return values

    @field_validator("storage", mode="before")
    @classmethod
    def _one_url(cls, value: Any) -> Any:
        """Errors do not repeat the value: it may hold a password."""
        if not isinstance(value, str):
            raise UserError("give one URL as text, such as sqlite:///runs/studies.db")
        remember(value)
        return value

    @field_validator("objective", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        if any(isinstance(one, Mapping) for one in (value if isinstance(value, list) else [value])):
            raise UserError(
                "a metric is its name, as in objective: val_accuracy or [val_accuracy, flops]; each has its own direction "
                f"(subnet-search tasks); got {shown(value)}"
            )
        return [value] if isinstance(value, str) else value

    @field_validator("sampler", "pruner", mode="before")
    @classmethod
    def _named(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, Mapping):
            return {"name": "none" if value is None else value}
        default = "hub" if "hub" in value else cls.model_fields[str(info.field_name)].default["name"]
        return {"name": default, **value}

    @field_validator("callbacks", mode="before")
    @classmethod
    def _importable(cls, value: Any) -> Any:
        for key, function in value.items() if isinstance(value, Mapping) else ():
            if isinstance(function, Mapping) and "hub" in function:
                check_hub("callback", function)
            elif not (isinstance(function, str) and IMPORT_PATH.fullmatch(function)):
                raise UserError(f"{key}: give package.module:function, or {{hub: callbacks/NAME}}, got {shown(function)}")
        return value

    @field_validator("constraints", mode="before")
    @classmethod
    def _in_words(cls, value: Any) -> Any:
        return {key: str(text) for key, text in value.items()} if isinstance(value, Mapping) else value

    @field_validator("artifacts", mode="before")
    @classmethod
    def _a_place(cls, value: Any) -> Any:
        """Errors do not repeat the value: it may be a secret."""
        if isinstance(value, str) and (not value or "://" in value):
            raise UserError("give a folder, or {bucket: NAME, endpoint_url: URL} for S3")
        for key, text in value.items() if isinstance(value, Mapping) else ():
            if re.search("key|secret|token|passw|credential", str(key), re.IGNORECASE) or "@" in str(text):
                raise UserError(f"do not store credentials in a study ({key}): boto3 reads them from the environment")
            if key not in BUCKET:
                raise unknown("key", key, BUCKET)
            if not text or not isinstance(text, str):
                raise UserError(f"{key} must be text")
        if isinstance(value, Mapping) and "bucket" not in value:
            raise UserError("a bucket is missing: {bucket: NAME}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "StudySpec":
        if "objective" not in self.model_fields_set:
            object.__setattr__(self, "objective", [self.task_metrics.val])
        with blaming("objective"):
            for name in self.objective:
                find_measure(name, self.run.task, "objective")
            if len(set(self.objective)) < len(self.objective) or not self.objective:
                raise UserError(f"objective: give at least one metric, each once, got {self.objective}")
        check_options("sampler", self.sampler)
        check_options("pruner", self.pruner)
        if self.sampler["name"] == "hub":
            with blaming("sampler.hub"):
                check_hub("sampler", self.sampler)
        with blaming("pruner.name"):
            self._check_pruner(self.pruner["name"])
        with blaming("constraints"):
            _ = self.bounds
        _ = self.searched
        return self

    def _check_pruner(self, name: str) -> None:
        others = [key for key in self.objective if key not in self.task_metrics.measures]
        own = " or ".join(self.task_metrics.measures)
        if name == "rungs":
            if len(self.objective) < 2 or len(others) == len(self.objective):
                raise UserError(f"pruner: rungs needs several objectives, one of them {own}")
        elif len(self.objective) > 1 and name != "none":
            form = ", ".join(
                f'{key}: "{"<=" if find_measure(key, self.run.task).direction == "minimize" else ">="} ..."'
                for key in others or ["density"]
            )
            raise UserError(
                f"the pruner {name!r} supports one objective: keep one of them and make the others "
                f"constraints (objective: {self.task_metrics.val}, constraints: {{{form}}}), or use pruner: rungs"
            )
        elif name == "wilcoxon" and self.repeats < 2:
            raise UserError("pruner: wilcoxon compares the seeds of trials: set repeats to 2 or more")
        elif name not in ("none", "wilcoxon") and others:
            raise UserError(
                f"the pruner {name!r} needs a value after each epoch, so the objective must be {own}, "
                f"not {others[0]}: make that a constraint, or use pruner: none"
            )

    @cached_property
    def searched(self) -> Space:
        """The parsed and checked space."""
        return Space(self.space, self.run)

    @cached_property
    def bounds(self) -> list[Constraint]:
        """The parsed constraints."""
        return [parse_constraint(name, text, self.run.task) for name, text in self.constraints.items()]

    @property
    def directions(self) -> list[Literal["minimize", "maximize"]]:
        """The direction of each objective."""
        return [find_measure(name, self.run.task).direction for name in self.objective]

    @property
    def task_metrics(self) -> TaskMetrics:
        """The metrics of the runs' task."""
        return TaskMetrics.of(self.run.task)

    @property
    def passed(self) -> Passed:
        """The Python objects that the study's run and callbacks are, in the process that has them."""
        return self._passed

    def with_passed(self, passed: Passed) -> Self:
        """A copy with `passed` as its Python objects."""
        found = self.model_copy()
        found._passed = passed
        return found

    def identity(self) -> dict[str, str]:
        """What was passed as an object: hashes of the network and the data, and the class of the task. Stored in the study."""
        return {**self.passed.identity, **({"task": self.run.task.name} if is_object(self.run.task) else {})}

    @property
    def uses_history(self) -> bool:
        """Whether a trial depends on the results of earlier trials."""
        return self.sampler["name"] != "random" or self.pruner["name"] != "none" or self.duplicates != "rerun"

    def config(self, values: Mapping[str, Any]) -> RunConfig:
        """The run configuration for values of keys, on one thread unless set. Raises UserError if it is invalid."""
        return self.on_one_thread(self._config(values))

    @staticmethod
    def on_one_thread(config: RunConfig) -> RunConfig:
        """`config` on one thread unless set: results depend on the number of threads, and must not on that of workers."""
        if config.recipe.threads is None:
            config = config.model_copy(update={"recipe": config.recipe.model_copy(update={"threads": 1})})
        return config

    def _config(self, values: Mapping[str, Any]) -> RunConfig:
        return self.searched.config(values)

    def differences(self, other: "StudySpec") -> list[str]:
        """Differences from `other`, as text, in everything but budget, workers and storage."""
        keys = {"objective", "constraints", "sampler", "pruner", "seed", "parallel", "duplicates", "repeats", "promising"}
        keys |= {"enqueue", "imports"}
        mine, theirs = (
            flatten(
                {
                    "run": spec.run.dump(),
                    "space": {
                        **{name: words for name, words in spec.searched.words().items() if not _is_layer(name)},
                        **spec.searched.pinned(),
                    },
                    "density_per_layer": bool(spec.space.get(LAYERS)),
                    **spec.model_dump(include=keys),
                }
            )
            for spec in (self, other)
        )
        return [
            f"{key} was {mine.get(key, 'absent')}, now {theirs.get(key, 'absent')}"
            for key in sorted(mine.keys() | theirs.keys())
            if mine.get(key) != theirs.get(key)
        ]

    def to_json(self) -> str:
        """The spec as stored in the study, for `from_json`. The storage URL is left out: it may hold a password."""
        left_out = {"run", "storage"} | (set() if self.callbacks else {"callbacks"})
        values = self.model_dump(mode="json", exclude=left_out)
        return json.dumps({**values, "run": self.run.given()})

    @classmethod
    def from_json(cls, text: str, like: "StudySpec | None" = None) -> "StudySpec":
        """A spec from `text`, as `to_json` gives it; `like` has the Python objects of the study, if there are any.

        Raises UserError when the text is damaged, or not valid in this version.
        """
        where = "the study's specification"
        with reading(where):
            values = read_json(text, where)
            if like and is_object(like.run.task):
                values["run"] = {**values["run"], "task": like.run.task}
            found = check(cls if values["space"] else Comparison, values, {"": where})
            return found.with_passed(like.passed) if like else found


class Comparison(StudySpec):
    """The specification of a comparison: nothing is sampled, each trial is a queued cell of a grid.

    The user attribute `cell` of a trial holds the values that it changes in the run, with its seed. The budget is the
    number of trials that have not failed, queued ones included.
    """

    compares: ClassVar[bool] = True
    space: dict[str, Any] = {}

    @property
    def uses_history(self) -> bool:
        return False

    @cached_property
    def searched(self) -> Space:
        return Space({}, self.run, empty=True)

    def _config(self, values: Mapping[str, Any]) -> RunConfig:
        return config_like(self.run, with_values(self.run.given(), values))


def read_study(path: str | Path, overrides: list[str] | None = None) -> StudySpec:
    """Read and check a YAML file. Raises UserError that names the file, the line and the key."""
    return read_config(StudySpec, path, overrides or ())


def _is_layer(name: str) -> bool:
    return name.startswith(f"{LAYERS}.")


def spec_of(study: optuna.Study, like: StudySpec | None = None) -> "StudySpec":
    """The spec stored in a study, with the study's current name. like: a spec with the objects passed to the study.

    Raises UserError if the study has none, or one that this version cannot read.
    """
    text = study.user_attrs.get("spec")
    if text is None:
        raise UserError(f"the study {study.study_name!r} was not created by subnet-search, so it cannot be continued")
    try:
        return StudySpec.from_json(json.dumps({**json.loads(text), "name": study.study_name}), like)
    except Exception as error:  # a damaged text can raise anything
        versions = study.user_attrs.get("versions")
        made = versions.get("subnet-search", "another version") if isinstance(versions, dict) else "another version"
        raise UserError(
            f"the study {study.study_name!r} from subnet-search {made} cannot be read by this version: {in_one_line(error)}"
        ) from error


def trusted_spec_of(study: optuna.Study, allowed: Collection[str], like: StudySpec | None = None) -> "StudySpec":
    """`spec_of`, for running the study.

    Raises UserError, before importing anything, for an import that is not allowed, and for objects that were passed to the
    study and are not in `like`.
    """
    check_passed(study, like.identity() if like else {})
    try:
        names = imports_of_spec(json.loads(study.user_attrs.get("spec", "{}")))
    except (ValueError, AttributeError, TypeError):
        return spec_of(study, like)  # raises the error
    check_imports(f"the study {study.study_name!r}", names, allowed)
    return spec_of(study, like)


def check_passed(study: optuna.Study, identity: Mapping[str, str]) -> None:
    """Raise UserError if the study was started with Python objects that are missing in `identity`, or others.

    identity: `StudySpec.identity` of what is passed now.
    """
    stored = study.user_attrs.get(PASSED)
    before = stored if isinstance(stored, Mapping) else {}
    objects = [part for part in ("network", "data", "task") if part in before]
    if any(part not in identity for part in objects):
        call = ", ".join(f"{part}=..." for part in objects)
        was, it = ("was", "it") if len(objects) == 1 else ("were", "them")
        raise UserError(
            f"the {' and the '.join(objects)} of the study {study.study_name!r} {was} passed from Python: pass {it} again, "
            f"as in ss.run_study(spec, {call}) or ss.retrain_trial(trial, study=study, {call})"
        )
    for part, what in (("network", "network"), ("weights", "weights of the network"), ("data", "data")):
        if part in before and before[part] != identity.get(part):
            raise UserError(f"the {what} of the study {study.study_name!r} changed: pass the same, or choose another name")
