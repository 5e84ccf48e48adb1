"""A study's specification: what is searched, for what, how, and for how long."""

import json
import re
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import optuna
from pydantic import Field, field_validator, model_validator

from subnet_search.core.documents import read_json
from subnet_search.core.errors import UserError, blaming, reading, unknown
from subnet_search.core.redaction import remember
from subnet_search.core.settings import Settings
from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.config_file import check, flatten, read_config, with_values
from subnet_search.search.spec.metrics import MEASURES, Constraint, parse_constraint
from subnet_search.search.spec.search_space import Space
from subnet_search.search.spec.space_parser import LAYERS
from subnet_search.search.storage.connect import DEFAULT_STORAGE
from subnet_search.search.storage.retry import in_one_line
from subnet_search.search.storage.trust import check_imports, imports_of_spec

SAMPLERS = ("tpe", "random", "gp", "nsga2", "cmaes")
WATCHED = ("val_accuracy", "val_nll")  # what is known at the end of every epoch, and a pruner can look at
BUCKET = ("bucket", "endpoint_url", "region_name")  # what says where an S3 bucket is
PRUNERS = ("none", "hyperband", "median", "patient", "wilcoxon", "rungs")

Options: TypeAlias = dict[str, Any]


class StudySpec(Settings):
    """What a study searches. Everything but `name` has a default."""

    compares: ClassVar[bool] = False

    name: str = Field(min_length=1)
    """The study's name in its storage."""
    run: RunConfig = RunConfig()
    """The run that every trial varies. It takes one CPU thread, unless `recipe.threads` says otherwise."""
    space: dict[str, Any] = Field(default={"extractor": "all"}, min_length=1)
    """Keys of a run with `{float: [low, high], log: true}`, `{int: ...}` or `{choice: [...]}`, a value to set, or a list
    of either under `when: {key: value}`. For `extractor`: `all` of the domains it declares, a list of their names, or
    names with a domain, a value, or nothing (its own); `{choice: [...]}` searches methods, each with its own domains."""
    objective: list[str] = ["val_accuracy"]
    """What to search for: val_accuracy, density, flops, latency, ... Several give a Pareto front."""
    constraints: dict[str, str] = {}
    """What a trial has to keep to be the best, as in `density: "<= 0.1"`. One that is broken for certain is not trained."""
    sampler: Options = {"name": "tpe"}
    """tpe, random, gp, nsga2 or cmaes, with Optuna's options for it."""
    pruner: Options = {"name": "none"}
    """Stops trials early: hyperband, median or patient by validation accuracy after each epoch, wilcoxon by the seeds of
    a trial (`repeats`), rungs for several objectives; with Optuna's options for it."""
    trials: int = Field(default=50, ge=1)
    """Trials to finish: completed and pruned ones count, failed ones do not."""
    timeout: float | None = Field(default=None, gt=0)
    """Seconds after which no new trial is begun."""
    steps: int | None = Field(default=None, ge=1)
    """Training steps, over all trials, after which no new trial is begun."""
    repeats: int = Field(default=1, ge=1)
    """Seeds that the best trials are run with: once all trials are finished, the best are repeated on fresh seeds."""
    promising: int = Field(default=5, ge=1)
    """How many of the best are repeated."""
    duplicates: Literal["rerun", "reuse", "prune"] = "rerun"
    """What to do with a trial whose configuration has been run: with its own seed, take the result over, or drop it."""
    enqueue: list[dict[str, Any]] = []
    """Values of searched keys to try first; `{study: NAME, best: 5}` takes the best of a study in the same storage."""
    imports: list[str] = []
    """Studies in the same storage, or files that `study export` made, whose results the sampler knows from the start."""
    parallel: int | None = Field(default=8, ge=1)
    """How many trials may be under way at once. A trial is drawn from what was found at least so many places before it,
    so any number of workers finds the same trials. null: from whatever is finished by then, as Optuna does."""
    workers: int = Field(default=1, ge=1)
    """Processes on this machine."""
    heartbeat: float = Field(default=60.0, gt=0, le=1e6)
    """Seconds between a worker's signs of life. One that gives none for five times as long has lost its trial."""
    seed: int = Field(default=0, ge=0)
    """Decides the sampler's draws and, with a trial's number, the seed of its run."""
    storage: str = DEFAULT_STORAGE
    """An Optuna storage URL: sqlite:///FILE for one machine, postgresql://... for many."""
    artifacts: str | dict[str, Any] | None = None
    """Where files of trials are kept for other machines: a folder that all of them see, such as `runs/artifacts`, or
    `{bucket: NAME, endpoint_url: ..., region_name: ...}` (S3), with credentials from boto3's environment. null: nowhere, as
    on one machine the run folders are there already."""

    @field_validator("storage", mode="before")
    @classmethod
    def _one_url(cls, value: Any) -> Any:
        """No value is repeated in an error: it may hold a password."""
        if not isinstance(value, str):
            raise UserError("give one URL as text, such as sqlite:///runs/studies.db")
        remember(value)
        return value

    @field_validator("objective", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("sampler", "pruner", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"name": "none" if value is None else value} if not isinstance(value, Mapping) else value

    @field_validator("constraints", mode="before")
    @classmethod
    def _in_words(cls, value: Any) -> Any:
        return {key: str(text) for key, text in value.items()} if isinstance(value, Mapping) else value

    @field_validator("artifacts", mode="before")
    @classmethod
    def _a_place(cls, value: Any) -> Any:
        """No value is repeated in an error: it may be a secret."""
        if isinstance(value, str) and (not value or "://" in value):
            raise UserError("give a folder, or {bucket: NAME, endpoint_url: URL} for S3")
        for key, text in value.items() if isinstance(value, Mapping) else ():
            if re.search("key|secret|token|passw|credential", str(key), re.IGNORECASE) or "@" in str(text):
                raise UserError(f"a study is no place for a credential ({key}), which boto3 takes from its own environment")
            if key not in BUCKET:
                raise unknown("key", key, BUCKET)
            if not text or not isinstance(text, str):
                raise UserError(f"{key} must be a text")
        if isinstance(value, Mapping) and "bucket" not in value:
            raise UserError("a bucket is missing: {bucket: NAME}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "StudySpec":
        with blaming("objective"):
            for name in self.objective:
                if name not in MEASURES:
                    raise unknown("objective", name, MEASURES)
            if len(set(self.objective)) < len(self.objective) or not self.objective:
                raise UserError(f"objective: name each of them once, got {self.objective}")
        for kind, options, valid in (("sampler", self.sampler, SAMPLERS), ("pruner", self.pruner, PRUNERS)):
            with blaming(f"{kind}.name"):
                if options.get("name") not in valid:
                    raise unknown(kind, options.get("name"), valid)
        with blaming("pruner.name"):
            self._check_pruner(self.pruner["name"])
        with blaming("constraints"):
            _ = self.bounds
        _ = self.searched
        return self

    def _check_pruner(self, name: str) -> None:
        others = [key for key in self.objective if key not in WATCHED]
        if name == "rungs":
            if len(self.objective) < 2 or len(others) == len(self.objective):
                raise UserError("pruner: rungs is for several objectives, one of them val_accuracy or val_nll")
        elif len(self.objective) > 1 and name != "none":
            form = ", ".join(
                f'{key}: "{"<=" if MEASURES[key].direction == "minimize" else ">="} ..."' for key in others or ["density"]
            )
            raise UserError(
                f"the pruner {name!r} cannot weigh several objectives: make one of them the objective and the others "
                f"constraints (objective: val_accuracy, constraints: {{{form}}}), or use pruner: rungs"
            )
        elif name == "wilcoxon" and self.repeats < 2:
            raise UserError("pruner: wilcoxon compares the seeds of trials: set repeats to 2 or more")
        elif name not in ("none", "wilcoxon") and others:
            raise UserError(
                f"the pruner {name!r} watches validation after each epoch, so the objective is val_accuracy or val_nll, "
                f"not {others[0]}: make that a constraint, or use pruner: none"
            )

    @cached_property
    def searched(self) -> Space:
        """The space, read and checked."""
        return Space(self.space, self.run)

    @cached_property
    def bounds(self) -> list[Constraint]:
        """The constraints, read and checked."""
        return [parse_constraint(name, text) for name, text in self.constraints.items()]

    @property
    def directions(self) -> list[Literal["minimize", "maximize"]]:
        return [MEASURES[name].direction for name in self.objective]

    @property
    def looks_back(self) -> bool:
        """Whether anything about a trial depends on those before it."""
        return self.sampler["name"] != "random" or self.pruner["name"] != "none" or self.duplicates != "rerun"

    def config(self, values: Mapping[str, Any]) -> RunConfig:
        """The run that values of keys ask for, on one thread unless it says otherwise. Raises UserError when there is none."""
        config = self._config(values)
        if config.recipe.threads is None:  # never by the number of workers: sums depend on it
            config = config.model_copy(update={"recipe": config.recipe.model_copy(update={"threads": 1})})
        return config

    def _config(self, values: Mapping[str, Any]) -> RunConfig:
        return self.searched.config(values)

    def differences(self, other: "StudySpec") -> list[str]:
        """In words, how another spec searches something else: everything but budget, workers and storage."""
        keys = {"objective", "constraints", "sampler", "pruner", "seed", "parallel", "duplicates", "repeats", "promising"}
        keys |= {"enqueue", "imports"}
        mine, theirs = (
            flatten(
                {
                    "run": spec.run.dump(),
                    "space": {name: words for name, words in spec.searched.words().items() if not _is_layer(name)},
                    "density_per_layer": bool(spec.space.get(LAYERS)),
                    "set": spec.searched.pinned(),
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
        """The spec as it is kept in the study; `from_json` reads it back. The storage is left out: it may hold a password."""
        values = self.model_dump(mode="json", exclude={"run", "storage"})
        return json.dumps({**values, "run": self.run.given()})

    @classmethod
    def from_json(cls, text: str) -> "StudySpec":
        where = "the study's specification"
        with reading(where):
            values = read_json(text, where)
            return check(cls if values["space"] else Comparison, values, {"": where})


class Comparison(StudySpec):
    """A study that samples nothing: its trials are cells, each queued with the keys of the run that it changes.

    A trial that is a cell has it as its user attribute `cell`, with `values`, its seed among them. The budget is all
    trials that have not failed, those that wait included.
    """

    compares: ClassVar[bool] = True
    space: dict[str, Any] = {}

    @property
    def looks_back(self) -> bool:
        return False

    @cached_property
    def searched(self) -> Space:
        return Space({}, self.run, empty=True)

    def _config(self, values: Mapping[str, Any]) -> RunConfig:
        return check(RunConfig, with_values(self.run.given(), values))


def read_study(path: str | Path, overrides: list[str] | None = None) -> StudySpec:
    """A checked spec from a YAML file. Raises UserError that names the file, the line and the key."""
    return read_config(StudySpec, path, overrides or ())


def _is_layer(name: str) -> bool:
    return name.startswith(f"{LAYERS}.")


def spec_of(study: optuna.Study) -> "StudySpec":
    """The spec a study was started with, under the name that the study has.

    Raises UserError when it was not made by us, or by a version that knew more.
    """
    from subnet_search.search.spec.study_spec import StudySpec  # here, since whoever only looks on need not wait for torch

    text = study.user_attrs.get("spec")
    if text is None:
        raise UserError(f"the study {study.study_name!r} was not made by subnet-search, so it cannot be continued here")
    try:
        return StudySpec.from_json(json.dumps({**json.loads(text), "name": study.study_name}))
    except Exception as error:  # whatever a text that is no specification leads to
        versions = study.user_attrs.get("versions")
        made = versions.get("subnet-search", "another version") if isinstance(versions, dict) else "another version"
        raise UserError(
            f"the study {study.study_name!r} was made by subnet-search {made}, and cannot be read here: {in_one_line(error)}"
        ) from error


def trusted_spec_of(study: optuna.Study, allowed: Collection[str]) -> "StudySpec":
    """`spec_of`, for whoever runs it. Raises UserError, before anything is imported, for an import that is not allowed."""
    try:
        names = imports_of_spec(json.loads(study.user_attrs.get("spec", "{}")))
    except (ValueError, AttributeError, TypeError):
        return spec_of(study)  # which says what is wrong
    check_imports(f"the study {study.study_name!r}", names, allowed)
    return spec_of(study)
