"""The network of a configuration, and the weights that it starts from."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from subnet_search.core.errors import UserError, unknown
from subnet_search.core.settings import Settings
from subnet_search.nets.checkpoints import put_state
from subnet_search.nets.head import head_of, replace_head
from subnet_search.nets.init import InitName, initialise
from subnet_search.nets.sources import (
    BUILT_IN,
    FORMS,
    PRETRAINED,
    TASK_CLASSES,
    construct,
    is_folder,
    is_own,
    library_of,
    of_folder,
)


class NetworkSpec(Settings):
    """The network and its initial weights. A string is short for the name."""

    name: str
    """A built-in network, `torchvision:NAME`, `timm:NAME`, `hf:TYPE` or `hf:./FOLDER` (transformers), or
    `package.module:factory`: your function, called with `options`, and `num_classes` and `shape` if it has such arguments."""
    init: InitName | None = None
    """Weight initialisation. Default: kaiming_normal for built-in networks and torchvision's, `keep` for others and for
    trained weights."""
    init_density: float | None = Field(default=None, gt=0, le=1)
    """For `scaled`: the density whose fan-in sets the variance. Default: the extractor's density."""
    options: dict[str, Any] = {}
    """Keyword arguments: `activation`, `norm` and `width` of built-in networks, those of the library, or your factory's."""
    state: str | None = None
    """Weights to start from: a .safetensors file (also a subnetwork file), or torch's .pt, .pth, .th or .bin.

    A state dict, or a checkpoint with one under `state_dict`, `model` or `ema`, or in its only entry of tensors. Names are
    ours or of the published code."""
    state_sha256: str | None = None
    """Hash of the `state` file, set when a run starts; a file that has changed since is refused."""
    partial: bool = False
    """Load the tensors of `state` that fit, and keep the initial values of the others."""
    trained: bool | None = None
    """Whether the network starts from trained weights, where that cannot be known: of your own function or module."""
    new_head: bool | str = False
    """Replace the last layer by one with as many outputs as the data needs: true, or the layer's name."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _known(self) -> "NetworkSpec":
        if ":" not in self.name and self.name not in BUILT_IN:
            raise unknown("network", self.name, [*BUILT_IN, *FORMS])
        if self.state and self.init not in (None, "keep"):
            raise UserError(f"network.init must be keep when network.state is set, got {self.init!r}")
        return self

    @property
    def pretrained(self) -> bool:
        """Whether the network starts from trained weights: those of a file, those that a library downloads, or as said."""
        if self.trained is not None:
            return self.trained
        return bool(self.state) or any(value for key, value in self.options.items() if key.startswith(PRETRAINED))

    @property
    def without_state(self) -> "NetworkSpec":
        """The same network with the weights that its factory draws: for its structure, where values do not matter."""
        nothing = {"init": "keep", "init_density": None, "state": None, "state_sha256": None, "partial": False}
        return self.model_copy(update=nothing)

    def resolve(self, density: float | None, task: str = "classification") -> "NetworkSpec":
        """The same spec with every default filled in. Raises UserError when its state file is missing or has changed.

        task: its name, by which the class of a transformers model is chosen.
        """
        if is_folder(self.name):
            name, options, state = of_folder(self.name)
            update = {"name": name, "options": {**options, **self.options}, "state": self.state or state}
            return self.model_copy(update=update).resolve(density, task)
        known = is_own(self.name) or self.pretrained
        for key in ("partial", "new_head"):
            if getattr(self, key) and not (known if key == "new_head" else self.state):
                raise UserError(f"network.{key} needs trained weights: set network.state", f"network.{key}")
        options = self.options
        if library_of(self.name) == "hf" and len(TASK_CLASSES.get(task, ())) == 1:
            options = {"class": TASK_CLASSES[task][0], **options}
        init = self.init or ("keep" if known or library_of(self.name) in ("timm", "hf") else "kaiming_normal")
        wanted = self.init_density or density
        if init == "scaled" and wanted is None:
            raise UserError("the initialisation 'scaled' needs a density: set extractor.density or network.init_density")
        found = file_sha256(self.state, "network.state", self.state_sha256) if self.state else None
        density = wanted if init == "scaled" else None
        return self.model_copy(update={"init": init, "init_density": density, "state_sha256": found, "options": options})


def build(
    spec: NetworkSpec, shape: tuple[int, ...], classes: int | None, seed: int, state: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """Build the network of a resolved spec and initialise its weights from `seed`, or from `state`, read from `spec.state`.

    shape: of one input; empty where inputs are not one tensor. classes: the number of outputs; None: not known.
    Factories of libraries and of users draw from torch's global generator, which is seeded here and
    restored afterwards. Raises UserError when the factory does not exist or does not accept its options, and when the
    state does not fit the network.
    """
    assert spec.state is None or state is not None, "read spec.state before building"
    brings_own = bool(spec.new_head) and not spec.state and (is_own(spec.name) or spec.pretrained)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = construct(spec.name, spec.options, shape, None if brings_own else classes)
    assert spec.init is not None, "call resolve() before build()"
    initialise(net, spec.init, seed, spec.init_density)
    head = head_of(net, spec.new_head) if spec.new_head else None
    if state is not None:
        put_state(net, state, spec.name, str(spec.state), spec.partial, head)
    if head:
        replace_head(net, head, classes, seed)
    return net


def file_sha256(file: str, key: str, before: str | None = None) -> str:
    """The SHA-256 of a file that a configuration names under `key`.

    Raises UserError when it cannot be read, and when it differs from `before`.
    """
    path = Path(file).expanduser()
    try:
        with open(path, "rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror} ({key})") from error
    if before not in (None, found):
        raise UserError(f"{file} has changed: its SHA-256 was {before}, now {found} ({key})")
    return found
