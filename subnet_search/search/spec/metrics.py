"""Metrics that a study can optimise or constrain: their names, directions, when they are available, and how they are measured.

All use validation data; test data is never read. A task's own metrics are those in its `directions`. Metrics that depend only
on the topology (density, parameters, flops) can be available before training: see `before_training` and `of_topology`.
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
from subnet_search.artifact.subnetwork import Weights, state_in
from subnet_search.core.errors import RunError, UserError, unknown
from subnet_search.core.task_metrics import TaskMetrics, in_words, is_fraction
from subnet_search.data import Data, in_order
from subnet_search.deploy.benchmark import without_dead
from subnet_search.deploy.rebuild import task_of_run
from subnet_search.evaluation import Cost, cost
from subnet_search.evaluation.cost import Whole
from subnet_search.evaluation.isometry import check_floats, mean_singular_value
from subnet_search.evaluation.latency import latency, on_threads
from subnet_search.evaluation.robustness import noise_curve
from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.ensemble import Drawn, averaging, check_drawable
from subnet_search.extraction.isometry import isometry_inputs
from subnet_search.extractors import Extractor
from subnet_search.extractors.base import layer_field
from subnet_search.nets import NetworkSpec, build, left_whole, opened, own_copy, prunable
from subnet_search.tasks import Classification, LanguageModeling, Task, UserTask, inputs_sent
from subnet_search.topology.masks import Masks
from subnet_search.topology.select import Shapes, allocate, count
from subnet_search.training import Epoch
from subnet_search.training.loop import measured


@dataclass(frozen=True)
class Finished:
    """A finished run; metrics are measured on request."""

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
        """Size of the file that the run would save, in bytes, without values that differ between machines."""
        of_this_machine = ("seconds", "bytes", "dense_bytes", "subnetwork")
        metrics = {key: value for key, value in self.subnetwork.metrics.items() if key not in of_this_machine}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "subnetwork.safetensors"
            return replace(self.subnetwork, metrics={**metrics, "seconds": 0}).save(path, self.weights)

    def latency(self) -> float:
        """Median time of one input in milliseconds, of the masked network; dead channels are removed first."""
        inputs = self.subnetwork.inputs(1)
        return latency(without_dead(self.net, self.subnetwork), self.subnetwork.origin.shape, inputs=inputs).median

    def robustness(self) -> float:
        """Mean accuracy on validation data under uniform noise, over all noise levels above 0. Needs classification."""
        return fmean(row["accuracy"] for row in self._under_noise(None))

    def functional_distance(self) -> float:
        """Mean distance to the dense network with trained weights under uniform noise, over all noise levels above 0.

        The distance of two networks is the mean L2 norm of the difference of their softmax outputs, 0 to 1.41: Liebenwein et
        al. 2021, arXiv:2103.03014. Needs classification. Raises UserError when the run did not start from trained weights.
        """
        return fmean(row["distance"] for row in self._under_noise(self.dense()))

    def dense(self) -> nn.Module:
        """The network with the trained weights that the run started from, on the run's device."""
        origin, spec, net = self.subnetwork.origin, self.subnetwork.origin.network, self.like
        if spec is not None:
            check_dense(spec, None)
            state = state_in(Path(spec.state).expanduser()) if spec.state else None
            net = build(spec, origin.shape, origin.classes or None, origin.seed, state)
        if net is None or origin.init != "keep":
            raise UserError(NO_DENSE)
        return opened(own_copy(net)).eval().to(origin.recipe["device"])

    def _under_noise(self, reference: nn.Module | None) -> list[dict[str, Any]]:
        """The rows of `noise_curve` on validation data, of the levels above 0."""
        device, origin = next(self.net.parameters()).device, self.subnetwork.origin
        mean, std = (None if t is None else torch.tensor(t, device=device) for t in (origin.mean, origin.std))
        with torch.backends.cudnn.flags(deterministic=True):
            rows = noise_curve(self.net, reference, self.data.val.to(device), mean, std)
        return [row for row in rows if row["level"] > 0]

    def isometry(self) -> float:
        """Mean singular value of the input-output Jacobian over the first 128 validation items."""
        device, origin = next(self.net.parameters()).device, self.subnetwork.origin
        mean, std = (None if t is None else torch.tensor(t, device=device) for t in (origin.mean, origin.std))
        batches = in_order(self.data.val.to(device), mean, std)
        return mean_singular_value(self.net, isometry_inputs(self.net, task_of_run(self.subnetwork), batches))

    def ensemble_accuracy(self) -> float:
        """Accuracy on validation data of MEMBERS networks that are drawn from what the run has stored; needs classification."""
        subnet, task = self.subnetwork, task_of_run(self.subnetwork)
        check_drawable(subnet, MEMBERS, task)
        device = subnet.origin.recipe["device"]
        dense = (own_copy(self.like) if self.like is not None else subnet.origin.build()).to(device)
        here = self.data.to(device)
        drawn = Drawn.of(subnet, dense, self.like is not None and subnet.origin.network is None, task, here, 0)
        networks = [drawn.network(drawn.draw(index)) for index in range(MEMBERS)]
        return float(measured(task, averaging(drawn.task, networks), here, here.val)["accuracy"])


