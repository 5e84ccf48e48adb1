"""The subnetwork and its file: one safetensors file with masks, weights, and the settings of the run.

Masks are packed to one bit for each weight, and only alive weights are stored. For untrained weights these can be left out
too (`weights="seed"`): they are generated from the seed and verified by a hash. Reading a file runs no code, and does not
import, download or open anything named in the file.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from subnet_search.artifact.input_spec import Spec, load_examples, random_inputs
from subnet_search.artifact.mask_file import unpack_masks
from subnet_search.artifact.pretrained import MODEL, write_card
from subnet_search.core.errors import RunError, UserError, guarded, reason, shown
from subnet_search.core.nested import map_tensors
from subnet_search.core.numbers_as_text import cell, size
from subnet_search.core.task_metrics import in_words, leading_in
from subnet_search.core.tensor_files import damaged, digest, header_of, load_tensors, save_tensors
from subnet_search.nets import (
    NetworkSpec,
    build,
    check_accepts,
    initial_weight,
    is_ours,
    is_own,
    make_dynamic,
    own_copy,
    read_state,
)
from subnet_search.structure.compact import compact
from subnet_search.topology.masks import Masks, alive, pack

FORMAT = 3  # 1: without a hash over the header; 2: without a distribution, as files that have none are still written
KINDS = ("mask", "scale", "state", "kept", "relevance", "mean", "variance")  # prefixes of the names of tensors
INPUTS = "inputs.safetensors"  # in the run folder, next to the subnetwork: a few inputs of the run, as passed to the network
DOWNLOADS = ("weights", "pretrained")  # prefixes of factory options that download weights
SPLITS: dict[str, Literal["validation", "test"]] = {"val": "validation", "test": "test"}
Weights = Literal["values", "seed"]


class Origin(BaseModel):
    """The settings of the run that found a subnetwork, sufficient to reproduce it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    network: NetworkSpec | None  # None: a module passed from Python
    init: str  # weight initialisation; `keep`: the weights that were passed
    init_density: float | None
    shape: tuple[int, ...]  # of one input; empty where inputs are not one tensor
    input_spec: dict[str, Any] | list[Any] | None = None  # of inputs that are not one tensor
    classes: int = Field(ge=0)  # outputs that the task needs; 0: not known
    class_names: tuple[str, ...] | None = None
    task: dict[str, Any] | None = None  # None: a file from before tasks, of classification
    dtype: str = "float32"  # of inputs, as passed to the network
    low: float | None = None  # minimum and maximum of inputs, as passed to the network; None: unknown
    high: float | None = None
    data: dict[str, Any] | None  # None: data passed from Python
    mean: tuple[float, ...] | None  # mean of each channel of images scaled to 0..1; None: inputs are not normalised
    std: tuple[float, ...] | None
    extractor: dict[str, Any]
    unit: str
    round_to: int | None = None  # of channels; None: the default
    target: dict[str, float] | None = None  # density as a fraction of units, parameters or FLOPs
    dense_layers: tuple[str, ...] = ()  # layers that were not pruned by choice
    inputs_first: tuple[str, ...] = ()  # weights stored as (inputs, outputs)
    dynamic: bool = False  # each input chooses the filters that it computes
    recipe: dict[str, Any]
    seed: int
    versions: dict[str, str]

    @model_validator(mode="before")
    @classmethod
    def _earlier_names(cls, values: Any) -> Any:
        """Files from before 0.1.0 have `deviation` instead of `std`."""
        if isinstance(values, Mapping) and "deviation" in values and "std" not in values:
            return {**values, "std": values["deviation"]}
        return values

    @field_validator("dtype")
    @classmethod
    def _a_type(cls, value: str) -> str:
        if not isinstance(getattr(torch, value, None), torch.dtype):
            raise ValueError(f"{value!r} is not a torch dtype")
        return value

    @property
    def normalisation(self) -> dict[str, Any] | None:
        """The normalisation of inputs in plain values. None: inputs are not normalised."""
        if self.mean is None or self.std is None:
            return None
        return {"pixels": "0 to 1 (8-bit values / 255)", "mean": list(self.mean), "std": list(self.std)}

    @property
    def logits(self) -> int | None:
        """The number of logits of a classifier; None for other tasks."""
        return self.classes if (self.task or {"name": "classification"})["name"] == "classification" else None

    @property
    def every_output(self) -> bool:
        """Whether all tensors that the network returns are outputs: for tasks of the user's; others read the logits."""
        return ":" in (self.task or {"name": "classification"})["name"]

    @property
    def spec(self) -> Spec:
        """The spec of the inputs."""
        return self.input_spec or {"shape": list(self.shape), "dtype": self.dtype, "low": self.low, "high": self.high}

    @property
    def options(self) -> dict[str, Any]:
        """The options of the network's factory, without those that download weights."""
        options = self.network.options if self.network else {}
        return {key: value for key, value in options.items() if not key.startswith(DOWNLOADS)}

    @property
    def import_path(self) -> str:
        """`package.module:factory` of a function of the user's; these words for a module that was passed from Python."""
        return self.network.name if self.network and is_own(self.network.name) else "package.module:factory"

    def check_named(self) -> None:
        """Raise UserError when the network is not built in or in a library, so that a file cannot build it by name."""
        spec = self.network
        if spec is None or not is_ours(spec.name):
            called = spec.name if spec else "passed from Python"
            raise UserError(
                f"the network of this file ({called}) cannot be built by name: pass it, network=... in Python or "
                f"--network {self.import_path}"
            )

    def build(self, shapes: Mapping[str, tuple[int, ...]] | None = None, name: str | None = None) -> nn.Module:
        """Build the dense network by its name. Raises UserError when it is not built in or in a library.

        shapes   of its state dict, if known: a network that does not match is refused before memory is allocated
        name     another name, which may be a function of the user's, `package.module:factory`
        """
        if name is not None:
            given = NetworkSpec(name=name, init="keep", options=self.options)
            return build(given, self.shape, self.classes or None, self.seed)
        self.check_named()
        assert self.network is not None
        spec = self.network.model_copy(update={"init": "keep", "options": self.options, "state": None})
        if shapes is not None:
            own = None
            with suppress(Exception), torch.device("meta"):  # fails for networks that read values while they are built
                net = build(spec, self.shape, self.classes or None, 0)
                own = _shapes(self.with_gates(net))
            if own is not None:
                _check_shapes(own, shapes)
        net = build(spec, self.shape, self.classes or None, 0)
        return self.with_gates(net)

    def with_gates(self, net: nn.Module) -> nn.Module:
        """`net` with the gates of a run whose inputs choose filters, added in place; in other runs, `net` as it is."""
        return make_dynamic(net, self.shape) if self.dynamic else net

    def inputs(self, batch: int) -> Any:
        """Random inputs of `batch` items of the run's dtype, uniform over its range; the same on every call.

        Normally distributed for older files, which do not contain the range.
        """
        rng = torch.Generator().manual_seed(0)
        if self.input_spec is None and (self.low is None or self.high is None):
            return torch.randn((batch, *self.shape), generator=rng).to(getattr(torch, self.dtype))
        return random_inputs(self.spec, batch, rng)


