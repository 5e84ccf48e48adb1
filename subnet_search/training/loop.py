"""The only training loop: every extractor, every run and every resume goes through it."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from subnet_search.core.errors import Interrupted, RunError, UserError
from subnet_search.core.rng import derive
from subnet_search.data import Batches, Data, Split
from subnet_search.evaluation.accuracy import Quality, logits, quality
from subnet_search.evaluation.cost import cost, in_words
from subnet_search.extractors import Clock, Extractor, RelevanceLearner
from subnet_search.extractors.base import Change, only_begins, raised_intervals
from subnet_search.nets import left_whole
from subnet_search.topology.masks import Masks
from subnet_search.topology.select import NotANumber
from subnet_search.training.check_trainable import try_out
from subnet_search.training.checkpoint import Epoch, Progress, load_checkpoint, save_checkpoint
from subnet_search.training.distributed import (
    any_rank,
    average,
    check_equal,
    check_shares,
    from_first,
    rank_and_world,
    time_to_stop,
)
from subnet_search.training.memory import keep_freed_memory
from subnet_search.training.optimizer import make_optimizer
from subnet_search.training.probe import Probe
from subnet_search.training.supernet import Passes, Supernet

log = logging.getLogger(__name__)
ASKED = 0.01  # of a density: what is further off is said
NAN_CHECK_EVERY = 50  # steps; looking at a loss on a GPU waits for it


@dataclass(frozen=True)
class Outcome:
    """What a training run came to. The supernet holds the tensors."""

    history: list[Epoch]
    val: Quality  # of the topology and weights that were kept
    epoch: int  # the epoch that was kept: the last, or the best with early stopping; 0 when nothing was trained
    steps: int  # of the run, those included that went into looking at gradients before training
    probe_steps: int  # the latter
    raised_intervals: dict[str, int]  # between changes, in steps, where the fraction asked for was too short
    seconds: float


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
    """Train what the supernet's extractor learns, for the recipe's epochs.

    A checkpoint goes to `checkpoint` every `recipe.checkpoint_every` epochs and when `should_stop` says so; with
    `resume` the run goes on from there, to the same bits as if it had never stopped. Its checkpoints say the run's `name`,
    and one of another name is refused.
    `on_begin` is told the topology of an extractor that never changes it, before the first step and after a resume.
    Raises RunError with the step when the loss is not finite, and Interrupted when stopped: on all ranks alike.
    """
    keep_freed_memory()
    recipe, device = supernet.recipe, supernet.device
    rank, world = rank_and_world()
    data = data.to(device)
    batches = Batches(data.train, data.mean, data.std, recipe.batch_size, seed, recipe.augment, rank, world)
    check_shares(batches.batch_size, recipe.device)
    if recipe.epochs:
        try_out(supernet, data)
    run = Run(supernet, data, batches, seed, checkpoint if rank == 0 else None, name)
    progress, total = run.progress, run.total
    gpus = [device] if device.type == "cuda" else []
    with torch.enable_grad(), torch.random.fork_rng(devices=gpus), torch.backends.cudnn.flags(deterministic=True):
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
                if on_epoch:  # before the checkpoint: what a resume does not repeat has been told
                    on_epoch(epoch)
                if epoch.epoch % recipe.checkpoint_every == 0 or progress.step == total:
                    run.save()
            if should_stop and time_to_stop(should_stop, progress.step):
                run.save()
                any_rank(True)  # no rank leaves before the checkpoint is written
                raise Interrupted(f"stopped after step {progress.step} of {total}")
        check_equal(supernet.state, progress.step)
    return run.outcome()


def training_step(
    supernet: Supernet, optimizer: torch.optim.Optimizer, batches: Batches, clock: Clock, learned: list[Tensor]
) -> tuple[Tensor, Change | None]:
    """One step: forward, backward, the optimizer's step, and then what the extractor changes. Also returns the loss.

    An extractor with `replaces_step` is asked before the optimizer: its change takes the place of the optimizer's step.
    """
    supernet.net.train()
    extractor = supernet.extractor
    inputs, labels = batches.batch(clock.step)
    logits = supernet.forward(inputs, clock)
    loss = None
    if isinstance(extractor, RelevanceLearner) and supernet.relevance:
        loss = extractor.objective(logits, lambda: supernet.dense(inputs))
    if loss is None:
        loss = F.cross_entropy(logits, labels, label_smoothing=supernet.recipe.label_smoothing)
    if (penalty := extractor.penalty(supernet, clock)) is not None:
        loss = loss + penalty
    optimizer.zero_grad()
    loss.backward()
    supernet.passes += (0, 1)
    loss = loss.detach()
    average(_of_this_rank(supernet, learned, loss))
    supernet.watch_gradients()
    # Features are those of this rank's part of the batch: the first rank's count.
    ask = from_first if extractor.looks_at(clock) else _here
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

    Where the extractor is asked for a change next, gradients stay dense, for dead weights to grow by: what the optimizer
    made of them is zeroed. For optimizers that treat every weight by itself, which all of the recipe's do, that gives
    the same bits as gradients masked before, and needs no copy of them.
    """
    changes = type(supernet.extractor).step is not Extractor.step and not supernet.extractor.replaces_step
    if not changes:
        supernet.mask_gradients()
    optimizer.step()
    if changes:
        supernet.mask_weights(optimizer)


