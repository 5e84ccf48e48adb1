"""A network by name: one of ours, torchvision's, or the user's factory; and the weights it starts from."""

import hashlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from subnet_search.core.errors import UserError, reason, shown, unknown
from subnet_search.core.imports import import_function
from subnet_search.core.settings import Settings
from subnet_search.nets import deep, small
from subnet_search.nets.checkpoints import put_state
from subnet_search.nets.init import InitName, initialise

Factory = Callable[[tuple[int, int, int], int], nn.Module]
NETWORKS: dict[str, Factory] = {
    factory.__name__: factory
    for factory in (
        small.lenet_300_100,
        small.lenet5,
        small.small_conv,
        small.conv2,
        small.conv4,
        small.conv6,
        deep.resnet20,
        deep.resnet32,
        deep.resnet56,
        deep.resnet18,
        deep.vgg19,
    )
}


def network_names() -> list[str]:
    """The names of the networks that ship with the package."""
    return list(NETWORKS)


class NetworkSpec(Settings):
    """The network and its initial weights. A string is short for the name."""

    name: str
    """A name of this package, `torchvision:NAME`, or `package.module:factory`, called with `options` and `num_classes`."""
    init: InitName | None = None
    """Weight initialisation. Default: kaiming_normal, and `keep` for your own factory or with `state`."""
    init_density: float | None = Field(default=None, gt=0, le=1)
    """For `scaled`: the density whose fan-in sets the variance. Default: the extractor's density."""
    options: dict[str, Any] = {}
    """Keyword arguments for the factory of a torchvision network or your own."""
    state: str | None = None
    """Weights to start from: a .safetensors file (also a subnetwork file), or torch's .pt, .pth, .th or .bin.

    A state dict, or a checkpoint with one under `state_dict`, `model` or `ema`. Names are ours or of the published code."""
    state_sha256: str | None = None
    """Hash of the `state` file, set when a run starts; a file that has changed since is refused."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _known(self) -> "NetworkSpec":
        if ":" not in self.name and self.name not in NETWORKS:
            raise unknown("network", self.name, [*NETWORKS, "torchvision:NAME", "package.module:factory"])
        if self.state and self.init not in (None, "keep"):
            raise UserError(f"network.init must be keep when network.state is set, got {self.init!r}")
        return self

    def resolve(self, density: float | None) -> "NetworkSpec":
        """The same spec with every default filled in. Raises UserError when its state file is missing or has changed."""
        own = ":" in self.name and not self.name.startswith("torchvision:")
        if self.options and self.name in NETWORKS:
            raise UserError(f"{self.name} takes no network.options; only torchvision networks and your own factories do")
        init = self.init or ("keep" if own or self.state else "kaiming_normal")
        wanted = self.init_density or density
        if init == "scaled" and wanted is None:
            raise UserError("the initialisation 'scaled' needs a density: set extractor.density or network.init_density")
        found = file_sha256(self.state, "network.state", self.state_sha256) if self.state else None
        density = wanted if init == "scaled" else None
        return self.model_copy(update={"init": init, "init_density": density, "state_sha256": found})


def is_ours(name: str) -> bool:
    """Whether a network of this name can be built without importing a user's module."""
    return name in NETWORKS or name.startswith("torchvision:")


def build(
    spec: NetworkSpec, shape: tuple[int, ...], classes: int | None, seed: int, state: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """Build the network of a resolved spec and initialise its weights from `seed`, or from `state`, read from `spec.state`.

    shape: of one input; empty where inputs are not one tensor. classes: the number of outputs, passed to factories as
    `num_classes`; None: not known, and not passed.
    Factories of torchvision and of users draw from torch's global generator, which is seeded here and
    restored afterwards. Raises UserError when the factory does not exist or does not accept its options, and when the
    state does not fit the network.
    """
    assert spec.state is None or state is not None, "read spec.state before building"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _construct(spec, shape, classes)
    assert spec.init is not None, "call resolve() before build()"
    initialise(net, spec.init, seed, spec.init_density)
    if state is not None:
        put_state(net, state, spec.name, str(spec.state))
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


def _construct(spec: NetworkSpec, shape: tuple[int, ...], classes: int | None) -> nn.Module:
    if spec.name in NETWORKS:
        if classes is None:
            raise UserError(f"{spec.name} needs the number of outputs, which the task does not give: use a network of your own")
        if len(shape) != 3:
            raise UserError(
                f"{spec.name} needs images (channels, height, width); one input of this data has shape {tuple(shape)}"
            )
        if min(shape[1:]) < 8:
            raise UserError(f"{spec.name} needs images of at least 8x8 pixels, got {shape[1]}x{shape[2]}")
        return NETWORKS[spec.name]((shape[0], shape[1], shape[2]), classes)
    options: dict[str, Any] = {**({} if classes is None else {"num_classes": classes}), **spec.options}
    own = None if spec.name.startswith("torchvision:") else import_function(spec.name, "network")
    try:
        net = own(**options) if own else _torchvision(spec.name.removeprefix("torchvision:"), options)
    except UserError:
        raise
    except Exception as error:  # anything that a user's factory raises
        raise UserError(f"{spec.name} does not accept {shown(options)}: {reason(error)}") from error
    if not isinstance(net, nn.Module):
        raise UserError(f"{spec.name} returned {type(net).__name__}, not a torch.nn.Module")
    return net


def _torchvision(name: str, options: dict[str, Any]) -> nn.Module:
    import torchvision.models as models

    valid = models.list_models(module=models)
    if name not in valid:
        raise unknown("torchvision network", name, valid)
    if name in ("googlenet", "inception_v3"):  # with auxiliary heads they return a tuple in training
        options = {"aux_logits": False, "init_weights": False, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net: nn.Module = models.get_model(name, **options)
    return net
