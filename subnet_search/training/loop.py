"""The only training loop: every extractor, every run and every resume goes through it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from subnet_search.data import Batches, Data, Split
from subnet_search.errors import Interrupted, RunError, UserError
from subnet_search.evaluation.accuracy import Quality, logits, quality
from subnet_search.extractors import Clock
from subnet_search.seeds import derive
from subnet_search.training.checkpoint import Epoch, Progress, load_checkpoint, save_checkpoint
from subnet_search.training.memory import keep_freed_memory
from subnet_search.training.ranks import average, rank_and_world
from subnet_search.training.recipe import Recipe
from subnet_search.training.supernet import Supernet

NAN_CHECK_EVERY = 50  # steps; looking at a loss on a GPU waits for it


@dataclass(frozen=True)
class Outcome:
    """What a training run came to. The supernet holds the tensors."""

    history: list[Epoch]
    val: Quality  # of the topology and weights that were kept
    epoch: int  # the epoch that was kept: the last, or the best with early stopping; 0 when nothing was trained
    steps: int
    seconds: float


def train(
    supernet: Supernet,
    data: Data,
    seed: int,
    *,
    checkpoint: Path | None = None,
    resume: bool = False,
    on_step: Callable[[Clock], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Outcome:
    """Train what the supernet's extractor learns, for the recipe's epochs.

    A checkpoint goes to `checkpoint` every `recipe.checkpoint_every` epochs and when `should_stop` says so; with
    `resume` the run goes on from there, to the same bits as if it had never stopped.
    Raises RunError with the step when the loss is not finite, and Interrupted when stopped.
    """
    keep_freed_memory()
    recipe, device = supernet.recipe, supernet.device
    rank, world = rank_and_world()
    data = data.to(device)
    batches = Batches(data.train, data.mean, data.deviation, recipe.batch_size, seed, recipe.augment, rank, world)
    if batches.batch_size < world:
        raise UserError(f"a batch of {batches.batch_size} cannot be shared by {world} processes")
    total = recipe.epochs * batches.steps_per_epoch
    supernet.begin(Clock(0, total, seed))
    run = _Run(supernet, data, batches.steps_per_epoch, checkpoint if rank == 0 else None)
    if resume and checkpoint and checkpoint.is_file():
        run.restore(checkpoint)
    progress, learned = run.progress, list(supernet.learned().values())
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus), torch.backends.cudnn.flags(deterministic=True):
        while progress.step < total and not run.out_of_patience():
            clock = Clock(progress.step, total, seed)
            run.set_rates(recipe.rate(clock.progress))
            torch.manual_seed(derive(seed, "dropout", clock.step, rank))
            loss = training_step(supernet, run.optimizer, batches, clock, learned)
            run.note(loss)
            if on_step:
                on_step(clock)
            if progress.step % batches.steps_per_epoch == 0:
                epoch = run.end_epoch()
                if epoch.epoch % recipe.checkpoint_every == 0 or progress.step == total:
                    run.save()
                if on_epoch:
                    on_epoch(epoch)
            if should_stop and should_stop():
                run.save()
                raise Interrupted(f"stopped after step {progress.step} of {total}")
    return run.outcome()


def training_step(
    supernet: Supernet, optimizer: torch.optim.Optimizer, batches: Batches, clock: Clock, learned: list[Tensor]
) -> Tensor:
    """One step: forward, backward, then either a change of topology or the optimizer's step. Returns the loss."""
    supernet.net.train()
    inputs, labels = batches.batch(clock.step)
    loss = F.cross_entropy(supernet.forward(inputs, clock), labels, label_smoothing=supernet.recipe.label_smoothing)
    if (penalty := supernet.extractor.penalty(supernet, clock)) is not None:
        loss = loss + penalty
    optimizer.zero_grad()
    loss.backward()
    average(parameter.grad for parameter in learned if parameter.grad is not None)
    if change := supernet.extractor.step(supernet, clock):
        supernet.apply(change, optimizer)
    else:
        supernet.mask_gradients()
        optimizer.step()
    return loss.detach()


