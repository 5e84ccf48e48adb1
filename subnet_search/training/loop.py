"""The training loop of all extractors, runs and resumes."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from subnet_search.core.errors import Interrupted, RunError, UserError
from subnet_search.core.nested import moved
from subnet_search.core.rng import seed_default_generators
from subnet_search.data import Batches, Data, Items, Split, in_order
from subnet_search.evaluation.cost import cost, in_words
from subnet_search.evaluation.isometry import INPUTS, check_floats, mean_singular_value
from subnet_search.extractors import Clock, Extractor, RelevanceLearner
from subnet_search.extractors.base import Change, only_begins, raised_intervals
from subnet_search.tasks import Recorded, Task, first_inputs, inputs_sent
from subnet_search.tasks.base import Network
from subnet_search.topology.channels import Channels
from subnet_search.topology.masks import Masks, pack
from subnet_search.topology.select import NotANumber
from subnet_search.training.check_trainable import check_trainable
from subnet_search.training.checkpoint import Epoch, Progress, load_checkpoint, save_checkpoint
from subnet_search.training.distributed import (
    any_rank,
    average,
    check_equal,
    check_shards,
    from_first,
    rank_and_world,
    time_to_stop,
)
from subnet_search.training.history import changes, histogram_of
from subnet_search.training.memory import keep_freed_memory
from subnet_search.training.optimizer import make_optimizer
from subnet_search.training.probe import Probe
from subnet_search.training.supernet import Passes, Supernet
from subnet_search.training.weight_statistics import first_sample

log = logging.getLogger(__name__)
DENSITY_TOLERANCE = 0.01  # relative; a larger deviation from the density asked for is logged
NAN_CHECK_EVERY = 50  # steps; reading a loss from a GPU synchronises


@dataclass(frozen=True)
class Outcome:
    """The result of a training run; the tensors are in the supernet."""

    history: list[Epoch]
    val: dict[str, Any]  # metrics of the task for the kept topology and weights
    epoch: int  # the kept epoch: the last, or the best with early stopping; 0 without training
    steps: int  # steps of the run, `probe_steps` included
    probe_steps: int  # cost of gradients before training, in steps
    raised_intervals: dict[str, int]  # in steps: intervals between changes that were raised to the minimum
    seconds: float
    isometry: list[dict[str, float]]  # of each pruning, with `recipe.record_isometry`


def train(
    supernet: Supernet,
    data: Data,
    seed: int,
    *,
    checkpoint: Path | None = None,
    name: str | None = None,
    resume: bool = False,
    on_begin: Callable[[Masks], None] | None = None,
    on_step: Callable[[Clock], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Outcome:
    """Train the supernet with its extractor for the recipe's epochs.

    A checkpoint is written to `checkpoint` every `recipe.checkpoint_every` epochs, and when `should_stop` returns True.
    With `resume` the run continues from it, with results identical to the bit. name: id of the run, stored in checkpoints;
    a checkpoint of another run is refused.
    on_begin: called with the weight masks before the first step and after a resume, for extractors that never change them.
    Raises, on all ranks, RunError with the step when the loss is not finite, and Interrupted when stopped.
    """
    keep_freed_memory()
    recipe, device = supernet.recipe, supernet.device
    rank, world = rank_and_world()
    data = data.to(device)
    batches = Batches(data.train, data.mean, data.std, recipe.batch_size, seed, recipe.augment, rank, world)
    check_shards(batches.batch_size, recipe.device)
    if recipe.epochs:
        check_trainable(supernet, data)
    run = Run(supernet, data, batches, seed, checkpoint if rank == 0 else None, name)
    progress, total = run.progress, run.total
    gpus = [device] if device.type == "cuda" else []
    with (
        closing(batches),
        torch.enable_grad(),
        torch.random.fork_rng(devices=gpus),
        torch.backends.cudnn.flags(deterministic=True),
    ):
        if resume and checkpoint and from_first(checkpoint.is_file):
            run.restore(checkpoint)
            progress = run.progress
        else:
            run.begin()
        check_equal(supernet.state, progress.step)
        if on_begin and only_begins(type(supernet.extractor)):
            on_begin(supernet.weight_masks(supernet.masks))
        while progress.step < total and not run.out_of_patience():
            clock = Clock(progress.step, total, seed)
            run.step(clock)
            if on_step:
                on_step(clock)
            if progress.step % batches.steps_per_epoch == 0:
                epoch = run.end_epoch()
                if on_epoch:  # before the checkpoint, since a resume does not repeat the call
                    on_epoch(epoch)
                if epoch.epoch % recipe.checkpoint_every == 0 or progress.step == total:
                    run.save()
            if should_stop and time_to_stop(should_stop, progress.step):
                run.save()
                any_rank(True)  # a barrier: no rank exits before the checkpoint is written
                raise Interrupted(f"stopped after step {progress.step} of {total}")
        check_equal(supernet.state, progress.step)
    return run.outcome()


def training_step(
    supernet: Supernet, optimizer: torch.optim.Optimizer, batch: Any, clock: Clock, learned: list[Tensor]
) -> tuple[Tensor, Change | None]:
    """One training step; returns the loss and the extractor's change, which is not yet applied.

    `Extractor.step` is called after the optimizer's step. With `replaces_step` it is called before, and a change replaces
    the optimizer's step.
    """
    supernet.net.train()
    extractor, network = supernet.extractor, Recorded(supernet.sampled(clock))
    loss = supernet.task.loss(network, batch, supernet.recipe.label_smoothing)
    distill = supernet.recipe.distill
    if isinstance(extractor, RelevanceLearner) and supernet.relevance and extractor.follows_dense:
        loss = supernet.task.distance(supernet.dense(*network.args, **network.kwargs), network.output, 1.0)
    elif distill:
        target = supernet.taught(*network.args, **network.kwargs)
        distance = supernet.task.distance(network.output, target, distill.temperature)
        loss = (1 - distill.weight) * loss + distill.weight * distance
    if (penalty := extractor.penalty(supernet, clock)) is not None:
        loss = loss + penalty
    optimizer.zero_grad()
    loss.backward()
    supernet.passes += (0, 1)
    loss = loss.detach()
    average(_to_average(supernet, learned, loss))
    supernet.update_momentum()
    # Features are of this rank's shard of the batch, so rank 0 decides.
    ask = from_first if extractor.looks_at(clock) else _on_this_rank
    with torch.no_grad():
        change = ask(lambda: extractor.step(supernet, clock)) if extractor.replaces_step else None
        if change is None:
            extractor.adjust(supernet, clock)
            _optimize(supernet, optimizer)
            if not extractor.replaces_step:
                change = ask(lambda: extractor.step(supernet, clock.next))
    return loss, change


def _optimize(supernet: Supernet, optimizer: torch.optim.Optimizer) -> None:
    """The optimizer's step; dead weights and their optimizer state are zero afterwards.

    If the extractor may make a change next, it needs dense gradients to grow weights by: then the results for dead weights
    are zeroed instead of their gradients. For elementwise optimizers (all of the recipe's) the bits are the same.
    """
    changes = type(supernet.extractor).step is not Extractor.step and not supernet.extractor.replaces_step
    if not changes:
        supernet.mask_gradients()
    optimizer.step()
    if changes:
        supernet.mask_weights(optimizer)


def _on_this_rank(make: Callable[[], Change | None]) -> Change | None:
    return make()


def _to_average(supernet: Supernet, learned: list[Tensor], loss: Tensor) -> Iterator[Tensor]:
    """The tensors to average over ranks: gradients, running statistics, the loss."""
    yield from (parameter.grad for parameter in learned if parameter.grad is not None)
    yield from (buffer for buffer in supernet.net.buffers() if buffer.is_floating_point())
    yield loss


@torch.no_grad()
def evaluate(supernet: Supernet, data: Data, split: Split | Items) -> dict[str, Any]:
    """The task's metrics of the `finish` topology on a split of `data`; both on the supernet's device.

    Must be called on every rank; rank 0 computes the result. Raises RunError when the leading metric is not a number.
    """
    supernet.net.eval()
    return measured(supernet.task, supernet.evaluator(), data, split)


@torch.no_grad()
def measured(task: Task, network: Network, data: Data, split: Split | Items) -> dict[str, Any]:
    """The metrics of a network in evaluation mode on a split; see `evaluate`."""
    found = from_first(lambda: task.measure(network, in_order(split, data.mean, data.std)))
    if task.leading not in found:
        raise RunError(f"the task {task.name} does not measure its leading metric {task.leading}")
    if math.isnan(found[task.leading]):
        raise RunError(f"the metric {task.leading} of the task {task.name} is not a number: try a lower learning rate")
    return found


@cache
def _warn_once(text: str) -> None:
    log.warning(text)


class Run:
    """A training run: the state in a checkpoint, and the operations of steps and epochs."""

    def __init__(
        self, supernet: Supernet, data: Data, batches: Batches, seed: int, checkpoint: Path | None, name: str | None = None
    ) -> None:
        self.name = name  # id of the run, stored in checkpoints
        self.supernet, self.extractor, self.data, self.checkpoint = supernet, supernet.extractor, data, checkpoint
        self.batches, self.per_epoch = batches, batches.steps_per_epoch
        self.total = supernet.recipe.epochs * self.per_epoch
        self.start = Clock(0, self.total, seed)
        supernet.check(self.start)
        self.raised = raised_intervals(self.extractor, self.start)
        for name, steps in self.raised.items():
            _warn_once(f"{name} is raised to {steps} steps, the minimum in a run of {self.total} steps")
        self._warn_left_whole()
        self.samples = first_sample(supernet.recipe, self.per_epoch) if supernet.recipe.weight_statistics else None
        self.isometry_inputs = self._isometry_inputs() if supernet.recipe.record_isometry else []
        self.rewind_at = self.extractor.rewinds_to(self.start)
        self.rate_steps = self.extractor.schedule_steps(self.start)
        self.losses = torch.zeros(self.per_epoch, device=supernet.device)  # of this epoch's steps
        self.progress, self.best = Progress(), dict[str, Tensor]()
        self.collapsed: set[str] = set()
        self._make_optimizer()
        self.started = time.monotonic()

    def begin(self) -> None:
        """Make the extractor's first change. Raises UserError when its probes cost more steps than the run has."""
        probe = Probe(self.supernet, self.data)
        with torch.no_grad(), self._finite_at_first():
            change = self.extractor.begin(self.supernet, self.start, probe)
        if self.total and probe.steps > self.total:
            raise UserError(
                f"the gradients of {self.extractor.name} before training cost {probe.steps} steps, but the run has {self.total}"
            )
        self.progress.probe_steps = probe.steps if self.total else 0
        self.make(change)
        if self.total and not self.extractor.replaces_step:  # a change that is due before the first step
            with torch.no_grad(), self._finite_at_first():
                first = self.extractor.step(self.supernet, self.start)
            if first:
                self.make(first)

    @contextmanager
    def _finite_at_first(self) -> Iterator[None]:
        try:
            yield
        except NotANumber as error:
            raise UserError(
                f"{self.extractor.name}: {error} before training: check that data and weights are finite"
            ) from error

    def step(self, clock: Clock) -> None:
        """One training step and its change; without training for the first `probe_steps` steps."""
        if clock.step == self.rewind_at:
            self.supernet.keep_rewind_state()
        loss, change = torch.zeros(()), None
        if clock.step >= self.progress.probe_steps:
            factor = self.supernet.recipe.rate((clock.step - self.progress.rate_origin) / max(1, self.rate_steps - 1))
            for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
                group["lr"] = base * factor
            batch = moved(self.batches.batch(clock.step), self.supernet.device)
            seed_default_generators(self.supernet.device, clock.seed, "dropout", clock.step, self.batches.rank)
            try:
                loss, change = training_step(self.supernet, self.optimizer, batch, clock, self.learned)
            except NotANumber as error:
                raise RunError(f"{error} at step {clock.step + 1}: try a lower learning rate") from error
        self._record(loss)
        if change:
            self.make(change)
        if self.samples and self.progress.step > self.samples[0] and self.progress.step % self.samples[1] == 0:
            self.supernet.add_weight_sample()

    def restore(self, path: Path) -> None:
        """Continue from the checkpoint at `path`."""
        self.progress, self.best = load_checkpoint(path, self.supernet, self._make_optimizer, self.losses, self.name)
        self.supernet.passes = Passes(*self.progress.passes)
        self.started = time.monotonic() - self.progress.seconds

    def save(self) -> None:
        """Write a checkpoint, if the run has a place for one."""
        self.progress.seconds, self.progress.passes = time.monotonic() - self.started, self.supernet.passes
        if self.checkpoint:
            save_checkpoint(self.checkpoint, self.progress, self.supernet, self.optimizer, self.losses, self.best, self.name)

    def end_epoch(self) -> Epoch:
        """Validate, and keep the state if it is the best so far (for early stopping)."""
        self._check_nan()
        history, masks = self.progress.history, self.supernet.final()
        self._check_collapse(masks)
        val, task = evaluate(self.supernet, self.data, self.data.val), self.supernet.task
        trained = self.per_epoch - min(self.per_epoch, max(0, self.progress.probe_steps - len(history) * self.per_epoch))
        epoch = Epoch(
            epoch=len(history) + 1,
            step=self.progress.step,
            train_loss=self.losses.sum().item() / max(1, trained),
            metrics={f"val_{name}": val[name] for name in dict.fromkeys([task.leading, *task.directions]) if name in val},
            density=self.supernet.weight_masks(masks).density,
            lr=self.optimizer.param_groups[0]["lr"],
            seconds=time.monotonic() - self.started,
            reached=self.extractor.reached(self.supernet, masks, Clock(self.progress.step, self.total, self.start.seed)),
            **changes(masks, self.supernet.last_epoch),
            scores=histogram_of(self.supernet),
        )
        self.supernet.last_epoch = {name: pack(mask) for name, mask in masks.items()}
        history.append(epoch)
        best = self.progress.best
        searching = self.supernet.relevance and self.extractor.paradigm.trains_after
        if epoch.reached and not searching and (best is None or self._better(epoch, history[best - 1])):
            self.progress.best = epoch.epoch
            if self.supernet.recipe.patience:
                self.best = {name: tensor.clone() for name, tensor in self.supernet.state().items()}
        return epoch

    def _better(self, epoch: Epoch, other: Epoch) -> bool:
        """Whether an epoch is better than another, by the task's leading metric."""
        task = self.supernet.task
        now, then = (one.metrics[f"val_{task.leading}"] for one in (epoch, other))
        return now > then if task.directions[task.leading] == "maximize" else now < then

    def out_of_patience(self) -> bool:
        """Whether as many epochs as `recipe.patience` have passed since the best one."""
        patience, best = self.supernet.recipe.patience, self.progress.best
        return patience is not None and best is not None and len(self.progress.history) - best >= patience

    def outcome(self) -> Outcome:
        """The result; with early stopping, of the best epoch, which is restored."""
        epoch, progress = len(self.progress.history), self.progress
        if self.best and progress.best:
            self.supernet.load_state(self.best)
            epoch = progress.best
        masks = self.supernet.final()
        self._check_collapse(masks)
        self._check_density(masks)
        val = evaluate(self.supernet, self.data, self.data.val)
        seconds = time.monotonic() - self.started
        return Outcome(
            progress.history, val, epoch, progress.step, progress.probe_steps, self.raised, seconds, progress.isometry
        )

    def make(self, change: Change) -> None:
        """Apply a change to network, optimizer and schedule.

        Raises UserError for what is no Change, and UserError or RunError for forbidden layer collapse.
        """
        if not isinstance(change, Change):
            raise UserError(
                f"{self.extractor.name} must return a Change (step: or None), got {type(change).__name__}: "
                "new masks are returned as Change(masks)"
            )
        learned, recording = self.supernet.learns, bool(self.isometry_inputs) and not self.supernet.relevance
        if recording and change.masks is not None:
            self._record_isometry(change.masks)
        if change.survivors is not None:
            self.supernet.apply(Change(change.survivors))
            self.supernet.mask_weights(self.optimizer)
        self.supernet.apply(change)
        if recording and change.masks is not None:
            self.progress.isometry[-1]["after"] = self._isometry()
        if self.supernet.learns != learned or change.rewind in ("weights", "both") or change.reset_optimizer:
            self._make_optimizer()
        elif change.masks is not None and not self.supernet.relevance:
            self.supernet.mask_weights(self.optimizer)
        if change.rewind in ("schedule", "both"):
            self.progress.rate_origin = self.progress.step - change.schedule_to
        if not self.supernet.relevance:
            self._check_collapse(self.supernet.masks)

    def _isometry_inputs(self) -> list[Any]:
        """Inputs to differentiate by. Raises UserError when they are not floats."""
        batches = in_order(self.data.val, self.data.mean, self.data.std)
        inputs = first_inputs(self.supernet.net, self.supernet.task, batches, INPUTS)
        check_floats(inputs)
        return inputs

    def _record_isometry(self, masks: Masks) -> None:
        """Add a row: before these masks, and with them alone, before weights change in other ways (rewinding, OrthP)."""
        before, density = self._isometry(), self.supernet.weight_masks(masks).density
        self.supernet.apply(Change(masks))
        row = {"step": self.progress.step, "density": density, "before": before, "pruned": self._isometry()}
        self.progress.isometry.append(row)

    def _isometry(self) -> float:
        return from_first(lambda: mean_singular_value(self.supernet.net, self.isometry_inputs))

    def _make_optimizer(self) -> torch.optim.Optimizer:
        self.optimizer = make_optimizer(self.supernet, self.supernet.recipe)
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.learned = list(self.supernet.learned().values())
        return self.optimizer

    def _record(self, loss: Tensor) -> None:
        """Count a step and keep its loss. Raises RunError when a loss of this epoch is not finite."""
        index = self.progress.step % self.per_epoch
        self.losses[index] = loss
        self.progress.step += 1
        if index + 1 == self.per_epoch or self.progress.step % NAN_CHECK_EVERY == 0:
            bad = (~self.losses[: index + 1].isfinite()).nonzero()
            if len(bad):
                step = self.progress.step - index + int(bad[0])
                raise RunError(f"the loss is {self.losses[bad[0]].item()} at step {step}: try a lower learning rate")

    def _warn_left_whole(self) -> None:
        """Log the parameters that are not pruned, which no density counts."""
        net, reasons = self.supernet.net, self.supernet.left_whole
        if reasons:
            example = inputs_sent(net, self.supernet.task, moved(self.data.first(), self.supernet.device))
            counted = cost(net, self.supernet.weight_masks(self.supernet.masks), self.data.shape, example, reasons)
            _warn_once(in_words(counted.left_whole))

    def _check_density(self, masks: Masks) -> None:
        """Log a density that deviates from the one asked for by more than 1 %, and by more than one unit."""
        asked, units = self.extractor.target_density, self.supernet.units
        if asked is None:
            return
        reached = units.cost(masks)
        if abs(reached - asked) > max(DENSITY_TOLERANCE * asked, 1 / masks.numel if units.exact else 0.0):
            log.warning(
                "%s: %s is %.4g instead of %g, since its units are too large for a closer value%s",
                self.extractor.name,
                "the density" if units.prices is None else "what is left of the target's operations or parameters",
                reached,
                asked,
                "; a smaller round_to is closer" if isinstance(units, Channels) else "",
            )

    def _check_nan(self) -> None:
        """Raise RunError when a learned tensor contains NaN after the last step, which no loss has shown yet."""
        for name, tensor in self.supernet.learned().items():
            if bool(tensor.detach().isnan().any()):
                what = name.removeprefix("net.").replace("relevance.", "the relevance of ")
                raise RunError(f"{what} is not a number after step {self.progress.step}: try a lower learning rate")

    def _check_collapse(self, masks: Masks) -> None:
        """Log layers without any weight, each once; raises UserError or RunError instead without `allow_collapse`."""
        dead = [name for name, mask in masks.items() if name not in self.collapsed and not mask.any()]
        if not dead:
            return
        self.collapsed.update(dead)
        step, layers = self.progress.step, ", ".join(name.removesuffix(".weight") for name in dead)
        text = f"layer collapse: no weight is left in {layers}"
        if not self.supernet.recipe.allow_collapse:
            raise UserError(text) if step == 0 else RunError(f"{text} at step {step}")
        log.warning("%s (%s, step %d)", text, self.extractor.name, step)
