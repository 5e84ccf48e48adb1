"""Train a study's trial again, to its subnetwork."""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial

from subnet_search.artifact import Subnetwork
from subnet_search.artifact.mask_file import load_masks
from subnet_search.core.errors import RunError, UserError
from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.config_file import check, flatten
from subnet_search.extraction.extract import run
from subnet_search.extractors import Clock
from subnet_search.search.engine.worker import config_of
from subnet_search.search.spec.study_spec import spec_of
from subnet_search.search.storage.records import TrialRecord
from subnet_search.search.storage.trust import check_imports, imports_of
from subnet_search.training import Epoch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reproduction:
    """A trial's subnetwork, trained again, beside what the trial itself had found."""

    subnetwork: Subnetwork
    same: bool | None  # by hash; None when the trial stored no hash (it was stopped early)
    overlap: float | None  # Jaccard index of the two topologies; None when the trial's is not at hand
    changed: list[str]  # versions and machine, where they differ from the trial's

    def in_words(self) -> str:
        """One line for people."""
        if self.same:
            return "the same subnetwork, bit for bit"
        if self.same is None:
            return "the trial was stopped early, so there is nothing to compare with"
        overlap = "" if self.overlap is None else f"; the topologies overlap by {self.overlap:.4f}"
        reason = "; ".join(self.changed) or "the same versions, so another kind of processor"
        return f"not the same bits ({reason}){overlap}"


def train_again(
    trial: FrozenTrial,
    out: str | Path,
    *,
    study: optuna.Study | None = None,
    resume: bool = False,
    weights: str | None = None,
    allow_imports: Collection[str] = (),
    on_step: Callable[[Clock], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Reproduction:
    """Run a trial's stored configuration again, threads and seed included, and compare the hashes.

    On another kind of machine floating point may differ; then `same` is false and `overlap` says how much. With the
    `study`, the trial's topology is fetched from its artifacts where the run folder is not on this machine.
    weights: what the file stores of them, in place of what the study says; it does not change what is found.
    Raises UserError when the trial never began, the folder holds another run, or the trial's network is imported by a
    name that is not in `allow_imports`.
    """
    record = TrialRecord(trial)
    check_imports(f"trial {trial.number}", imports_of(record.config), allow_imports)
    config = config_of(trial)
    config = check(RunConfig, {**config.dump(), "weights": weights}) if weights else config
    subnet = run(config, out, resume=resume, on_step=on_step, on_epoch=on_epoch, should_stop=should_stop)
    expected = record.sha256
    same = None if expected is None else subnet.sha256 == expected
    masks = record.folder / "masks.safetensors"
    if study is not None and not masks.is_file() and spec_of(study).artifacts is not None:
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
