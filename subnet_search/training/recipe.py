"""The training settings of a run; all have defaults."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt
from pydantic import Field, field_validator, model_validator

from subnet_search.core.errors import UserError, unknown
from subnet_search.core.settings import Settings
from subnet_search.data import AUGMENTATIONS
from subnet_search.topology.schedules import cosine, linear
from subnet_search.training.distributed import rank_and_world
from subnet_search.training.processors import default_threads
from subnet_search.training.readout import Readout

Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]


class Distill(Settings):
    """Train on the outputs of a teacher as well (Hinton et al. 2015, arXiv:1503.02531).

    The loss is (1 - weight) * the task's loss + weight * the task's distance between the outputs of network and teacher. The
    teacher is in evaluation mode, and its forward passes are counted in `passes`.
    """

    weight: float = Field(default=0.5, ge=0, le=1)
    """Share of the distance in the loss; the rest is the task's loss."""
    temperature: Positive = 4.0
    """Both outputs are divided by this before they are compared (not for regression)."""
    teacher: str | None = None
    """File of a subnetwork or state dict of the same network. Default: the network as the run begins, without masks."""
    teacher_sha256: str | None = None
    """Hash of the teacher, set when a run starts; a file that has changed since is refused."""


class Recipe(Settings):
    """Training settings. Settings that are not set take the extractor's published value, then the default here.

    A published number of epochs is never used. `compare` uses the same settings for all methods that train weights.
    """

    epochs: int = Field(default=20, ge=0)
    """Passes over the training images. 0: no training; the extractor only scores and selects."""
    batch_size: int = Field(default=128, ge=1)
    """Images in each step, over all processes together."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """sgd with momentum, adam (decay in the gradient) or adamw (decoupled decay)."""
    lr: Positive = 0.1
    """Learning rate of weights, or of relevance if only relevance is learned."""
    relevance_lr: Positive | None = None
    """Learning rate of relevance. Default: lr."""
    relevance_optimizer: Literal["sgd", "adam", "adamw"] | None = None
    """Optimizer while only relevance is learned. Default: optimizer."""
    scale_lr: NotNegative = 1e-3
    """Learning rate of learned rescaling factors, which have no weight decay."""
    relevance_decay: NotNegative | None = None
    """L2 penalty on relevance. Default: weight_decay."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of sgd; beta1 of adam and adamw."""
    nesterov: bool = False
    """Use Nesterov momentum (sgd)."""
    weight_decay: NotNegative = 0.0
    """L2 penalty, except on rescaling factors."""
    schedule: Literal["constant", "linear", "cosine", "step"] = "constant"
    """Learning rate schedule: linear and cosine decay to 0, step multiplies by gamma at the milestones."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Milestones of the step schedule, as fractions of the run."""
    gamma: Positive = 0.1
    """Factor on the learning rate at each milestone of the step schedule."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of the target distribution spread evenly over the classes; without classes it changes nothing."""
    augment: tuple[str, ...] = ()
    """Any of crop, flip, cutout, applied in this order to training images."""
    distill: Distill | None = None
    """Train on the outputs of a teacher as well: {weight: 0.5, temperature: 4, teacher: FILE}. Default: on the task alone."""
    patience: int | None = Field(default=None, ge=1)
    """Early stopping after this many epochs without a better validation accuracy; the best epoch is kept. None: off."""
    allow_collapse: bool = True
    """When a layer loses its last weight: true warns and continues, false stops with an error."""
    explored: bool = False
    """Record the in-time exploration rate, the fraction of weights that were ever alive (ITOP, arXiv:2102.02887)."""
    record_isometry: bool = False
    """Record the mean singular value of the Jacobian around each pruning, on 128 validation items (arXiv:2105.05916)."""
    weight_statistics: float | None = Field(default=None, gt=0, le=1)
    """Store mean and variance of every trained parameter over this fraction of the run, at its end, for `evaluate --ensemble`
    (SWAG-diagonal, arXiv:1902.02476): the file has three times the bytes. A change of the topology starts them anew."""
    statistics_every: int | None = Field(default=None, ge=1)
    """Steps between two samples of `weight_statistics`. Default: an epoch."""
    store_relevance: bool = False
    """Store the learned relevance, four bytes a unit, for `evaluate --ensemble` (gumbel and supermask)."""
    readout: Readout | None = None
    """ridge: at the end, solve the last layer by ridge regression on the training data (classification, regression).
    forward_ridge: first solve the linear layers before it, for targets from inputs and labels (arXiv:2501.16476)."""
    readout_penalty: Positive | None = None
    """Penalty on the squared weights of the readout beside the mean squared error. Default: chosen on a tenth of the training
    data."""
    readout_layer: str | None = None
    """Name of the linear layer that `readout` solves. Default: the last one."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, mps."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of each process; they affect results through rounding. Default: OMP_NUM_THREADS, or the processors that this
    process may use (affinity, cgroup quota) / processes."""
    processes: int | None = Field(default=None, ge=1)
    """Number of torchrun processes that split every batch; it affects results through rounding."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: forward passes with autocast."""
    channels_last: bool = False
    """Store images and filters in channels-last memory format."""
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
            raise UserError(f"milestones must be increasing fractions of the run between 0 and 1, got {list(value)}")
        return value

    @model_validator(mode="after")
    def _drawn_as_trained(self) -> "Recipe":
        stored = "weight_statistics" if self.weight_statistics else "store_relevance" if self.store_relevance else None
        if stored and self.readout:
            raise UserError(f"{stored} is of the trained last layer, which readout replaces: set one of the two")
        if self.weight_statistics and self.patience:
            raise UserError("weight_statistics are of the end of the run, and patience returns to an earlier epoch: set one")
        return self

    def resolve(self, published: Mapping[str, Any]) -> "Recipe":
        """The complete recipe: the user's settings, then `published`, then defaults; device, threads and processes are set.

        Raises UserError for a device that is not available, or another number of processes than are running.
        """
        chosen = {**published, **{key: getattr(self, key) for key in self.model_fields_set}}
        chosen["device"] = _device(chosen.get("device", self.device))
        chosen["threads"] = chosen.get("threads") or default_threads()
        chosen["processes"] = _processes(chosen.get("processes"))
        return Recipe(**chosen)

    def summary(self) -> str:
        """The training settings of weights in one line, without the number of epochs."""
        parts = [
            self.optimizer,
            f"lr {self.lr:g}",
            f"momentum {self.momentum:g}{' (Nesterov)' if self.nesterov and self.optimizer == 'sgd' else ''}",
            f"step at {list(self.milestones)} by {self.gamma:g}" if self.schedule == "step" else self.schedule,
            f"weight decay {self.weight_decay:g}",
            *([f"label smoothing {self.label_smoothing:g}"] if self.label_smoothing else []),
            *([f"distill {self.distill.weight:g} at temperature {self.distill.temperature:g}"] if self.distill else []),
            *([f"augment {', '.join(self.augment)}"] if self.augment else []),
            f"batch {self.batch_size}",
        ]
        return ", ".join(parts)

    def rate(self, progress: float) -> float:
        """The schedule's factor on every learning rate at `progress` (0 to 1)."""
        match self.schedule:
            case "linear":
                return linear(1.0, 0.0, progress)
            case "cosine":
                return cosine(1.0, 0.0, progress)
            case "step":
                return self.gamma ** sum(progress >= point for point in self.milestones)
        return 1.0


def _processes(wanted: int | None) -> int:
    world = rank_and_world()[1]
    if wanted not in (None, world):
        start = f"torchrun --nproc-per-node {wanted} -m subnet_search extract" if wanted != 1 else "subnet-search extract"
        raise UserError(f"recipe.processes is {wanted}, but the number of processes is {world}: start with {start}")
    return world


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name).item()  # "meta" has no values
    except Exception as error:
        raise UserError(f"the device {name!r} is not available: {str(error).splitlines()[0]}") from error
    return name
