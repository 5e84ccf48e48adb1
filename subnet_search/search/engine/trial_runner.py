"""Execute one trial (with the Wilcoxon pruner: one run for each seed) and return its final state."""

import errno
import gc
import logging
import math
import shutil
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from optuna.trial import TrialState

from subnet_search.core.errors import Interrupted, RunError, UserError, line_of
from subnet_search.core.task_metrics import in_words
from subnet_search.data import Data
from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.extract import run
from subnet_search.extraction.provenance import versions
from subnet_search.extraction.run_folder import drop_checkpoints
from subnet_search.extraction.session import check_storable
from subnet_search.nets import build, is_ours
from subnet_search.search.engine.callbacks import after_epoch
from subnet_search.search.engine.heartbeat import send_heartbeats
from subnet_search.search.engine.multiobjective_pruner import is_behind, rungs
from subnet_search.search.engine.scheduler import repeat_seed
from subnet_search.search.engine.trial_lease import LeaseLost, TrialLease
from subnet_search.search.engine.trial_log import log_to_file
from subnet_search.search.spec.metrics import at_epoch, before_training, check_isometry, measure, of_topology
from subnet_search.search.spec.study_spec import StudySpec
from subnet_search.search.storage.connect import scrub
from subnet_search.search.storage.ranking import number
from subnet_search.search.storage.records import REPEATS, last_lines
from subnet_search.topology.masks import Masks
from subnet_search.training import Epoch

REPORTS = 20  # most intermediate values of a trial without a pruner
TIMES = ("seconds", "latency")  # these differ when a seed is run again
FULL = (errno.ENOSPC, errno.EDQUOT)

log = logging.getLogger("subnet_search")


@dataclass(frozen=True)
class Ending:
    """Final state of a trial, with its values and user attributes."""

    state: TrialState
    values: Sequence[float] | None
    attrs: dict[str, Any] = field(default_factory=dict)