@dataclass(frozen=True)
class Measure:
    """A metric of a run's subnetwork: quality or cost."""

    direction: Literal["maximize", "minimize"]
    unit: str
    text: str
    available: Literal["before", "epoch", "end"]
    """When the value is first available: before training (some methods only, else at the end), after each epoch, at the end."""
    of: Callable[[Finished], float] | None = None
    """Function that measures it. None: the run has recorded it."""
    slack: float = 0.0
    """Tolerance of a constraint, as a fraction of the bound."""


ENSEMBLE, MEMBERS = "ensemble_accuracy", 10
NO_DENSE = "functional_distance compares with the dense network: start from trained weights, network.state"
ONE_WEIGHT = 1e-3  # densities are rounded to whole weights: 0.1 of 268,048 is 26,805, slightly more than 0.1

MEASURES = {
    "density": Measure("minimize", "fraction", "kept fraction of the prunable weights", "before", slack=ONE_WEIGHT),
    "parameters": Measure("minimize", "weights", "weights kept, plus parameters that are never pruned", "before"),
    "flops": Measure("minimize", "MACs", "multiply-accumulates for one input, without pruned weights", "before"),
    "flops_ratio": Measure("minimize", "fraction", "flops as a fraction of the dense network's", "before", slack=ONE_WEIGHT),
    "bytes": Measure("minimize", "bytes", "size of the subnetwork's file", "end", Finished.bytes),
    "latency": Measure(
        "minimize", "ms", "median time of one input, one thread, without dead channels", "end", Finished.latency
    ),
    "robustness": Measure(
        "maximize", "fraction", "mean accuracy on validation data under uniform noise", "end", Finished.robustness
    ),
    "functional_distance": Measure(
        "minimize",
        "",
        "mean distance of the outputs to those of the dense network with trained weights, under uniform noise",
        "end",
        Finished.functional_distance,
    ),
    "isometry": Measure(
        "maximize", "", "mean singular value of the input-output Jacobian on validation data", "end", Finished.isometry
    ),
    "ensemble_accuracy": Measure(
        "maximize",
        "fraction",
        "accuracy on validation data of ten networks drawn from relevance or weight statistics",
        "end",
        Finished.ensemble_accuracy,
    ),
    "seconds": Measure("minimize", "s", "training time", "end"),
}
"""Metrics of any task that `_missing` does not name. `measures_of` adds the task's own."""
UNDER_NOISE = {"robustness": "the accuracy under noise", "functional_distance": "the distance of two classifiers under noise"}
"""Metrics of classification alone."""


def _missing(name: str, task: Task) -> str | None:
    """Why runs with this task do not have a metric of MEASURES. None: they have it."""
    if name in UNDER_NOISE and not isinstance(task, Classification):
        return f"{name} is {UNDER_NOISE[name]}: it needs the task classification, got {task.name}"
    if name == ENSEMBLE and not isinstance(task, Classification):
        return f"{ENSEMBLE} is of classifiers: it needs the task classification, got {task.name}"
    if name == "isometry" and isinstance(task, LanguageModeling | UserTask):
        return f"isometry needs float inputs and a built-in task, got {task.name}"
    return None