def _shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in net.state_dict().items() if isinstance(value, Tensor)}


def _check_shapes(own: Mapping[str, tuple[int, ...]], state: Mapping[str, tuple[int, ...]]) -> None:
    wrong = sorted(own.keys() ^ state.keys()) or [name for name in own if own[name] != state[name]]
    if wrong:
        raise UserError(f"this subnetwork is of another network: {wrong[0]} differs ({len(wrong)} tensors in all)")


@dataclass(frozen=True)
class Distribution:
    """What other networks can be drawn from: learned relevance of the units, or mean and variance of the parameters."""

    relevance: Mapping[str, Tensor] = field(default_factory=dict)  # of the shapes of the units
    mean: Mapping[str, Tensor] = field(default_factory=dict)  # of the trained parameters; dead weights 0
    variance: Mapping[str, Tensor] = field(default_factory=dict)
    samples: int = 0  # that mean and variance are of

    def tensors(self, masks: Masks) -> dict[str, Tensor]:
        """As stored in a file: of prunable weights, only those that are kept."""
        found = {f"relevance.{name}": value for name, value in self.relevance.items()}
        for kind, values in (("mean", self.mean), ("variance", self.variance)):
            found |= {f"{kind}.{name}": value[masks[name]] if name in masks else value for name, value in values.items()}
        return found

    @classmethod
    def of(cls, groups: Mapping[str, Mapping[str, Tensor]], masks: Masks, samples: int) -> "Distribution":
        """From the tensors of a file, by kind and name."""
        dense = {
            kind: {name: _filled(masks[name], value) if name in masks else value for name, value in groups[kind].items()}
            for kind in ("mean", "variance")
        }
        return cls(groups["relevance"], dense["mean"], dense["variance"], samples)


