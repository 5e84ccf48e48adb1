"""A recipe: how a network is trained. Numbers only; everything has a default."""

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt
from pydantic import Field, field_validator

from subnet_search.core.errors import UserError, unknown
from subnet_search.core.settings import Settings
from subnet_search.data import AUGMENTATIONS
from subnet_search.topology.schedules import cosine, linear
from subnet_search.training.distributed import rank_and_world

Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]


class Recipe(Settings):
    """How a network is trained. Settings left out take the extractor's published ones, then the defaults here.

    That holds for a run by itself. `compare` gives all methods that train weights the same settings instead, and a published
    length is never taken: `epochs` has the default here.
    """

    epochs: int = Field(default=20, ge=0)
    """Passes over the training images. 0: nothing is trained, only scored and selected."""
    batch_size: int = Field(default=128, ge=1)
    """Images a step, over all processes together."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """sgd with momentum, adam (decay in the gradient) or adamw (decoupled decay)."""
    lr: Positive = 0.1
    """Learning rate of what is learned: weights, or relevance where only that is learned."""
    relevance_lr: Positive | None = None
    """Learning rate of relevance. Default: lr."""
    relevance_optimizer: Literal["sgd", "adam", "adamw"] | None = None
    """Optimizer while relevance alone is learned. Default: optimizer, which also learns it together with weights."""
    scale_lr: NotNegative = 1e-3
    """Learning rate of learned rescaling factors; they have no weight decay."""
    relevance_decay: NotNegative | None = None
    """L2 penalty on relevance. Default: weight_decay."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of sgd; beta1 of adam and adamw."""
    nesterov: bool = False
    """Nesterov's momentum (sgd)."""
    weight_decay: NotNegative = 0.0
    """L2 penalty, on everything but rescaling factors."""
    schedule: Literal["constant", "linear", "cosine", "step"] = "constant"
    """How learning rates move over the run: linear and cosine go to 0, step multiplies by gamma at the milestones."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Where the step schedule lowers the rate, as fractions of the run."""
    gamma: Positive = 0.1
    """What the step schedule multiplies by at each milestone."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target spread evenly over the classes."""
    augment: tuple[str, ...] = ()
    """Any of crop, flip, cutout, applied in this order to training images."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after this many epochs without a better validation accuracy, and go back to the best. None: run to the end."""
    allow_collapse: bool = True
    """Go on, with a warning, when a layer loses its last weight. false: that is an error, and the run stops."""
    explored: bool = False
    """Record which weights were ever alive, at one bit a weight (in-time over-parameterisation, arXiv:2102.02887)."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, mps."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of a process. Part of the result, since sums depend on it. Default: its share of the processors."""
    processes: int | None = Field(default=None, ge=1)
    """Processes that share every batch, as torchrun starts them. Part of the result, since sums depend on it."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: forward passes under autocast."""
    channels_last: bool = False
    """Keep images and filters in channels-last memory order."""
    compile: bool = False
    """Compile the forward pass with torch.compile (needs a C++ compiler on the CPU)."""
    checkpoint_every: int = Field(default=1, ge=1)
    """Epochs between checkpoints."""

    @field_validator("augment")
    @classmethod
    def _known_augmentations(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in AUGMENTATIONS:
                raise unknown("augmentation", name, AUGMENTATIONS)
        return value

    @field_validator("milestones")
    @classmethod
    def _inside_the_run(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if list(value) != sorted(value) or any(not 0 < point < 1 for point in value):
            raise UserError(f"milestones must be rising fractions of the run between 0 and 1, got {list(value)}")
        return value

    def resolve(self, published: Mapping[str, Any]) -> "Recipe":
        """The complete recipe: what the user set, then the extractor's published settings, then this machine's."""
        chosen = {**published, **{key: getattr(self, key) for key in self.model_fields_set}}
        chosen["device"] = _device(chosen.get("device", self.device))
        chosen["threads"] = chosen.get("threads") or processors()
        chosen["processes"] = _processes(chosen.get("processes"))
        return Recipe(**chosen)

    def summary(self) -> str:
        """How weights are trained, in one line, without the length."""
        parts = [
            self.optimizer,
            f"lr {self.lr:g}",
            f"momentum {self.momentum:g}{' (Nesterov)' if self.nesterov and self.optimizer == 'sgd' else ''}",
            f"step at {list(self.milestones)} by {self.gamma:g}" if self.schedule == "step" else self.schedule,
            f"weight decay {self.weight_decay:g}",
            *([f"label smoothing {self.label_smoothing:g}"] if self.label_smoothing else []),
            *([f"augment {', '.join(self.augment)}"] if self.augment else []),
            f"batch {self.batch_size}",
        ]
        return ", ".join(parts)

    def rate(self, progress: float) -> float:
        """The factor on every learning rate at `progress` (0 to 1) of the run."""
        match self.schedule:
            case "linear":
                return linear(1.0, 0.0, progress)
            case "cosine":
                return cosine(1.0, 0.0, progress)
            case "step":
                return self.gamma ** sum(progress >= point for point in self.milestones)
        return 1.0


def processors() -> int:
    """How many processors this process may use; those that torchrun started beside it on this machine have as many."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, here // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _processes(wanted: int | None) -> int:
    world = rank_and_world()[1]
    if wanted not in (None, world):
        start = f"torchrun --nproc-per-node {wanted} -m subnet_search extract" if wanted != 1 else "subnet-search extract"
        raise UserError(f"recipe.processes is {wanted}, and {world} {'runs' if world == 1 else 'run'}: start it with {start}")
    return world


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name).item()  # "meta" has no values
    except Exception as error:
        raise UserError(f"the device {name!r} is not available here: {str(error).splitlines()[0]}") from error
    return name