def make_optimizer(supernet: Supernet, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer over what is learned; rescaling factors have a rate of their own and no decay."""
    lr = recipe.relevance_lr or recipe.lr if supernet.relevance else recipe.lr
    scales = list(supernet.scales.values())
    rest = [p for p in supernet.learned().values() if not any(p is s for s in scales)]
    groups = [{"params": rest, "lr": lr, "weight_decay": recipe.weight_decay}]
    if scales:
        groups.append({"params": scales, "lr": recipe.scale_lr, "weight_decay": 0.0})
    match recipe.optimizer:
        case "sgd":
            nesterov = recipe.nesterov and recipe.momentum > 0
            return torch.optim.SGD(groups, lr=lr, momentum=recipe.momentum, nesterov=nesterov)
        case "adam":
            return torch.optim.Adam(groups, lr=lr, betas=(recipe.momentum, 0.999))
    return torch.optim.AdamW(groups, lr=lr, betas=(recipe.momentum, 0.999))


def evaluate(supernet: Supernet, data: Data, split: Split) -> Quality:
    """The quality of the `finish` topology on a split of `data`; both on the supernet's device."""
    supernet.net.eval()
    return quality(logits(supernet.evaluator(), split, data.mean, data.deviation), split.labels)


class _Run:
    """A training run under way: the state that a checkpoint holds, and what happens at the end of an epoch."""

    def __init__(self, supernet: Supernet, data: Data, per_epoch: int, checkpoint: Path | None) -> None:
        self.supernet, self.data, self.per_epoch, self.checkpoint = supernet, data, per_epoch, checkpoint
        self.optimizer = make_optimizer(supernet, supernet.recipe)
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.losses = torch.zeros(per_epoch, device=supernet.device)  # of this epoch's steps
        self.progress, self.best = Progress(), dict[str, Tensor]()
        self.started = time.monotonic()

    def restore(self, path: Path) -> None:
        found, self.best = load_checkpoint(path, self.supernet, self.optimizer, self.losses)
        self.progress = found
        self.started = time.monotonic() - found.seconds

    def save(self) -> None:
        self.progress.seconds = time.monotonic() - self.started
        if self.checkpoint:
            save_checkpoint(self.checkpoint, self.progress, self.supernet, self.optimizer, self.losses, self.best)

    def set_rates(self, factor: float) -> None:
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base * factor

    def note(self, loss: Tensor) -> None:
        """Count a step and keep its loss. Raises RunError when a loss of this epoch is not finite."""
        index = self.progress.step % self.per_epoch
        self.losses[index] = loss
        self.progress.step += 1
        if index + 1 == self.per_epoch or self.progress.step % NAN_CHECK_EVERY == 0:
            bad = (~self.losses[: index + 1].isfinite()).nonzero()
            if len(bad):
                step = self.progress.step - index + int(bad[0])
                raise RunError(f"the loss is {self.losses[bad[0]].item()} at step {step}: try a lower learning rate")

    def end_epoch(self) -> Epoch:
        """Validate, and remember the state if it is the best so far and early stopping may go back to it."""
        average(buffer for buffer in self.supernet.net.buffers() if buffer.is_floating_point())
        history, val = self.progress.history, evaluate(self.supernet, self.data, self.data.val)
        epoch = Epoch(
            epoch=len(history) + 1,
            step=self.progress.step,
            train_loss=self.losses.mean().item(),
            val_accuracy=val.accuracy,
            val_loss=val.nll,
            density=self.supernet.masks.density,
            lr=self.optimizer.param_groups[0]["lr"],
            seconds=time.monotonic() - self.started,
        )
        history.append(epoch)
        if self.progress.best is None or epoch.val_accuracy > history[self.progress.best - 1].val_accuracy:
            self.progress.best = epoch.epoch
            if self.supernet.recipe.patience:
                self.best = {name: tensor.clone() for name, tensor in self.supernet.state().items()}
        return epoch

    def out_of_patience(self) -> bool:
        patience, best = self.supernet.recipe.patience, self.progress.best
        return patience is not None and best is not None and len(self.progress.history) - best >= patience

    def outcome(self) -> Outcome:
        """The result, of the best state where early stopping kept one."""
        epoch = len(self.progress.history)
        if self.best and self.progress.best:
            self.supernet.load_state(self.best)
            epoch = self.progress.best
        val = evaluate(self.supernet, self.data, self.data.val)
        return Outcome(self.progress.history, val, epoch, self.progress.step, time.monotonic() - self.started)
