"""What a study can optimise or constrain: names, directions, and when and how each is known.

All on validation data; test data is never looked at. What the topology alone decides (density, parameters, flops) may
be certain before anything is trained: see `before_training` and `of_topology`.
"""

import math
import re
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor, nn

from subnet_search.artifact import Subnetwork
from subnet_search.artifact.subnetwork import Weights
from subnet_search.core.errors import RunError, UserError, unknown
from subnet_search.data import Data
from subnet_search.deploy.benchmark import without_dead
from subnet_search.evaluation import Cost, cost
from subnet_search.evaluation.cost import Whole
from subnet_search.evaluation.latency import latency, on_threads
from subnet_search.evaluation.robustness import noise_curve
from subnet_search.extraction.config import RunConfig
from subnet_search.extractors import Extractor
from subnet_search.extractors.base import layer_field
from subnet_search.nets import NetworkSpec, build, check_output, left_whole, prunable
from subnet_search.topology.masks import Masks
from subnet_search.topology.select import Shapes, allocate, count
from subnet_search.training import Epoch


@dataclass(frozen=True)
class Finished:
    """A run that has ended, with what is measured on it only when asked for."""

    subnetwork: Subnetwork
    data: Data
    like: nn.Module | None
    weights: Weights

    @cached_property
    def net(self) -> nn.Module:
        """The masked network, on the run's device."""
        net = self.subnetwork.network() if self.like is None else self.subnetwork.on(self.like)
        return net.eval().to(self.subnetwork.origin.recipe["device"])

    def bytes(self) -> int:
        """The size of the file that the run would save, were its training time one digit."""
        of_this_machine = ("seconds", "bytes", "dense_bytes", "subnetwork")  # a search must find the same on another
        metrics = {key: value for key, value in self.subnetwork.metrics.items() if key not in of_this_machine}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "subnetwork.safetensors"
            return replace(self.subnetwork, metrics={**metrics, "seconds": 0}).save(path, self.weights)

    def latency(self) -> float:
        """Of the masked network; where channels are the units, of the one without those that are gone."""
        inputs = self.subnetwork.inputs(1)
        return latency(without_dead(self.net, self.subnetwork), self.subnetwork.origin.shape, inputs=inputs).median

    def robustness(self) -> float:
        device, origin = next(self.net.parameters()).device, self.subnetwork.origin
        mean, std = (None if t is None else torch.tensor(t, device=device) for t in (origin.mean, origin.std))
        with torch.backends.cudnn.flags(deterministic=True):
            rows = noise_curve(self.net, None, self.data.val.to(device), mean, std)
        return fmean(row["accuracy"] for row in rows if row["level"] > 0)


@dataclass(frozen=True)
class Measure:
    """A number that says how good a run's subnetwork is, or what it costs."""

    direction: Literal["maximize", "minimize"]
    unit: str
    text: str
    known: Literal["before", "epoch", "end"]
    """The earliest moment: before training (for some methods, else at the end), after every epoch, or at the end."""
    of: Callable[[Finished], float] | None = None
    """How to measure it. None: the run has, and it is in its record."""
    slack: float = 0.0
    """How far beyond a bound a value still keeps it, as a fraction of the bound."""


ONE_WEIGHT = 1e-3  # a density is met to one weight: 0.1 of 268,048 is 26,805 of them, which is a little more

MEASURES = {
    "val_accuracy": Measure("maximize", "fraction", "validation items classified right", "epoch"),
    "val_nll": Measure("minimize", "nats", "mean negative log-likelihood on validation data", "epoch"),
    "val_ece": Measure("minimize", "fraction", "expected calibration error on validation data", "end"),
    "density": Measure("minimize", "fraction", "prunable weights kept, of all of them", "before", slack=ONE_WEIGHT),
    "parameters": Measure("minimize", "weights", "weights kept, and those that are left whole", "before"),
    "flops": Measure("minimize", "MACs", "multiply-accumulates with a kept weight, or one left whole, for one input", "before"),
    "flops_ratio": Measure("minimize", "fraction", "flops, of those of the dense network", "before", slack=ONE_WEIGHT),
    "bytes": Measure("minimize", "bytes", "size of the subnetwork's file", "end", Finished.bytes),
    "latency": Measure(
        "minimize", "ms", "median time of one input, one thread, without dead channels", "end", Finished.latency
    ),
    "robustness": Measure(
        "maximize", "fraction", "mean accuracy on validation data under uniform noise", "end", Finished.robustness
    ),
    "seconds": Measure("minimize", "s", "training time", "end"),
}


def measure(
    names: Iterable[str], subnetwork: Subnetwork, data: Data, net: nn.Module | None = None, weights: Weights = "values"
) -> dict[str, float]:
    """The values of a run that has just ended. Only what is asked for is measured, on the run's device and threads.

    data      what the run was trained on
    net       needed for latency and robustness where the network is the user's own factory: one that it made
    weights   as in the run's configuration: what the file would store, for bytes

    Raises RunError that names a measure which is not a finite number, UserError for one that does not exist.
    """
    run, found, metrics = Finished(subnetwork, data, net, weights), dict[str, float](), subnetwork.metrics
    whole = [Whole(**row) for row in metrics.get("left_whole", ())]
    counted = Cost(metrics["weights"], metrics["kept"], metrics["macs"], metrics["kept_macs"], whole)
    record = {**metrics, **_of_cost(counted)}
    with on_threads(subnetwork.origin.recipe["threads"]):
        for name in names:
            if name not in MEASURES:
                raise unknown("measure", name, MEASURES)
            of = MEASURES[name].of
            found[name] = float(record[name] if of is None else of(run))
            if not math.isfinite(found[name]):
                raise RunError(f"{name} of this subnetwork is {found[name]}: not a number that can be compared")
    return found


