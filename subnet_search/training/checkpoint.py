"""A checkpoint: everything between two steps that is not a function of (config, seed, step)."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from subnet_search.core.errors import UserError
from subnet_search.core.tensor_files import load_tensors, save_tensors
from subnet_search.training.supernet import Supernet


@dataclass(frozen=True)
class Epoch:
    """What is known at the end of an epoch. Validation uses the `finish` topology."""

    epoch: int  # from 1
    step: int  # steps done
    train_loss: float  # mean over the epoch's steps, penalty included
    val_accuracy: float
    val_loss: float  # mean negative log-likelihood
    density: float  # of the `finish` topology: of prunable weights
    lr: float  # at the epoch's last step
    seconds: float  # of training, since the start of the run, over all resumes
    reached: bool = True  # whether the topology is as sparse as was asked for


@dataclass
class Progress:
    """Where a run stands, apart from its tensors."""

    step: int = 0  # steps done
    history: list[Epoch] = field(default_factory=list)
    best: int | None = None  # epoch of the best validation accuracy, once the topology is as sparse as it will be
    seconds: float = 0.0
    passes: tuple[int, int] = (0, 0)  # forward and backward
    probe_steps: int = 0  # the first steps of the run, which looking at gradients before training was worth
    rate_origin: int = 0  # the step at which the learning rate's schedule would have begun


def save_checkpoint(
    path: Path,
    progress: Progress,
    supernet: Supernet,
    optimizer: torch.optim.Optimizer,
    losses: Tensor,
    best: dict[str, Tensor],
    run: str | None = None,
) -> None:
    """Write the whole state of a run to one file, atomically. Raises RunError when the disk is full.

    run   what the run's folder calls it: a checkpoint is of no use to another
    """
    tensors = {**supernet.state(), "losses": losses}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    for name, parameter in supernet.learned().items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{key}.{name}"] = value
    save_tensors(path, tensors, {"format": 2, "run": run, "progress": asdict(progress)})


def load_checkpoint(
    path: Path,
    supernet: Supernet,
    make_optimizer: Callable[[], torch.optim.Optimizer],
    losses: Tensor,
    run: str | None = None,
) -> tuple[Progress, dict[str, Tensor]]:
    """Put a run back to where it was saved; returns its progress and its best state.

    `make_optimizer` is called once the supernet learns what it learned then.

    Raises UserError for a missing or damaged file, or one that belongs to another run than `run` (None: to any).
    """
    tensors, header = load_tensors(path, "checkpoint")
    if run is not None and header.get("run") != run:
        raise UserError(f"{path} is a checkpoint of another run: the folder's own was replaced; remove it to begin again")
    try:
        progress = _progress(header["progress"])
        supernet.load_state(tensors)
        losses.copy_(tensors["losses"])
        learned, optimizer, best = supernet.learned(), make_optimizer(), {}
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "best":
                best[rest] = value.to(supernet.device)
            elif kind == "optimizer":
                key, _, owner = rest.partition(".")
                parameter = learned[owner]
                optimizer.state[parameter][key] = value.to(parameter.device) if value.shape == parameter.shape else value
    except Exception as error:  # whatever tensors of another network, or a header of another kind, make torch raise
        raise UserError(f"{path} is a checkpoint of another run: {(str(error).splitlines() or [''])[0]}") from error
    return progress, best


def _progress(saved: dict[str, Any]) -> Progress:
    return Progress(**{**saved, "history": [Epoch(**epoch) for epoch in saved["history"]]})
