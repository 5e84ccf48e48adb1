"""The artifact: one safetensors file that holds a subnetwork and where it came from.

Masks are packed to one bit a weight, and only the weights that live are stored. A subnetwork of untrained weights can
leave those out too (`weights="seed"`): they are made again from the seed and checked against the hash, so the file
costs about one bit a weight. Reading a file runs no code, and imports, downloads and opens nothing that the file names.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from subnet_search.artifact.mask_file import unpacked
from subnet_search.core.errors import UserError, guarded
from subnet_search.core.tensor_files import damaged, digest, header_of, load_tensors, save_tensors
from subnet_search.nets import NetworkSpec, build, check_output, initial_weight, is_ours, make_dynamic, own_copy, read_state
from subnet_search.structure.compact import compact
from subnet_search.topology.masks import Masks, pack

FORMAT = 2  # 1: without a hash over the header
INPUTS = "inputs.safetensors"  # beside a subnetwork in its run folder: a few inputs of the run, as the network sees them
DOWNLOADS = ("weights", "pretrained")  # how the options begin that make a factory fetch something
Weights = Literal["values", "seed"]


class Origin(BaseModel):
    """Where a subnetwork came from: enough to find it again."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    network: NetworkSpec | None  # None: a module handed in from Python
    init: str  # how its weights began; `keep`: as they were handed in
    init_density: float | None
    shape: tuple[int, ...]  # of one input
    classes: int = Field(ge=1)
    dtype: str = "float32"  # of inputs, as the network sees them
    low: float | None = None  # the least and the greatest value of an input, as the network sees it; None: not known
    high: float | None = None
    data: dict[str, Any] | None  # None: data handed in from Python
    mean: tuple[float, ...] | None  # what images, scaled to 0..1, are normalised by, for each channel; None: they are not
    std: tuple[float, ...] | None
    extractor: dict[str, Any]
    unit: str
    dynamic: bool = False  # each input chooses the filters that it computes
    recipe: dict[str, Any]
    seed: int
    versions: dict[str, str]

    @model_validator(mode="before")
    @classmethod
    def _earlier_names(cls, values: Any) -> Any:
        """Files of before 0.1.0 have `deviation` for `std`."""
        if isinstance(values, Mapping) and "deviation" in values and "std" not in values:
            return {**values, "std": values["deviation"]}
        return values

    @field_validator("dtype")
    @classmethod
    def _a_type(cls, value: str) -> str:
        if not isinstance(getattr(torch, value, None), torch.dtype):
            raise ValueError(f"there is no type {value!r} of tensors")
        return value

    @property
    def normalisation(self) -> dict[str, Any] | None:
        """What is done to an input before the network reads it, in plain values. None: inputs are used as they are."""
        if self.mean is None or self.std is None:
            return None
        return {"pixels": "0 to 1 (8-bit values / 255)", "mean": list(self.mean), "std": list(self.std)}

    @property
    def options(self) -> dict[str, Any]:
        """The options of the network's factory, without those by which something would be downloaded."""
        options = self.network.options if self.network else {}
        return {key: value for key, value in options.items() if not key.startswith(DOWNLOADS)}

    def build(self, shapes: Mapping[str, tuple[int, ...]] | None = None) -> nn.Module:
        """The dense network by its name. Raises UserError when it is not one of ours or torchvision's.

        shapes   those of its state dict where they are known: another network is refused before it takes any memory
        """
        spec = self.network
        if spec is None or not is_ours(spec.name):
            name = spec.name if spec else "handed in from Python"
            raise UserError(
                f"the network of this file ({name}) is not built from the file: hand it in, subnetwork.on(net), "
                f"or --network package.module:factory"
            )
        spec = spec.model_copy(update={"init": "keep", "options": self.options, "state": None})
        if shapes is not None:
            own = None
            with suppress(Exception), torch.device("meta"):  # some networks look at values while they are made
                net = build(spec, self.shape, self.classes, 0)
                own = _shapes(self.with_gates(net))
            if own is not None:
                _check_shapes(own, shapes)
        net = build(spec, self.shape, self.classes, 0)
        return self.with_gates(net)

    def with_gates(self, net: nn.Module) -> nn.Module:
        """`net` with the gates of a run whose inputs choose filters, added in place; in other runs, `net` as it is."""
        return make_dynamic(net, self.shape) if self.dynamic else net

    def inputs(self, batch: int) -> Tensor:
        """Random inputs (batch, *shape), the same each time: of the run's type, evenly between its least and greatest value.

        Normal ones, as normalised images are about, where an older file does not say what the run's inputs were.
        """
        rng, shape = torch.Generator().manual_seed(0), (batch, *self.shape)
        dtype = getattr(torch, self.dtype)
        if self.low is None or self.high is None:
            return torch.randn(shape, generator=rng).to(dtype)
        if dtype.is_floating_point:
            return (self.low + (self.high - self.low) * torch.rand(shape, generator=rng)).to(dtype)
        return torch.randint(int(self.low), int(self.high) + 1, shape, generator=rng).to(dtype)