@dataclass(frozen=True, repr=False)
class Subnetwork:
    """A topology with its weights, rescaling factors, and all other tensors of the network."""

    masks: Masks
    """Which weights are kept, of the weights' shapes, by parameter name."""
    weights: Mapping[str, Tensor]
    """The prunable parameters, dense; dead weights are zero."""
    scales: Mapping[str, Tensor]
    """Rescaling factors of the weights: scalars, (out, 1, ...) or (1, out)."""
    state: Mapping[str, Tensor]
    """All other parameters and buffers."""
    origin: Origin
    """The settings of the run."""
    metrics: Mapping[str, Any]
    """Metrics of the run: accuracies (0 to 1), steps, seconds, and others."""
    distribution: Distribution | None = None
    """Learned relevance or weight statistics, with `recipe.store_relevance` or `recipe.weight_statistics`."""
    examples: Any = field(default=None, compare=False)
    """A few inputs of the run; not in the file."""
    module: nn.Module | None = field(default=None, compare=False)
    """The network as passed to `extract`; not in the file."""

    @classmethod
    def of(
        cls, net: nn.Module, masks: Masks, scales: Mapping[str, Tensor], origin: Origin, metrics: Mapping[str, Any]
    ) -> "Subnetwork":
        """The subnetwork of `net` under `masks`, copied to the CPU, with its `scales`, `origin` and `metrics`."""
        masks = masks.to("cpu")
        everything = {name: value.detach().cpu().contiguous().clone() for name, value in net.state_dict().items()}
        weights = {name: _pruned(everything.pop(name), mask) for name, mask in masks.items()}
        return cls(masks, weights, {n: s.detach().cpu().clone() for n, s in scales.items()}, everything, origin, metrics)

    def __repr__(self) -> str:
        rows = self._rows()
        return f"Subnetwork({rows.pop('method')}: {', '.join(f'{key} {value}' for key, value in rows.items())})"

    def _repr_html_(self) -> str:
        """A table for notebooks."""
        rows = {**self._rows(), "sha256": self.sha256[:16]}
        cells = "".join(f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in rows.items())
        return f"<table>{cells}</table>"

    def _rows(self) -> dict[str, str]:
        """What is shown of a subnetwork."""
        origin, kept = self.origin, self.masks.kept
        leading = leading_in(self.metrics)
        measured = {in_words(leading, part): self.metrics.get(f"{key}_{leading}") for key, part in SPLITS.items()}
        return {
            "method": f"{origin.extractor['name']} on {origin.network.name if origin.network else 'a network from Python'}, "
            f"{origin.data['name'] if origin.data else 'data from Python'}",
            "density": f"{self.density:.4f} ({kept:,} of {self.masks.numel:,} weights)",
            **{name: cell(leading, value) for name, value in measured.items() if value is not None},
            "size": size(self.tensor_bytes),
        }

    @property
    def tensor_bytes(self) -> int:
        """Bytes of masks, kept weights and all other tensors of the network."""
        packed = sum(-(-mask.numel() // 8) for mask in self.masks.values())
        weights = sum(weight.element_size() * alive(self.masks[name]) for name, weight in self.weights.items())
        return packed + weights + sum(tensor.nbytes for tensor in (*self.scales.values(), *self.state.values()))

    @property
    def density(self) -> float:
        """Fraction of prunable weights alive."""
        return self.masks.density

    def effective_weights(self) -> dict[str, Tensor]:
        """The effective weights s * w * z by parameter name, of the parameters' shapes."""
        return {name: w * self.scales[name] if name in self.scales else w for name, w in self.weights.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """The state dict of the masked network: effective weights, other parameters, buffers."""
        return {**self.state, **self.effective_weights()}

    @property
    def sha256(self) -> str:
        """SHA-256 of `state_dict()`."""
        return digest(self.state_dict())

    def network(self) -> nn.Module:
        """The masked network: of the module that was passed to `extract`, or built by its name.

        Raises UserError when it is not one of ours or torchvision's, and was read from a file.
        """
        if self.module is not None:
            return self.on(self.module)
        return self.on(self.origin.build({name: tuple(value.shape) for name, value in self.state_dict().items()}))

    def inputs(self, batch: int) -> Any:
        """Inputs of `batch` items for tests: those of the run, repeated, if available; otherwise random."""
        if self.examples is None:
            return self.origin.inputs(batch)
        return map_tensors(lambda tensor: tensor[torch.arange(batch) % len(tensor)], self.examples)

    def on(self, net: nn.Module) -> nn.Module:
        """A copy of `net` with this subnetwork's effective weights; dead weights are zero.

        Raises UserError when `net` has other parameters or other shapes.
        """
        copy = own_copy(net)
        if any(map(is_lazy, copy.parameters())):
            raise UserError("this network has uninitialised lazy layers: run it once on an example")
        out = self.origin.with_gates(copy)
        state, own = self.state_dict(), out.state_dict()
        _check_shapes(_shapes(out), {name: tuple(value.shape) for name, value in state.items()})
        own.update(state)  # keeps the version metadata of `state_dict`, which some modules read
        out.load_state_dict(own)
        check_accepts(out, self.inputs(2), self.origin.logits)
        return out

    def compact(self, example: Any = None, net: nn.Module | None = None) -> nn.Module:
        """The masked network without the channels that no weight reads: smaller and dense. See `structure/compact.py`.

        example: inputs of a batch; default: those of the run, or random. net: as for `on`.
        Raises UserError when no channel can be removed, or when net or example do not fit; RunError when the outputs differ
        from the masked network's.
        """
        shape = self.origin.shape
        one = self.origin.input_spec is None
        if one and example is not None and (not isinstance(example, Tensor) or tuple(example.shape[1:]) != shape):
            got = f"has shape {tuple(example.shape)}" if isinstance(example, Tensor) else f"is a {type(example).__name__}"
            raise UserError(f"the example {got}; this network needs {('batch', *shape)}")
        masked = self.network() if net is None else self.on(net)
        return compact(masked.eval(), self.inputs(2) if example is None else example, every=self.origin.every_output)

    def summary(self) -> dict[str, Any]:
        """The record of the run, as in summary.json of the run folder."""
        return {
            "extractor": self.origin.extractor["name"],
            "network": self.origin.network.name if self.origin.network else None,
            "data": self.origin.data["name"] if self.origin.data else None,
            "seed": self.origin.seed,
            "dynamic": self.origin.dynamic,
            "normalisation": self.origin.normalisation,
            "density": self.density,
            "layer_density": self.masks.layer_density(),
            **self.metrics,
            **({"flops_ratio": self.metrics["kept_macs"] / macs} if (macs := self.metrics.get("macs")) else {}),
            "sha256": self.sha256,
        }

    def dense_bytes(self) -> int:
        """Bytes of all parameters and buffers of the dense network."""
        return sum(t.numel() * t.element_size() for t in (*self.weights.values(), *self.state.values()))

    def initial_weights(self) -> dict[str, Tensor]:
        """The initial weights, generated from the seed. Raises UserError when they were passed (`init` is keep)."""
        if self.origin.init == "keep":
            raise UserError("the weights of this network were not generated from a seed: save them with weights='values'")
        return _initial_weights(self.origin, {name: tuple(mask.shape) for name, mask in self.masks.items()})

    def save(self, path: str | os.PathLike[str], weights: Weights = "values") -> int:
        """Write the file `path`, atomically, and return its size in bytes.

        weights="seed" stores no prunable weights. Raises UserError when these were trained or not generated from a seed,
        RunError when the file cannot be written.
        """
        tensors = {f"mask.{name}": pack(mask) for name, mask in self.masks.items()}
        tensors |= {f"scale.{name}": scale for name, scale in self.scales.items()}
        tensors |= {f"state.{name}": value for name, value in self.state.items()}
        if weights == "values":
            tensors |= {f"kept.{name}": w[self.masks[name]] for name, w in self.weights.items()}
        else:
            initial = self.initial_weights()
            if any(not torch.equal(_pruned(initial[n], self.masks[n]), w) for n, w in self.weights.items()):
                raise UserError("trained weights cannot be generated from a seed: save them with weights='values'")
        spread = self.distribution
        tensors |= spread.tensors(self.masks) if spread else {}
        header = {
            "format": FORMAT if spread else 2,
            **({"samples": spread.samples} if spread else {}),
            "weights": weights,
            "shapes": {name: list(mask.shape) for name, mask in self.masks.items()},
            "origin": self.origin.model_dump(mode="json"),
            "metrics": dict(self.metrics),
            "sha256": self.sha256,
        }
        path = Path(path)
        save_tensors(path, tensors, header)
        return path.stat().st_size

    def save_pretrained(self, folder: str | os.PathLike[str], weights: Weights = "values") -> None:
        """Write config.json, model.safetensors and a model card, README.md, into a folder; other files there stay.

        weights: as for `save`. Raises UserError when `folder` is a file, RunError when it cannot be written.
        """
        path = Path(folder)
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file: give a folder")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot write {path}: {reason(error)}") from error
        self.save(path / MODEL, weights)
        write_card(path, self.origin.model_dump(mode="json"), self.summary())

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], network: nn.Module | str | None = None) -> "Subnetwork":
        """Read a folder of `save_pretrained`.

        network: the dense network for one without a name, a module or `package.module:factory`, which is imported and called
        only if it is passed. Raises UserError when the folder has no subnetwork, and when the network does not fit.
        """
        path = Path(folder) / MODEL
        if not path.is_file():
            raise UserError(f"{folder} has no {MODEL}: give a folder that Subnetwork.save_pretrained has written")
        subnet = cls.load(path)
        if network is None:
            return subnet
        if not isinstance(network, nn.Module | str):
            raise UserError(f"network is a torch.nn.Module or package.module:factory, got {shown(network)}: call it")
        module = network if isinstance(network, nn.Module) else subnet.origin.build(name=network)
        subnet.on(module)
        return replace(subnet, module=module)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Subnetwork":
        """Read the file `path`. Raises UserError when it is damaged, of a newer format, or does not match its hash."""
        path = Path(path)
        tensors, header = load_tensors(path, "subnetwork file")
        if type(header.get("format")) is not int or not isinstance(header.get("shapes"), dict) or "origin" not in header:
            raise UserError(f"{path} is not a subnetwork file: its header is not one")
        if header["format"] > FORMAT:
            raise UserError(
                f"{path} has format {header['format']}, newer than the {FORMAT} this version reads: update subnet-search"
            )
        masks = Masks(unpack_masks(path, tensors, header, "mask."))
        with guarded(damaged(path, "subnetwork file")):
            groups: dict[str, dict[str, Tensor]] = {kind: {} for kind in KINDS}
            for name, tensor in tensors.items():
                kind, _, rest = name.partition(".")
                groups[kind][rest] = tensor
            origin = Origin.model_validate(header["origin"])
            if header["weights"] == "seed":
                initial = _initial_weights(origin, {name: tuple(mask.shape) for name, mask in masks.items()})
                weights = {name: _pruned(weight, masks[name]) for name, weight in initial.items()}
            else:
                weights = {name: _filled(mask, groups["kept"][name]) for name, mask in masks.items()}
            examples = _examples(path.with_name(INPUTS), origin)
            spread = Distribution.of(groups, masks, int(header["samples"])) if "samples" in header else None
            found = cls(masks, weights, groups["scale"], groups["state"], origin, dict(header["metrics"]), spread, examples)
            same = found.sha256 == header["sha256"]
        if not same:
            raise UserError(
                f"{path}: the effective weights do not match the hash (file changed, or weights differ on this platform)"
            )
        return found


