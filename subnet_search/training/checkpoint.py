"""Checkpoints: the state of a run that is not a function of (config, seed, step)."""

from collections.abc import Callable, Mapping
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
    """Metrics at the end of an epoch. Validation uses the topology that `Extractor.finish` returns."""

    epoch: int  # counted from 1
    step: int  # steps done
    train_loss: float  # mean over the epoch's steps, with penalties
    metrics: dict[str, float]  # of the task on the validation split, the leading one first: `val_accuracy`, `val_nll`
    density: float  # of prunable weights, in the validated topology
    lr: float  # at the epoch's last step
    seconds: float  # training time since the start of the run, over all resumes
    reached: bool = True  # whether the target density is reached
    dropped: float | None = None  # units dropped since the last epoch, as a fraction of those kept then; None in the first
    grown: float | None = None  # units grown since then, as a fraction of the same
    scores: dict[str, Any] | None = None  # histogram of relevance or of kept weights, see `history.histogram_of`

    @property
    def leading(self) -> float:
        """The task's leading metric."""
        return next(iter(self.metrics.values()))

    def plain(self) -> dict[str, Any]:
        """All values at one level, as in metrics.jsonl."""
        values = asdict(self)
        metrics: dict[str, Any] = values.pop("metrics")
        return {**values, **metrics}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Epoch":
        """From the values of `plain`, or of a checkpoint. Before 0.1.0, `val_nll` was called `val_loss`."""
        own = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        rest = {"val_nll" if name == "val_loss" else name: value for name, value in values.items() if name not in own}
        return cls(**{"metrics": rest, **own})


@dataclass
class Progress:
    """The state of a run, except its tensors."""

    step: int = 0  # steps done
    history: list[Epoch] = field(default_factory=list)
    best: int | None = None  # epoch of the best leading metric since the target density was reached
    seconds: float = 0.0
    passes: tuple[int, int] = (0, 0)  # forward and backward
    probe_steps: int = 0  # cost of gradients before training, in steps; so many first steps are not trained
    rate_origin: int = 0  # step that counts as the start of the learning rate schedule
    isometry: list[dict[str, float]] = field(default_factory=list)  # of each pruning, with `recipe.record_isometry`


def save_checkpoint(
    path: Path,
    progress: Progress,
    supernet: Supernet,
    optimizer: torch.optim.Optimizer,
    losses: Tensor,
    best: dict[str, Tensor],
    run: str | None = None,
) -> None:
    """Write the state of a run to one file, atomically. Raises RunError when it cannot be written.

    run: id of the run in its folder; only the same run can load the checkpoint
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
    """Restore a run from a checkpoint; returns its progress and the tensors of its best epoch.

    make_optimizer: called after the supernet's learned tensors are restored. run: id of the run (None: not checked).
    Raises UserError for a missing or damaged file, or one of another run.
    """
    tensors, header = load_tensors(path, "checkpoint")
    if run is not None and header.get("run") != run:
        raise UserError(f"{path} is a checkpoint of another run: remove it to start again")
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
    except Exception as error:  # tensors of another network, or an invalid header, can raise anything
        raise UserError(f"{path} is a checkpoint of another run: {(str(error).splitlines() or [''])[0]}") from error
    return progress, best


def _progress(saved: dict[str, Any]) -> Progress:
    return Progress(**{**saved, "history": [Epoch.of(epoch) for epoch in saved["history"]]})
