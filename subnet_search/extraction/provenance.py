"""Record what a result depends on: configuration, network, data, and package versions."""

import functools
import hashlib
import importlib.metadata
import json
import platform
import re
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from subnet_search.artifact import Origin
from subnet_search.artifact.input_spec import spec_of
from subnet_search.core.tensor_files import digest
from subnet_search.data import Data
from subnet_search.extraction.config import RunConfig
from subnet_search.extractors import Extractor
from subnet_search.nets import NetworkSpec, inputs_first


def versions() -> dict[str, str]:
    """Versions of the packages and Python, and the kind of machine."""
    return {**_packages(), "python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}


@functools.cache
def _packages() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("subnet-search", "torch", "numpy")}


def identity_of(module: nn.Module | None, made: nn.Module, init: str, data: Data | None) -> dict[str, str | None]:
    """Hashes of the network (`module` if given, else `made`) and of the data, if there is any.

    Weights drawn from the run's seed are not hashed: the configuration determines them.
    """
    net, given = made if module is None else module, module is not None
    structure, tensors = _parts_of(net)
    return {
        "network": structure,
        "weights": digest(tensors) if given or init == "keep" else None,
        "init": init if given else None,
        "data": None if data is None else data.fingerprint,
    }


def module_sha256(net: nn.Module) -> str:
    """A hash of a module's structure and state."""
    structure, tensors = _parts_of(net)
    return hashlib.sha256((structure + digest(tensors)).encode()).hexdigest()


def _parts_of(net: nn.Module) -> tuple[str, dict[str, Tensor]]:
    """A hash of a module's structure, and the tensors of its state."""
    state = net.state_dict()
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor) and not is_lazy(value)}
    frozen = [name for name, parameter in net.named_parameters() if not parameter.requires_grad]
    shapes = [[name, str(value.dtype), list(value.shape)] for name, value in tensors.items()]
    others = {name: repr(value) for name, value in state.items() if name not in tensors}
    structure = json.dumps([repr(net), shapes, others, frozen])
    return hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", structure).encode()).hexdigest(), tensors


def _range(data: Data) -> tuple[float | None, float | None]:
    """Smallest and largest input value after normalisation; for images, of any possible pixel. None: not one tensor."""
    if data.mean is None or data.std is None:
        return (found.low, found.high) if (found := data.input_range) else (None, None)
    return float((-data.mean / data.std).min()), float(((1 - data.mean) / data.std).max())


def origin_of(
    config: RunConfig, net: nn.Module, spec: NetworkSpec | None, init: str, data: Data, outputs: int | None, example: Any
) -> Origin:
    """The origin record that a subnetwork file stores.

    outputs: the number that the task needs. example: inputs of a few items, as passed to the network.
    """
    one = isinstance(example, Tensor)
    scaled = None if spec else config.extractor.target_density if init == "scaled" else None
    low, high = _range(data)
    if one and low is None:  # the task passes one of several tensors
        low, high = (spec_of(example)[key] for key in ("low", "high"))  # type: ignore[call-overload]
    return Origin(
        network=spec,
        init=str(spec.init) if spec else init,
        init_density=spec.init_density if spec else scaled,
        shape=tuple(example.shape[1:]) if one else (),
        input_spec=None if one else spec_of(example),
        classes=outputs or 0,
        class_names=data.class_names,
        task=config.task.model_dump(mode="json"),
        dtype=str(example.dtype).removeprefix("torch.") if one else "float32",
        low=low,
        high=high,
        data=data.spec.model_dump(mode="json") if data.spec else None,
        mean=_decimals(data.mean),
        std=_decimals(data.std),
        extractor=named(config.extractor),
        unit=config.unit,
        round_to=config.round_to,
        target=None if config.target is None else {str(key): value for key, value in config.target.items()},
        dense_layers=tuple(config.dense_layers),
        inputs_first=tuple(sorted(inputs_first(net))),
        dynamic=config.extractor.dynamic,
        recipe=config.recipe.model_dump(mode="json"),
        seed=config.seed,
        versions=versions(),
    )


def _decimals(values: Tensor | None) -> tuple[float, ...] | None:
    """The shortest decimals that round to the float32 values: 0.485, not 0.48500001430511475."""
    return None if values is None else tuple(float(str(value)) for value in values.cpu().numpy())


def named(extractor: Extractor) -> dict[str, Any]:
    """Name and hyperparameters of a method as plain values."""
    return {"name": extractor.name, **extractor.model_dump(mode="json")}