def at_epoch(epoch: Epoch) -> dict[str, float]:
    """What the end of an epoch says about the measures that are known then."""
    return {"val_accuracy": epoch.val_accuracy, "val_nll": epoch.val_loss}


def before_training(config: RunConfig, data: Data) -> dict[str, float]:
    """The measures of a resolved configuration that are certain before its first step.

    Where weights are the units, density and parameters where the method has a density to meet; flops and flops_ratio too
    where it also shares it among the layers by a rule (to one weight a layer, where weights are dropped in several
    moves). Raises UserError when the density cannot be shared so.
    """
    density = config.extractor.target_density
    if density is None or config.unit != "weight" or config.target or config.extractor.dynamic:
        return {}
    net = _blank(config.network, data)
    shapes = {name: tuple(weight.shape) for name, weight in prunable(net).items()}
    counts = _counts(config.extractor, density, shapes)
    if counts is None:
        numel = sum(map(math.prod, shapes.values()))
        kept = count(density, numel)
        whole = sum(net.get_parameter(name).numel() for name in left_whole(net, shapes))
        return {"density": kept / numel, "parameters": float(kept + whole)}
    return of_topology(config, data, Masks({name: _first(counts[name], shape) for name, shape in shapes.items()}))


def of_topology(config: RunConfig, data: Data, masks: Masks) -> dict[str, float]:
    """The measures that a topology of a resolved configuration's network decides, whatever its weights."""
    found = _of_cost(cost(_blank(config.network, data), masks, data.shape, data.examples()))
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _of_cost(counted: Cost) -> dict[str, float]:
    """flops_ratio is not a number for a network whose layers are called in a way that cannot be counted."""
    return {
        "density": counted.kept / counted.weights,
        "parameters": float(counted.kept_parameters),
        "flops": float(counted.kept_macs),
        "flops_ratio": counted.kept_macs / counted.macs if counted.macs else math.nan,
    }


def _counts(extractor: Extractor, density: float, shapes: Shapes) -> dict[str, int] | None:
    """How many weights each layer keeps in the end; None when weights compete over all layers."""
    if density == 1:
        return {name: math.prod(shape) for name, shape in shapes.items()}
    how: Any = getattr(extractor, layer_field(type(extractor)) or "", "global")
    return None if how == "global" else allocate(shapes, density, how)


def _first(k: int, shape: tuple[int, ...]) -> Tensor:
    """A mask of which the first `k` units live: for what counts alone."""
    mask = torch.zeros(shape, dtype=torch.bool)
    mask.view(-1)[:k] = True
    return mask


def _blank(spec: NetworkSpec, data: Data) -> nn.Module:
    """The network of a resolved spec without its initial values: shapes are all that counts."""
    options = {"init": "keep", "init_density": None, "state": None, "state_sha256": None}
    net = _built(spec.model_copy(update=options).model_dump_json(), data.shape, data.classes)
    check_output(net, data.shape, data.classes, spec.name, data.examples())
    return net


@lru_cache(maxsize=2)
def _built(spec: str, shape: tuple[int, ...], classes: int) -> nn.Module:
    """The network of a spec, in JSON. Kept, since the trials of a study mostly look into the same one."""
    return build(NetworkSpec.model_validate_json(spec), shape, classes, 0)


@dataclass(frozen=True)
class Constraint:
    """A bound that a measure has to keep; density and flops_ratio keep it to one part in a thousand."""

    name: str
    op: Literal["<=", "<", ">=", ">"]
    bound: float

    def __str__(self) -> str:
        return f"{self.name} {self.op} {self.bound:g}"

    def violation(self, value: float) -> float:
        """How far a value is beyond the bound: it is kept where this is 0 or below."""
        excess = value - self.bound if self.op[0] == "<" else self.bound - value
        beyond = excess - MEASURES[self.name].slack * abs(self.bound)
        return beyond if beyond or "=" in self.op else math.ulp(1.0)


def parse_constraint(name: str, text: Any) -> Constraint:
    """The constraint that a study's `name: "<= 0.1"` stands for. Raises UserError for anything else."""
    if name not in MEASURES:
        raise unknown("measure", name, MEASURES)
    found = re.fullmatch(r"\s*(<=|<|>=|>)\s*(\S+)\s*", str(text))
    try:
        bound = float(found[2]) if found else math.nan
    except ValueError:
        bound = math.nan
    if found is None or not math.isfinite(bound):
        example = '"<= 0.1"' if MEASURES[name].direction == "minimize" else '">= 0.9"'
        raise UserError(f"the constraint on {name} is one of <=, <, >=, > and a number, as in {name}: {example}; got {text!r}")
    return Constraint(name, found[1], bound)  # type: ignore[arg-type]