class _Pruned(Exception):
    """The trial is stopped early."""

    def __init__(self, reason: str, attrs: dict[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.attrs = attrs or {}


def run_trial(lease: TrialLease, spec: StudySpec, load: Callable[[RunConfig], Data], should_stop: Callable[[], bool]) -> Ending:
    """Run a trial until it is complete, pruned or failed.

    Raises Interrupted when stopped, RunError when the disk is full (both can be resumed from the last checkpoint), and
    LeaseLost when another worker has taken over.
    """
    with log_to_file(lease), send_heartbeats(lease, spec.heartbeat) as (lost, stopped), _keeping_artifacts(lease, spec):
        try:
            if lease.attrs.get("versions", versions()) != versions():
                _restart(lease)
            return _Trial(lease, spec, load(lease.config), lost).run(lambda: stopped.is_set() or should_stop())
        except _Pruned as pruned:
            log.info("stopped early: %s", pruned)
            last = [lease.reports[max(lease.reports)]] if lease.reports and len(spec.objective) == 1 else None
            return Ending(TrialState.PRUNED, last, {"reason": str(pruned), **pruned.attrs})
        except (Interrupted, LeaseLost):
            raise
        except Exception as error:  # any error fails this trial only; the reason is stored
            if any(isinstance(fault, OSError) and fault.errno in FULL for fault in (error, error.__cause__)):
                raise RunError(f"the disk is full: {error}") from error
            return _failure(lease, error)


class _Trial:
    """The runs of a trial, with constraints, reports and pruning."""

    def __init__(self, lease: TrialLease, spec: StudySpec, data: Data, lost: threading.Event) -> None:
        self.lease, self.spec, self.data, self.lost = lease, spec, data, lost
        self.config, self.module = lease.config, spec.passed.network
        self.names = list(dict.fromkeys([*spec.objective, *(bound.name for bound in spec.bounds)]))
        self.pruner = "none" if REPEATS in lease.attrs or spec.compares else spec.pruner["name"]
        epochs = self.config.recipe.epochs
        self.every = max(1, -(-epochs // REPORTS)) if self.pruner in ("none", "wilcoxon") else 1
        self.metrics = metrics = spec.task_metrics
        self.record = ("density", metrics.val, metrics.test, "steps", "passes", "seconds", "sha256")  # what is stored
        self.watched = spec.objective[0] if len(spec.objective) == 1 and spec.objective[0] in metrics.measures else None
        self.rungs = rungs(spec, epochs) if self.pruner == "rungs" else ()
        self.rung_values: dict[str, list[float]] = dict(lease.attrs.get("rungs", {}))
        self.on_epoch = after_epoch(lease, spec.passed.on_epoch)
        self.unreplayed = dict(lease.reports) if self.pruner not in ("none", "wilcoxon") else {}  # reports of earlier workers

    def run(self, should_stop: Callable[[], bool]) -> Ending:
        if "bytes" in self.names:
            check_storable(self.config, str(self.config.resolve().network.init))
        if "isometry" in self.names:
            check_isometry(self.config, self.data, self.module)
        self._constrain(before_training(self.config, self.data, self.module) if self.spec.bounds else {}, "before training")
        by_seeds = self.pruner == "wilcoxon"
        seeds: list[dict[str, Any]] = list(self.lease.attrs.get("seeds", []))
        record: dict[str, Any] = dict(self.lease.attrs.get("first", {}))
        for index in range(self.spec.repeats if by_seeds else 1):
            if index == len(seeds):
                values, found = self._run_seed(index, should_stop)
                numbers = {key: value for key, value in found.items() if number(value) is not None and key not in TIMES}
                seeds.append({"values": values, "sha256": found["sha256"], **numbers})
                record = record or found
            if by_seeds:
                self.lease.note(seeds=seeds, first=record)
                drop_checkpoints(self.lease.folder)
                self._compare_seeds(index, seeds[index]["values"][0], record)
        self._replay_reports(self.config.recipe.epochs)
        attrs = {key: value for key, value in record.items() if key != "seed"}
        means = [fmean(column) for column in zip(*(seed["values"] for seed in seeds), strict=True)]
        for name, value in zip(self.spec.objective, means, strict=True):
            if math.isnan(value):  # Optuna cannot store it
                raise RunError(f"{name} is {value}, not a number")
        log.info("complete: %s", ", ".join(f"{key} {value:.4g}" for key, value in zip(self.spec.objective, means, strict=True)))
        return Ending(TrialState.COMPLETE, means, attrs)

    def _run_seed(self, index: int, should_stop: Callable[[], bool]) -> tuple[list[float], dict[str, Any]]:
        """Run one seed; returns its objective values and what is stored about it."""
        config, folder = self.config, self.lease.folder
        if index:
            config = config.model_copy(update={"seed": repeat_seed(config.seed, index)})
            folder = folder / f"seed-{index}"

        def check_topology(masks: Masks) -> None:
            self._constrain(of_topology(self.config, self.data, masks, self.module), "by the initial topology")

        subnet = run(
            config,
            folder,
            resume=True,
            module=self.module,
            init=str(config.network.init),
            data=self.data,
            save=False,
            leased=True,
            progress=False,
            on_begin=check_topology if self.spec.bounds else None,
            on_step=lambda _: self._check_lease(),
            on_epoch=self._on_epoch,
            should_stop=should_stop,
        )
        names = dict.fromkeys([*self.names, *(["flops_ratio"] if "flops" in (config.target or ()) else ())])
        outputs = config.task.outputs(self.data)
        net = self.module
        if net is None and not is_ours(config.network.name):
            net = build(config.network.without_state, self.data.shape, outputs, config.seed)
        measured = measure(names, subnet, self.data, net, config.weights)
        for bound in self.spec.bounds:
            self.lease.constrain(bound.name, bound.violation(measured[bound.name]))
        summary = subnet.summary()
        return [measured[name] for name in self.spec.objective], {
            **{key: summary[key] for key in self.record},
            **{key: value for key, value in measured.items() if key not in self.record},
            "seed": config.seed,
        }

    def _constrain(self, metrics: dict[str, float], when: str) -> None:
        """Store the constraints whose values are certain; a violated one ends the trial."""
        for bound in self.spec.bounds:
            if bound.name in metrics:
                self.lease.constrain(bound.name, bound.violation(metrics[bound.name]))
                if bound.violation(metrics[bound.name]) > 0:
                    raise _Pruned(f"{bound} is violated {when}: {metrics[bound.name]:.4g}")

    def _check_lease(self) -> None:
        if self.lost.is_set():
            raise LeaseLost

    def _on_epoch(self, epoch: Epoch) -> None:
        quality = epoch.metrics[self.metrics.val]
        shown = in_words(self.metrics.leading, "validation"), quality
        log.info("epoch %d: %s %.4f, density %.4f", epoch.epoch, *shown, epoch.density)
        self.on_epoch(epoch)
        # Values are comparable only once the target density is reached.
        if not epoch.reached:
            return
        last = epoch.epoch >= self.config.recipe.epochs
        now = {
            "density": epoch.density,
            self.metrics.val: quality,
            "seconds": epoch.seconds,
            "steps": epoch.step,
        }
        if self.watched and self.pruner != "wilcoxon" and (last or epoch.epoch % self.every == 0):
            value = at_epoch(epoch)[self.watched]
            if not math.isfinite(value):
                raise RunError(f"{self.watched} is {value} after epoch {epoch.epoch}, not a finite number")
            self._replay_reports(epoch.epoch)
            self.unreplayed.pop(epoch.epoch, None)
            self.lease.in_memory.report(value, epoch.epoch)
            self.lease.report(epoch.epoch, value)
            if not last and self.pruner != "none" and self.lease.in_memory.should_prune():
                raise _Pruned(f"{self.spec.pruner['name']} stopped it after epoch {epoch.epoch}", now)
        if epoch.epoch in self.rungs and not last:
            metrics = {**at_epoch(epoch), "density": epoch.density}
            self.rung_values[str(epoch.epoch)] = [metrics[name] for name in self.spec.objective if name in metrics]
            self.lease.note(rungs=self.rung_values)
            if is_behind(self.lease, self.spec, str(epoch.epoch), self.rung_values[str(epoch.epoch)]):
                raise _Pruned(f"pruned by rank at rung {epoch.epoch}", now)

    def _replay_reports(self, epoch: int) -> None:
        """Replay past reports to the pruner after a resume."""
        for step in sorted(step for step in self.unreplayed if step < epoch):
            self.lease.in_memory.report(self.unreplayed.pop(step), step)
            self.lease.in_memory.should_prune()  # the pruner stores its state

    def _compare_seeds(self, index: int, value: float, record: dict[str, Any]) -> None:
        self.lease.in_memory.report(value, index)
        self.lease.report(index, value)
        if index + 1 < self.spec.repeats and self.lease.in_memory.should_prune():
            raise _Pruned(f"wilcoxon stopped it after {index + 1} seeds", {key: record[key] for key in self.record})


def _restart(lease: TrialLease) -> None:
    """Delete the progress made with other package versions: a trial uses one version throughout."""
    log.warning("starting over: the checkpoint is from other package versions")
    for path in set(lease.folder.iterdir()) - {lease.folder / "log.txt"}:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    lease.reports.clear()
    for key in ("seeds", "first", "rungs"):
        lease.attrs.pop(key, None)
    lease.note(versions=versions())


def _failure(lease: TrialLease, error: Exception) -> Ending:
    expected = isinstance(error, UserError | RunError)
    first = (str(error).splitlines() or [""])[0]
    reason = scrub(first if expected else f"{type(error).__name__}: {first}{line_of(error)}")
    trace = {} if expected else {"traceback": scrub("".join(traceback.format_exception(error)))}
    log.error("failed: %s", reason)
    if isinstance(error, MemoryError | torch.OutOfMemoryError):  # free its memory before the next trial
        error.__traceback__ = None
        gc.collect()
        torch.cuda.empty_cache()
    path = lease.folder / "log.txt"
    return Ending(TrialState.FAIL, None, {"reason": reason, **trace, "log": last_lines(path) if path.is_file() else []})


def _keeping_artifacts(lease: TrialLease, spec: StudySpec) -> AbstractContextManager[None]:
    """Copy checkpoints and files to the artifact store, if the spec has one."""
    if spec.artifacts is None:
        return nullcontext()
    from subnet_search.search.engine.artifact_store import shared

    return shared(lease, spec)