def _shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in net.state_dict().items() if isinstance(value, Tensor)}


def _check_shapes(own: Mapping[str, tuple[int, ...]], state: Mapping[str, tuple[int, ...]]) -> None:
    wrong = sorted(own.keys() ^ state.keys()) or [name for name in own if own[name] != state[name]]
    if wrong:
        raise UserError(f"this subnetwork belongs to another network: {wrong[0]} differs ({len(wrong)} in all)")


@dataclass(frozen=True)
class Subnetwork:
    """A topology with the weights it was found in (or trained to), their scales, and everything else of the network."""

    masks: Masks
    weights: Mapping[str, Tensor]  # of the prunable parameters, dense; dead ones are zero
    scales: Mapping[str, Tensor]  # rescaling factors: scalars or (out, 1, ...)
    state: Mapping[str, Tensor]  # all other parameters and buffers
    origin: Origin
    metrics: Mapping[str, Any]  # what the run measured: accuracies, steps, seconds ...
    examples: Tensor | None = field(default=None, repr=False, compare=False)  # a few of the run's inputs; never in the file

    @classmethod
    def of(
        cls, net: nn.Module, masks: Masks, scales: Mapping[str, Tensor], origin: Origin, metrics: Mapping[str, Any]
    ) -> "Subnetwork":
        """The subnetwork of `net` under `masks`, copied to the CPU."""
        masks = masks.to("cpu")
        everything = {name: value.detach().cpu().contiguous().clone() for name, value in net.state_dict().items()}
        weights = {name: _pruned(everything.pop(name), mask) for name, mask in masks.items()}
        return cls(masks, weights, {n: s.detach().cpu().clone() for n, s in scales.items()}, everything, origin, metrics)

    @property
    def density(self) -> float:
        """Fraction of prunable weights alive."""
        return self.masks.density

    def effective_weights(self) -> dict[str, Tensor]:
        """The weights the network computes with: s * w * z by parameter name."""
        return {name: w * self.scales[name] if name in self.scales else w for name, w in self.weights.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that decides the logits, by the names of the network: effective weights, other parameters, buffers."""
        return {**self.state, **self.effective_weights()}

    @property
    def sha256(self) -> str:
        """Hash of everything that decides the logits."""
        return digest(self.state_dict())

    def network(self) -> nn.Module:
        """The masked network, built from its name. Raises UserError when it is not one of ours or torchvision's."""
        return self.on(self.origin.build({name: tuple(value.shape) for name, value in self.state_dict().items()}))

    def inputs(self, batch: int) -> Tensor:
        """Inputs (batch, *shape) to try the network on: the run's own, over and over, where they are at hand, else random."""
        if self.examples is None:
            return self.origin.inputs(batch)
        return self.examples[torch.arange(batch) % len(self.examples)]

    def on(self, net: nn.Module) -> nn.Module:
        """A copy of `net`, dense and ordinary, with this subnetwork's effective weights; dead ones are zero.

        Raises UserError when `net` has other parameters or other shapes.
        """
        if any(map(is_lazy, net.parameters())):
            raise UserError("this network has lazy layers that have no weights yet: run it once on an example")
        out = self.origin.with_gates(own_copy(net))
        state, own = self.state_dict(), out.state_dict()
        _check_shapes(_shapes(out), {name: tuple(value.shape) for name, value in state.items()})
        own.update(state)  # not the tensors alone: some modules look at the version that comes with a state
        out.load_state_dict(own)
        check_output(out, self.origin.shape, self.origin.classes, example=self.inputs(2))
        return out

    def compact(self, example: Tensor | None = None, net: nn.Module | None = None) -> nn.Module:
        """The masked network without the channels that nothing reads: smaller, plain, dense. See `deploy.compact`.

        example   inputs (batch, ...) as the network takes them; default: the run's, or random ones. net: as for `on`

        Raises UserError when no channel can go, or network or example are others; RunError when what is left says
        something else than the masked network.
        """
        shape = self.origin.shape
        if example is not None and (not isinstance(example, Tensor) or tuple(example.shape[1:]) != shape):
            got = f"has shape {tuple(example.shape)}" if isinstance(example, Tensor) else f"is a {type(example).__name__}"
            raise UserError(f"the example {got}; this network takes {('batch', *shape)}")
        masked = self.network() if net is None else self.on(net)
        return compact(masked.eval(), self.inputs(2) if example is None else example)

    def summary(self) -> dict[str, Any]:
        """The record of the run: see the run folder's summary.json."""
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
            "sha256": self.sha256,
        }

    def dense_bytes(self) -> int:
        """Bytes of all parameters and buffers of the dense network."""
        return sum(t.numel() * t.element_size() for t in (*self.weights.values(), *self.state.values()))

    def remade(self) -> dict[str, Tensor]:
        """The initial weights, made again from the seed. Raises UserError when they were not made from one."""
        if self.origin.init == "keep":
            raise UserError("the weights of this network were not made from a seed: save them with weights='values'")
        return _remake(self.origin, {name: tuple(mask.shape) for name, mask in self.masks.items()})

    def save(self, path: str | os.PathLike[str], weights: Weights = "values") -> int:
        """Write the file, atomically, and return its size in bytes.

        weights="seed" stores no prunable weights. Raises UserError when they were trained or not made from a seed,
        RunError when the file cannot be written.
        """
        tensors = {f"mask.{name}": pack(mask) for name, mask in self.masks.items()}
        tensors |= {f"scale.{name}": scale for name, scale in self.scales.items()}
        tensors |= {f"state.{name}": value for name, value in self.state.items()}
        if weights == "values":
            tensors |= {f"kept.{name}": w[self.masks[name]] for name, w in self.weights.items()}
        else:
            remade = self.remade()
            if any(not torch.equal(_pruned(remade[n], self.masks[n]), w) for n, w in self.weights.items()):
                raise UserError("these weights were trained, so no seed makes them: save them with weights='values'")
        header = {
            "format": FORMAT,
            "weights": weights,
            "shapes": {name: list(mask.shape) for name, mask in self.masks.items()},
            "origin": self.origin.model_dump(mode="json"),
            "metrics": dict(self.metrics),
            "sha256": self.sha256,
        }
        path = Path(path)
        save_tensors(path, tensors, header)
        return path.stat().st_size

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Subnetwork":
        """Read a file. Raises UserError when it is damaged, of a newer format, or does not match its hash."""
        path = Path(path)
        tensors, header = load_tensors(path, "subnetwork file")
        if type(header.get("format")) is not int or not isinstance(header.get("shapes"), dict) or "origin" not in header:
            raise UserError(f"{path} is not a subnetwork file: its header is of another kind")
        if header["format"] > FORMAT:
            raise UserError(
                f"{path} has format {header['format']}, newer than the {FORMAT} this version reads: update subnet-search"
            )
        masks = Masks(unpacked(path, tensors, header, "mask."))
        with guarded(damaged(path, "subnetwork file")):
            groups: dict[str, dict[str, Tensor]] = {kind: {} for kind in ("mask", "scale", "state", "kept")}
            for name, tensor in tensors.items():
                kind, _, rest = name.partition(".")
                groups[kind][rest] = tensor
            origin = Origin.model_validate(header["origin"])
            if header["weights"] == "seed":
                remade = _remake(origin, {name: tuple(mask.shape) for name, mask in masks.items()})
                weights = {name: _pruned(weight, masks[name]) for name, weight in remade.items()}
            else:
                weights = {name: _filled(mask, groups["kept"][name]) for name, mask in masks.items()}
            examples = _examples(path.with_name(INPUTS), origin)
            found = cls(masks, weights, groups["scale"], groups["state"], origin, dict(header["metrics"]), examples)
            same = found.sha256 == header["sha256"]
        if not same:
            raise UserError(
                f"{path}: the effective weights do not match the hash (made on another kind of machine, or changed)"
            )
        return found