def measures_of(task: Task) -> dict[str, Measure]:
    """All metrics of runs with this task, its own first."""
    own = TaskMetrics.of(task).measures
    found = {
        key: Measure(direction, "fraction" if is_fraction(key) else "", f"{in_words(key[4:])} on validation data", "epoch")
        for key, direction in own.items()
    }
    return found | {name: one for name, one in MEASURES.items() if _missing(name, task) is None}


def find_measure(name: str, task: Task, kind: str = "measure") -> Measure:
    """A metric of runs with this task. kind: what it is wanted as, for the message. Raises UserError for another name."""
    measures = measures_of(task)
    if name in measures:
        return measures[name]
    if name in MEASURES:
        raise UserError(_missing(name, task) or "")
    if name == "prune_potential":
        raise UserError(f"{kind} prune_potential: it compares several densities, and a trial has one: see `prune-potential -h`")
    own = f"the task {task.name} states its metrics in `directions`" if isinstance(task, UserTask) else ""
    raise unknown(kind, name, measures, where=own)


def check_dense(network: NetworkSpec, module: nn.Module | None) -> None:
    """Raise UserError for runs without a dense network with trained weights. module: the network, if passed as an object."""
    if network.new_head:
        raise UserError("functional_distance compares with the dense network, and network.new_head replaces its output layer")
    if (module is None and not network.pretrained) or network.init not in (None, "keep"):
        raise UserError(NO_DENSE)


def measure(
    names: Iterable[str], subnetwork: Subnetwork, data: Data, net: nn.Module | None = None, weights: Weights = "values"
) -> dict[str, float]:
    """The named metrics of a finished run, measured on the run's device and number of threads.

    data      the run's data
    net       a network of the same architecture; needed for latency, robustness and functional_distance if the user's own
              factory made it, with the trained weights for functional_distance if it was passed as an object
    weights   what the file stores, as in the run's configuration; needed for bytes

    Raises UserError for an unknown metric, RunError for a value that is not finite.
    """
    run, found, metrics = Finished(subnetwork, data, net, weights), dict[str, float](), subnetwork.metrics
    whole = [Whole(**row) for row in metrics.get("left_whole", ())]
    counted = Cost(metrics["weights"], metrics["kept"], metrics["macs"], metrics["kept_macs"], whole)
    record = {**metrics, **_of_cost(counted)}
    with on_threads(subnetwork.origin.recipe["threads"]):
        for name in names:
            of = MEASURES[name].of if name in MEASURES else None
            if of is None and name not in record:
                raise unknown("measure", name, [*MEASURES, *(key for key in record if key.startswith("val_"))])
            found[name] = float(record[name] if of is None else of(run))
            if not math.isfinite(found[name]):
                raise RunError(f"{name} of this subnetwork is {found[name]}, not a finite number")
    return found


def at_epoch(epoch: Epoch) -> dict[str, float]:
    """The metrics that are available after an epoch."""
    return epoch.metrics


def before_training(config: RunConfig, data: Data, module: nn.Module | None = None) -> dict[str, float]:
    """The metrics of a resolved configuration that are certain before training.

    module: the network, if it was passed as an object.
    For `unit: weight` only: density and parameters if the method has a density; also flops and flops_ratio if a rule
    allocates the density to the layers (exact to one weight a layer if weights are dropped in several steps).
    Raises UserError when the density cannot be allocated.
    """
    density = config.extractor.target_density
    if density is None or config.unit != "weight" or config.target:
        return {}
    net, _ = _blank(config, data, module)
    shapes = {name: tuple(weight.shape) for name, weight in prunable(net, config.dense_layers).items()}
    counts = _counts(config.extractor, density, shapes)
    if counts is None:
        numel = sum(map(math.prod, shapes.values()))
        kept = count(density, numel)
        whole = sum(net.get_parameter(name).numel() for name in left_whole(net, shapes))
        return {"density": kept / numel, "parameters": float(kept + whole)}
    masks = Masks({name: _first(counts[name], shape) for name, shape in shapes.items()})
    return of_topology(config, data, masks, module)