def _here(question: Callable[[], Change | None]) -> Change | None:
    return question()


def _of_this_rank(supernet: Supernet, learned: list[Tensor], loss: Tensor) -> Iterator[Tensor]:
    """What came out of this rank's part of a batch: gradients, running statistics, the loss."""
    yield from (parameter.grad for parameter in learned if parameter.grad is not None)
    yield from (buffer for buffer in supernet.net.buffers() if buffer.is_floating_point())
    yield loss


def evaluate(supernet: Supernet, data: Data, split: Split) -> Quality:
    """The quality of the `finish` topology on a split of `data`; both on the supernet's device.

    Every rank must ask: the first measures, and all get its numbers.
    """
    supernet.net.eval()
    return from_first(lambda: quality(logits(supernet.evaluator(), split, data.mean, data.std), split.labels))


@cache
def _warn_once(text: str) -> None:
    log.warning(text)


class Run:
    """A training run under way: the state that a checkpoint holds, and what happens in a step and between epochs."""

    def __init__(
        self, supernet: Supernet, data: Data, batches: Batches, seed: int, checkpoint: Path | None, name: str | None = None
    ) -> None:
        self.name = name  # of the run
        self.supernet, self.extractor, self.data, self.checkpoint = supernet, supernet.extractor, data, checkpoint
        self.batches, self.per_epoch = batches, batches.steps_per_epoch
        self.total = supernet.recipe.epochs * self.per_epoch
        self.start = Clock(0, self.total, seed)
        self.extractor.check(supernet.units, self.start)
        if (density := self.extractor.target_density) is not None:
            supernet.units.check(density)
        self.raised = raised_intervals(self.extractor, self.start)
        for name, steps in self.raised.items():
            _warn_once(f"{name} is raised to {steps} steps: in a run of {self.total} steps it would be shorter")
        self._warn_of_whole()
        self.anchor_at = self.extractor.rewinds_to(self.start)
        self.rate_steps = self.extractor.schedule_steps(self.start)
        self.losses = torch.zeros(self.per_epoch, device=supernet.device)  # of this epoch's steps
        self.progress, self.best = Progress(), dict[str, Tensor]()
        self.collapsed: set[str] = set()
        self._renew_optimizer()
        self.started = time.monotonic()

    def begin(self) -> None:
        """Make the extractor's first change. Raises UserError when its probes are worth more steps than there are."""
        probe = Probe(self.supernet, self.data)
        with torch.no_grad(), self._finite_at_first():
            change = self.extractor.begin(self.supernet, self.start, probe)
        if self.total and probe.steps > self.total:
            raise UserError(
                f"{self.extractor.name} looks at gradients worth {probe.steps} training steps, and the run has {self.total}"
            )
        self.progress.probe_steps = probe.steps if self.total else 0
        self.make(change)
        if self.total and not self.extractor.replaces_step:  # what falls on no step: before the first
            with torch.no_grad(), self._finite_at_first():
                first = self.extractor.step(self.supernet, self.start)
            if first:
                self.make(first)

    @contextmanager
    def _finite_at_first(self) -> Iterator[None]:
        try:
            yield
        except NotANumber as error:
            raise UserError(f"{self.extractor.name}: {error} before training: are the data and weights finite?") from error

    def step(self, clock: Clock) -> None:
        """One training step with the change that comes after it, or one that was spent on probing."""
        if clock.step == self.anchor_at:
            self.supernet.drop_anchor()
        loss, change = torch.zeros(()), None
        if clock.step >= self.progress.probe_steps:
            factor = self.supernet.recipe.rate((clock.step - self.progress.rate_origin) / max(1, self.rate_steps - 1))
            for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
                group["lr"] = base * factor
            torch.manual_seed(derive(clock.seed, "dropout", clock.step, self.batches.rank))
            try:
                loss, change = training_step(self.supernet, self.optimizer, self.batches, clock, self.learned)
            except NotANumber as error:
                raise RunError(f"{error} at step {clock.step + 1}: try a lower learning rate") from error
        self._note(loss)
        if change:
            self.make(change)

    def restore(self, path: Path) -> None:
        self.progress, self.best = load_checkpoint(path, self.supernet, self._renew_optimizer, self.losses, self.name)
        self.supernet.passes = Passes(*self.progress.passes)
        self.started = time.monotonic() - self.progress.seconds

    def save(self) -> None:
        self.progress.seconds, self.progress.passes = time.monotonic() - self.started, self.supernet.passes
        if self.checkpoint:
            save_checkpoint(self.checkpoint, self.progress, self.supernet, self.optimizer, self.losses, self.best, self.name)

    def end_epoch(self) -> Epoch:
        """Validate, and remember the state if it is the best so far and early stopping may go back to it."""
        self._look_for_nan()
        history, masks = self.progress.history, self.supernet.final()
        self._look_for_collapse(masks)
        val = evaluate(self.supernet, self.data, self.data.val)
        trained = self.per_epoch - min(self.per_epoch, max(0, self.progress.probe_steps - len(history) * self.per_epoch))
        epoch = Epoch(
            epoch=len(history) + 1,
            step=self.progress.step,
            train_loss=self.losses.sum().item() / max(1, trained),
            val_accuracy=val.accuracy,
            val_loss=val.nll,
            density=self.supernet.weight_masks(masks).density,
            lr=self.optimizer.param_groups[0]["lr"],
            seconds=time.monotonic() - self.started,
            reached=self.extractor.reached(self.supernet, masks, Clock(self.progress.step, self.total, self.start.seed)),
        )
        history.append(epoch)
        best = self.progress.best
        searching = self.supernet.relevance and self.extractor.paradigm.trains_after
        if epoch.reached and not searching and (best is None or epoch.val_accuracy > history[best - 1].val_accuracy):
            self.progress.best = epoch.epoch
            if self.supernet.recipe.patience:
                self.best = {name: tensor.clone() for name, tensor in self.supernet.state().items()}
        return epoch

    def out_of_patience(self) -> bool:
        patience, best = self.supernet.recipe.patience, self.progress.best
        return patience is not None and best is not None and len(self.progress.history) - best >= patience

    def outcome(self) -> Outcome:
        """The result, of the best state where early stopping kept one."""
        epoch, progress = len(self.progress.history), self.progress
        if self.best and progress.best:
            self.supernet.load_state(self.best)
            epoch = progress.best
        masks = self.supernet.final()
        self._look_for_collapse(masks)
        self._compare_with_asked(masks)
        val = evaluate(self.supernet, self.data, self.data.val)
        seconds = time.monotonic() - self.started
        return Outcome(progress.history, val, epoch, progress.step, progress.probe_steps, self.raised, seconds)

    def make(self, change: Change) -> None:
        """A change, and what it means for the optimizer and its rates. Raises UserError or RunError for a layer that dies."""
        learned = self.supernet.learns
        if change.survivors is not None:
            self.supernet.apply(Change(change.survivors))
            self.supernet.mask_weights(self.optimizer)
        self.supernet.apply(change)
        if self.supernet.learns != learned or change.rewind in ("weights", "both") or change.reset_optimizer:
            self._renew_optimizer()
        elif change.masks is not None and not self.supernet.relevance:
            self.supernet.mask_weights(self.optimizer)
        if change.rewind in ("schedule", "both"):
            self.progress.rate_origin = self.progress.step - change.schedule_to
        if not self.supernet.relevance:
            self._look_for_collapse(self.supernet.masks)

    def _renew_optimizer(self) -> torch.optim.Optimizer:
        self.optimizer = make_optimizer(self.supernet, self.supernet.recipe)
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.learned = list(self.supernet.learned().values())
        return self.optimizer

    def _note(self, loss: Tensor) -> None:
        """Count a step and keep its loss. Raises RunError when a loss of this epoch is not finite."""
        index = self.progress.step % self.per_epoch
        self.losses[index] = loss
        self.progress.step += 1
        if index + 1 == self.per_epoch or self.progress.step % NAN_CHECK_EVERY == 0:
            bad = (~self.losses[: index + 1].isfinite()).nonzero()
            if len(bad):
                step = self.progress.step - index + int(bad[0])
                raise RunError(f"the loss is {self.losses[bad[0]].item()} at step {step}: try a lower learning rate")

    def _warn_of_whole(self) -> None:
        """Say what no density counts, with its share."""
        net = self.supernet.net
        if left_whole(net, self.supernet.weights):
            counted = cost(net, self.supernet.weight_masks(self.supernet.masks), self.data.shape, self.data.examples())
            _warn_once(in_words(counted.left_whole))

    def _compare_with_asked(self, masks: Masks) -> None:
        """Say where a density was missed by more than 1 % of it, and by more than one unit where units are counted."""
        asked, units = self.extractor.target_density, self.supernet.units
        if asked is None:
            return
        reached = units.cost(masks)
        if abs(reached - asked) > max(ASKED * asked, 1 / masks.numel if units.exact else 0.0):
            log.warning(
                "%s was asked for a density of %g, and reached %.4g: its units are too large to come nearer",
                self.extractor.name,
                asked,
                reached,
            )

    def _look_for_nan(self) -> None:
        """Raise RunError when the last step has made something that is learned not a number: no loss has met it yet."""
        for name, tensor in self.supernet.learned().items():
            if bool(tensor.detach().isnan().any()):
                what = name.removeprefix("net.").replace("relevance.", "the relevance of ")
                raise RunError(f"{what} is not a number after step {self.progress.step}: try a lower learning rate")

    def _look_for_collapse(self, masks: Masks) -> None:
        dead = [name for name, mask in masks.items() if name not in self.collapsed and not mask.any()]
        if not dead:
            return
        self.collapsed.update(dead)
        step, layers = self.progress.step, ", ".join(name.removesuffix(".weight") for name in dead)
        text = f"layer collapse: no weight is left in {layers}"
        if not self.supernet.recipe.allow_collapse:
            raise UserError(text) if step == 0 else RunError(f"{text} at step {step}")
        log.warning("%s (%s, step %d)", text, self.extractor.name, step)