def state_in(path: str | os.PathLike[str], key: str = "network.state") -> dict[str, Tensor]:
    """The state dict in a subnetwork file, or in a file of torch or safetensors. Raises UserError for other files.

    key: of the configuration that names the file, for messages.
    """
    path = Path(path)
    header = header_of(path)
    if "origin" in header:
        return Subnetwork.load(path).state_dict()
    return load_tensors(path, "state dict")[0] if "network" in header else read_state(path, key)


def has_header_key(path: Path, key: str) -> bool:
    """Whether a file was written by `save_tensors` with this key in its header, such as `origin` of a subnetwork."""
    return key in header_of(path)


def _examples(path: Path, origin: Origin) -> Any:
    """The inputs in a file; None when it is missing or does not match the origin."""
    with suppress(UserError, KeyError):
        return load_examples(path, origin.spec)
    return None


def _filled(mask: Tensor, kept: Tensor) -> Tensor:
    """The dense weight tensor from its alive weights. Raises ValueError when their number does not match the mask."""
    if kept.shape != (int(mask.count_nonzero()),):
        raise ValueError(f"{tuple(kept.shape)} weights are stored, but {int(mask.count_nonzero())} are alive")
    return torch.zeros(mask.shape, dtype=kept.dtype).masked_scatter_(mask, kept)


def _pruned(weight: Tensor, mask: Tensor) -> Tensor:
    """The weight with dead elements +0: a product with the mask would give -0 for negative ones, and another hash."""
    return weight.masked_fill(~mask, 0)


def _initial_weights(origin: Origin, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {
        name: initial_weight(name, shape, origin.init, origin.seed, origin.init_density, name in origin.inputs_first)
        for name, shape in shapes.items()
    }