def check_isometry(config: RunConfig, data: Data, module: nn.Module | None = None) -> None:
    """Raise UserError when the network of a resolved configuration has no float inputs."""
    check_floats(_blank(config, data, module)[1])


def of_topology(config: RunConfig, data: Data, masks: Masks, module: nn.Module | None = None) -> dict[str, float]:
    """The metrics that the masks of a resolved configuration's network determine without its weights."""
    net, example = _blank(config, data, module)
    found = _of_cost(cost(net, masks, data.shape, example))
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _of_cost(counted: Cost) -> dict[str, float]:
    """The metrics of a cost. flops_ratio is NaN if the operations of the network cannot be counted."""
    return {
        "density": counted.kept / counted.weights,
        "parameters": float(counted.kept_parameters),
        "flops": float(counted.kept_macs),
        "flops_ratio": counted.kept_macs / counted.macs if counted.macs else math.nan,
    }


def _counts(extractor: Extractor, density: float, shapes: Shapes) -> dict[str, int] | None:
    """Weights that each layer keeps at the end of the run; None if weights are selected globally."""
    if density == 1:
        return {name: math.prod(shape) for name, shape in shapes.items()}
    how: Any = getattr(extractor, layer_field(type(extractor)) or "", "global")
    return None if how == "global" else allocate(shapes, density, how)


def _first(k: int, shape: tuple[int, ...]) -> Tensor:
    """A mask with the first `k` weights kept, for metrics that depend only on counts."""
    mask = torch.zeros(shape, dtype=torch.bool)
    mask.view(-1)[:k] = True
    return mask


def _blank(config: RunConfig, data: Data, module: nn.Module | None) -> tuple[nn.Module, Any]:
    """The network of a resolved configuration, or a copy of `module`, of which only the shapes are used; its inputs."""
    spec, outputs = config.network, config.task.outputs(data)
    net = _built(spec.without_state.model_dump_json(), data.shape, outputs) if module is None else own_copy(module)
    return net, inputs_sent(net, config.task, data.first(), spec.name, outputs)


@lru_cache(maxsize=2)
def _built(spec: str, shape: tuple[int, ...], classes: int | None) -> nn.Module:
    """The network of a spec in JSON. Cached, because most trials of a study use the same network."""
    return build(NetworkSpec.model_validate_json(spec), shape, classes, 0)


@dataclass(frozen=True)
class Constraint:
    """A bound on a metric; density and flops_ratio have a tolerance of 0.1 % of the bound."""

    name: str
    op: Literal["<=", "<", ">=", ">"]
    bound: float

    def __str__(self) -> str:
        return f"{self.name} {self.op} {self.bound:g}"

    def violation(self, value: float) -> float:
        """How far a value exceeds the bound; the constraint holds at 0 or below."""
        excess = value - self.bound if self.op[0] == "<" else self.bound - value
        slack = MEASURES[self.name].slack if self.name in MEASURES else 0.0
        beyond = excess - slack * abs(self.bound)
        return beyond if beyond or "=" in self.op else math.ulp(1.0)


def parse_constraint(name: str, text: Any, task: Task | None = None) -> Constraint:
    """Parse a constraint such as `"<= 0.1"` on a metric of runs with this task (default: classification).

    Raises UserError for an unknown metric or another form.
    """
    direction = find_measure(name, task or Classification()).direction
    found = re.fullmatch(r"\s*(<=|<|>=|>)\s*(\S+)\s*", str(text))
    try:
        bound = float(found[2]) if found else math.nan
    except ValueError:
        bound = math.nan
    if found is None or not math.isfinite(bound):
        example = '"<= 0.1"' if direction == "minimize" else '">= 0.9"'
        raise UserError(f"a constraint is one of <=, <, >=, > and a number, as in {name}: {example}; got {name}: {text!r}")
    return Constraint(name, found[1], bound)  # type: ignore[arg-type]