def state_in(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The state dict in a file: that of a subnetwork, or one that torch or safetensors wrote. Raises UserError."""
    path = Path(path)
    header = header_of(path)
    if "origin" in header:
        return Subnetwork.load(path).state_dict()
    return load_tensors(path, "state dict")[0] if "network" in header else read_state(path)


def holds(path: Path, key: str) -> bool:
    """Whether a file is one of `files.save_tensors`, with this key in its header: `origin` in a subnetwork's."""
    return key in header_of(path)


def save_examples(path: Path, inputs: Tensor) -> None:
    """Keep a few inputs of a run, as the network sees them: what is exported later is checked with them."""
    save_tensors(path, {"inputs": inputs}, {"format": FORMAT})


def _examples(path: Path, origin: Origin) -> Tensor | None:
    """The inputs in a file, None where there are none that fit the origin."""
    with suppress(UserError, KeyError):
        inputs = load_tensors(path, "file of inputs")[0]["inputs"]
        if len(inputs) and tuple(inputs.shape[1:]) == origin.shape and inputs.dtype == getattr(torch, origin.dtype):
            return inputs
    return None


def _filled(mask: Tensor, kept: Tensor) -> Tensor:
    """The weights of one tensor, dense. Raises ValueError unless there is one for each that lives."""
    if kept.shape != (int(mask.count_nonzero()),):
        raise ValueError(f"{tuple(kept.shape)} weights are kept where {int(mask.count_nonzero())} live")
    return torch.zeros(mask.shape, dtype=kept.dtype).masked_scatter_(mask, kept)


def _pruned(weight: Tensor, mask: Tensor) -> Tensor:
    """Dead weights as +0: a product would leave -0 for negative ones, which hashes differently."""
    return weight.masked_fill(~mask, 0)


def _remake(origin: Origin, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: initial_weight(name, shape, origin.init, origin.seed, origin.init_density) for name, shape in shapes.items()}
