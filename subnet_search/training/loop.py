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
    recipe = supernet.recipe
    keep_freed_memory()
    rank, world = rank_and_world()
    device = supernet.device
    train_split, val_split = data.train.to(device), data.val.to(device)
    mean, deviation = (None if t is None else t.to(device) for t in (data.mean, data.deviation))
    batches = Batches(train_split, mean, deviation, recipe.batch_size, seed, recipe.augment, rank, world)
    if batches.batch_size < world:
        raise UserError(f"a batch of {batches.batch_size} cannot be shared by {world} processes")
    per_epoch, total = batches.steps_per_epoch, recipe.epochs * batches.steps_per_epoch
    optimizer = make_optimizer(supernet, recipe)
    base_rates = [group["lr"] for group in optimizer.param_groups]
    losses = torch.zeros(per_epoch, device=device)  # of this epoch's steps
    progress, best = Progress(), dict[str, Tensor]()
    supernet.begin(Clock(0, total, seed))
    if resume and checkpoint and checkpoint.is_file():
        progress, best = load_checkpoint(checkpoint, supernet, optimizer, losses)
    learned = list(supernet.learned().values())
    started = time.monotonic() - progress.seconds

    def save() -> None:
        progress.seconds = time.monotonic() - started
        if checkpoint and rank == 0:
            save_checkpoint(checkpoint, progress, supernet, optimizer, losses, best)

    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        torch.backends.cudnn.flags(deterministic=True),
    ):
        while progress.step < total and not _out_of_patience(progress, recipe):
            clock = Clock(progress.step, total, seed)
            for group, base in zip(optimizer.param_groups, base_rates, strict=True):
                group["lr"] = base * recipe.rate(clock.progress)
            torch.manual_seed(derive(seed, "dropout", clock.step, rank))
            loss = training_step(supernet, optimizer, batches, clock, learned)
            losses[clock.step % per_epoch] = loss
            progress.step += 1
            if on_step:
                on_step(clock)
            epoch_ends = progress.step % per_epoch == 0
            if epoch_ends or progress.step % NAN_CHECK_EVERY == 0:
                _check_finite(losses, progress.step, per_epoch)
            if epoch_ends:
                average(b for b in supernet.net.buffers() if b.is_floating_point())
                seconds = time.monotonic() - started
                _end_epoch(progress, supernet, val_split, mean, deviation, losses, optimizer.param_groups[0]["lr"], seconds)
                if recipe.patience and progress.best == progress.history[-1].epoch:
                    best = {name: tensor.clone() for name, tensor in supernet.state().items()}
                if len(progress.history) % recipe.checkpoint_every == 0 or progress.step == total:
                    save()
                if on_epoch:
                    on_epoch(progress.history[-1])
            if should_stop and should_stop():
                save()
                raise Interrupted(f"stopped after step {progress.step} of {total}")
    if best:
        supernet.load_state(best)
    val = evaluate(supernet, val_split, mean, deviation)
    kept = progress.best if best and progress.best else len(progress.history)
    return Outcome(progress.history, val, kept, progress.step, time.monotonic() - started)


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


def evaluate(supernet: Supernet, split: Split, mean: Tensor | None, deviation: Tensor | None) -> Quality:
    """The quality of the `finish` topology on a split."""
    supernet.net.eval()
    return quality(logits(supernet.evaluator(), split, mean, deviation), split.labels)


def _end_epoch(
    progress: Progress,
    supernet: Supernet,
    val: Split,
    mean: Tensor | None,
    deviation: Tensor | None,
    losses: Tensor,
    lr: float,
    seconds: float,
) -> None:
    measured = evaluate(supernet, val, mean, deviation)
    epoch = Epoch(
        epoch=len(progress.history) + 1,
        step=progress.step,
        train_loss=losses.mean().item(),
        val_accuracy=measured.accuracy,
        val_loss=measured.nll,
        density=supernet.masks.density,
        lr=lr,
        seconds=seconds,
    )
    if progress.best is None or epoch.val_accuracy > progress.history[progress.best - 1].val_accuracy:
        progress.best = epoch.epoch
    progress.history.append(epoch)


def _out_of_patience(progress: Progress, recipe: Recipe) -> bool:
    if recipe.patience is None or progress.best is None:
        return False
    return len(progress.history) - progress.best >= recipe.patience


def _check_finite(losses: Tensor, step: int, per_epoch: int) -> None:
    """Raise RunError if a loss of this epoch, up to `step` steps done, is not a finite number."""
    index = (step - 1) % per_epoch
    bad = (~losses[: index + 1].isfinite()).nonzero()
    if len(bad):
        at = step - 1 - index + int(bad[0]) + 1
        raise RunError(f"the loss is {losses[bad[0]].item()} at step {at}: try a lower learning rate")
