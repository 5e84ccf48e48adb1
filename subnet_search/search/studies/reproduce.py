"""Train a trial again to get its subnetwork."""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from torch import nn

from subnet_search.artifact import Subnetwork
from subnet_search.artifact.mask_file import load_masks
from subnet_search.core.errors import RunError, UserError, shown
from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.config_file import check, flatten
from subnet_search.extraction.extract import run
from subnet_search.extraction.passed import put_objects
from subnet_search.search.spec.study_spec import check_passed
from subnet_search.search.storage.records import TrialRecord, plain_spec
from subnet_search.search.storage.trust import check_imports, imports_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reproduction:
    """A trial's subnetwork, trained again, and how it compares with the trial's result."""

    subnetwork: Subnetwork
    same: bool | None  # whether the hashes match; None if the trial was stopped early and has none
    overlap: float | None  # Jaccard index of the topologies; None if the trial's masks are not available
    changed: list[str]  # differences in package versions and machine

    def in_words(self) -> str:
        """One line for people."""
        if self.same:
            return "the same subnetwork, bit for bit"
        if self.same is None:
            return "the trial was stopped early, so there is no result to compare with"
        overlap = "" if self.overlap is None else f"; the topologies overlap by {self.overlap:.4f}"
        reason = "; ".join(self.changed) or "same versions; probably another kind of processor"
        return f"not bit-identical ({reason}){overlap}"


def retrain_trial(
    trial: FrozenTrial,
    out: str | Path | None = None,
    *,
    study: optuna.Study | None = None,
    network: nn.Module | None = None,
    data: Any = None,
    task: Any = None,
    resume: bool = False,
    weights: str | None = None,
    allow_imports: Collection[str] = (),
    progress: bool | None = False,
    should_stop: Callable[[], bool] | None = None,
) -> Reproduction:
    """Run a trial's stored configuration again, threads and seed included, and compare the hashes.

    Floating-point results can differ on another kind of machine; `same` is then False and `overlap` measures the difference.

    trial           a trial of a study, such as `study.best_trial`
    out             run folder; default: nothing is written
    study           used to download the trial's masks from its artifacts if the run folder is not on this machine, and to check
                    the objects
    network, data, task
                    the objects that were passed to the study, if there were any
    resume          continue from the checkpoint in `out`, or start if there is none
    weights         `values` or `seed`: what the file stores; default: as in the study. It does not change the result
    allow_imports   names or modules that the trial's configuration may import
    progress        show progress on standard error: True or False; None: in a terminal or a notebook
    should_stop     when it returns True, the run writes a checkpoint and raises Interrupted

    Raises RunError if the trial was never started; UserError if the folder holds another run, or an import is not allowed.
    """
    if not isinstance(trial, FrozenTrial):
        raise UserError(f"give a trial of the study, such as study.best_trial, got {shown(trial)}")
    record = TrialRecord(trial)
    if record.config is None:
        ends = {TrialState.WAITING: "it is queued", TrialState.COMPLETE: "it is not a trial of a study of subnet-search"}
        reason = ends.get(trial.state) or record.reason or "it was never started"
        raise RunError(f"trial {trial.number} has no configuration: {reason}")
    stored = {**record.config, **({"weights": weights} if weights else {})}
    values, passed = put_objects(stored, network, data, task)
    given = {key for key, value in (("network", network), ("data", data), ("task", task)) if value is not None}
    if study is not None:
        check_passed(study, dict.fromkeys(given, "") | passed.identity)
    check_imports(f"trial {trial.number}", imports_of({k: v for k, v in values.items() if k not in given}), allow_imports)
    config = check(RunConfig, values)
    subnet = run(
        config,
        out,
        resume=resume,
        module=passed.network,
        init=str(config.network.init),
        data=passed.data,
        progress=progress,
        should_stop=should_stop,
    )
    expected = record.sha256
    same = None if expected is None else subnet.sha256 == expected
    masks = record.folder / "masks.safetensors"
    if study is not None and not masks.is_file() and plain_spec(study).get("artifacts") is not None:
        from subnet_search.search.engine.artifact_store import fetch

        try:
            fetch(study, trial, masks.parent)
        except RunError as error:
            log.warning("%s", error)
    overlap = subnet.masks.overlap(load_masks(masks)) if masks.is_file() else None
    before, now = record.versions, subnet.origin.versions
    changed = [f"{key} was {before[key]}, is {now.get(key)}" for key in flatten(before) if before[key] != now.get(key)]
    return Reproduction(subnet, same, overlap, changed)


def pick_trial(best: list[FrozenTrial]) -> FrozenTrial:
    """The only best trial. Raises UserError when there are several: a Pareto front."""
    if len(best) > 1:
        raise UserError(f"the study has {len(best)} best trials (a Pareto front): choose one with --trial")
    return best[0]
