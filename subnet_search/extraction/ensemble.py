"""Ensembles: several networks drawn from what a run has learned, whose predictions are averaged.

Topologies are drawn from relevance: it is the log-odds m of keeping a unit, so a unit is kept if m + L > 0, L ~ Logistic(0, 1)
(Dupont et al. 2022, arXiv:2202.12986). Where the method has a density, the units with the highest m + L are kept instead, so
that every member has that density. Weights are drawn from N(mean, variance) of each parameter (SWAG-diagonal, Maddox et al.
2019, arXiv:1902.02476, algorithm 1). As there, batch norm gets the statistics of each member on training data.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from subnet_search.artifact import Subnetwork
from subnet_search.artifact.subnetwork import Distribution
from subnet_search.core.errors import UserError
from subnet_search.core.rng import derive, generator
from subnet_search.data import Data, Items, Split, in_order
from subnet_search.evaluation import cost
from subnet_search.evaluation.items import Items as ItemMetrics
from subnet_search.extraction.against import before_pruning, compared
from subnet_search.extraction.refit import run_over, training_batches
from subnet_search.extractors import RelevanceLearner, extractor_names, get_extractor
from subnet_search.extractors.base import trains_weights
from subnet_search.extractors.registry import REGISTRY, create
from subnet_search.nets import has_batch_norm, own_copy, recompute_statistics
from subnet_search.structure.units_of_network import units_of
from subnet_search.tasks import LogitsTask, Network, Task
from subnet_search.topology.samplers import uniform_noise
from subnet_search.training import Recipe, Supernet

MOST = 1000  # members
HOW = (
    "run it again with recipe.store_relevance (gumbel, supermask) or, where weights are trained, with "
    "recipe.weight_statistics=0.25"
)


@dataclass(frozen=True)
class Drawn:
    """Networks that are drawn for a subnetwork, the same for every index."""

    subnetwork: Subnetwork
    dense: nn.Module  # the dense network, of which members are copies
    task: LogitsTask
    data: Data  # on whose training items the statistics of batch norm are computed; on the device of `dense`
    seed: int
    draw: Callable[[int], Subnetwork]  # the member number `index`, without its statistics of batch norm

    @classmethod
    def of(cls, subnetwork: Subnetwork, dense: nn.Module, own: bool, task: Task, data: Data, seed: int) -> "Drawn":
        """own: whether `dense` was passed as a module, so that its weights are the caller's.

        Raises UserError when topologies are drawn, and the weights outside of the subnetwork's are not known.
        """
        spread = subnetwork.distribution
        assert spread is not None
        assert isinstance(task, LogitsTask)
        draw = _weights(subnetwork, spread, seed)
        if spread.relevance:
            draw = _topologies(subnetwork, spread, _with_all_weights(subnetwork, dense, own), task, seed)
        return cls(subnetwork, dense, task, data, seed, draw)

    def network(self, member: Subnetwork) -> nn.Module:
        """The network of a member in evaluation mode, with its own statistics of batch norm."""
        device = next(self.dense.parameters()).device
        net, origin = member.on(self.dense).to(device), self.subnetwork.origin
        batches = training_batches(self.data, origin.recipe["batch_size"], origin.seed)
        recompute_statistics(net, lambda: run_over(net, self.task, batches))
        return net.eval()


def check_drawable(subnetwork: Any, count: int, task: Task) -> None:
    """Raise UserError when no ensemble of `count` members can be drawn from a file."""
    if not 2 <= count <= MOST:
        raise UserError(f"an ensemble has 2 to {MOST} members, got {count}")
    if not isinstance(subnetwork, Subnetwork):
        raise UserError("an exported network has nothing to draw an ensemble from: evaluate the subnetwork's own file")
    if subnetwork.distribution is None:
        raise UserError(f"this file has neither relevance nor weight statistics to draw an ensemble from: {HOW}")
    if subnetwork.distribution.relevance and subnetwork.origin.extractor["name"] not in REGISTRY:
        raise UserError("the method of this file is not part of this package, so no topologies are drawn from it")
    if not isinstance(task, LogitsTask):
        raise UserError(f"the task {task.name} has no mean of the outputs of several networks, so it has no ensembles")


def check_stored(recipe: Recipe, method: type[Any]) -> None:
    """Raise UserError when a run with this recipe and method ends without what it is to store for ensembles."""
    if recipe.store_relevance and not getattr(method, "draws_topologies", False):
        able = [one for one in extractor_names() if getattr(get_extractor(one), "draws_topologies", False)]
        raise UserError(
            f"store_relevance: {method.name} ends without probabilities to draw topologies by ({' and '.join(able)} have "
            "them); weight_statistics is for methods that train weights"
        )
    relevance = issubclass(method, RelevanceLearner) and not method.paradigm.trains_after
    if recipe.weight_statistics and (relevance or not trains_weights(method)):
        raise UserError(f"weight_statistics: {method.name} ends without training the weights of one topology")


def _weights(subnetwork: Subnetwork, spread: Distribution, seed: int) -> Callable[[int], Subnetwork]:
    """A function that draws the weights of member number `index`."""

    def draw(index: int) -> Subnetwork:
        def one(name: str, mean: Tensor) -> Tensor:
            noise = torch.randn(mean.shape, generator=generator(seed, "ensemble", index, name), dtype=mean.dtype)
            return mean + spread.variance[name].sqrt() * noise

        return _with_parameters(subnetwork, {name: one(name, mean) for name, mean in spread.mean.items()})

    return draw


def _with_parameters(subnetwork: Subnetwork, values: Mapping[str, Tensor]) -> Subnetwork:
    """The subnetwork with other values of parameters; dead weights stay zero."""
    weights = {
        name: values[name].masked_fill(~subnetwork.masks[name], 0) if name in values else weight
        for name, weight in subnetwork.weights.items()
    }
    state = {name: values.get(name, value) for name, value in subnetwork.state.items()}
    return replace(subnetwork, weights=weights, state=state, distribution=None)


def _topologies(subnet: Subnetwork, spread: Distribution, net: nn.Module, task: Task, seed: int) -> Callable[[int], Subnetwork]:
    """A function that draws the topology of member number `index`. net: the network with all weights."""
    origin = subnet.origin
    units = units_of(
        origin.unit,
        net,
        origin.shape,
        measure=next(iter(origin.target or ["units"])),  # type: ignore[arg-type]
        round_to=origin.round_to,
        example=subnet.inputs(2),
        every=origin.every_output,
        dense_layers=origin.dense_layers,
    )
    supernet = Supernet(net, create(origin.extractor), Recipe(device="cpu"), origin.seed, units, task)
    if {name: value.shape for name, value in supernet.relevance.items()} != {n: v.shape for n, v in spread.relevance.items()}:
        raise UserError("the relevance in this file is of other units than those of the network")
    supernet.scales = {name: subnet.scales[name].clone() for name in supernet.scales}

    def draw(index: int) -> Subnetwork:
        for name, value in spread.relevance.items():
            noise = uniform_noise(value, derive(seed, "ensemble", index, name))
            supernet.relevance[name] = value + torch.logit(noise)
        chosen = supernet.final()
        masks, factors = supernet.weight_masks(chosen), supernet.factors(chosen)
        weights = {name: weight.detach().masked_fill(~masks[name], 0) for name, weight in supernet.weights.items()}
        return replace(subnet, masks=masks, weights=weights, scales=factors, distribution=None)

    return draw


def _with_all_weights(subnet: Subnetwork, dense: nn.Module, own: bool) -> nn.Module:
    """The network with all weights, also those that the subnetwork does not keep. Raises UserError when they are not known."""
    if subnet.origin.init == "keep":
        start = before_pruning(subnet, dense, own, "pass the network with the weights that the run started from, network=...")
        weights = {name: start.state_dict()[name].cpu() for name in subnet.weights}
    else:
        weights = subnet.initial_weights()
    if any(not torch.equal(weights[name][mask], subnet.weights[name][mask]) for name, mask in subnet.masks.items()):
        raise UserError("the weights of this network are not those that the run started from")
    net = own_copy(dense).cpu()
    net.load_state_dict({**net.state_dict(), **subnet.state, **weights})
    return net


def averaging(task: Task, networks: Sequence[nn.Module]) -> Network:
    """A network whose outputs are the mean of what `networks` predict."""
    return lambda *args, **kwargs: task.averaged([net(*args, **kwargs) for net in networks])


@torch.no_grad()
def ensemble_record(
    drawn: Drawn, single: tuple[dict[str, Any], ItemMetrics | None], split: Split | Items, count: int
) -> dict[str, Any]:
    """The metrics of an ensemble on a split, beside those of its members and of the subnetwork itself.

    single: what `Task.measure_items` returned for the subnetwork. For the keys see docs/ensembles.md.
    """
    task, subnet, data, spread = drawn.task, drawn.subnetwork, drawn.data, drawn.subnetwork.distribution
    assert spread is not None
    members = [drawn.draw(index) for index in range(count)]
    networks = [drawn.network(member) for member in members]
    measured = [task.measure_items(net, in_order(split, data.mean, data.std)) for net in networks]
    items = [found for _, found in measured if found is not None and found.logits is not None]
    classify = len(items) == count
    whole = _from_logits(task, items) if classify else None
    whole = whole or task.measure_items(averaging(task, networks), in_order(split, data.mean, data.std))
    names = [name for name in task.directions if name in whole[0]]

    def of(other: Subnetwork) -> tuple[dict[str, Any], ItemMetrics | None]:
        return task.measure_items(drawn.network(other), in_order(split, data.mean, data.std))

    recomputed = of(subnet) if has_batch_norm(drawn.dense) else None
    mean_weights = of(_with_parameters(subnet, spread.mean)) if spread.samples else None
    difference = compared(task, whole, recomputed or single, "the subnetwork")
    macs = [cost(drawn.dense, one.masks, subnet.origin.shape, subnet.inputs(2)).kept_macs for one in (subnet, *members)]
    return {
        "drawn": "weights" if spread.samples else "topologies",
        "members": count,
        "seed": drawn.seed,
        "samples": spread.samples or None,
        "metrics": {name: whole[0][name] for name in names},
        **{
            key: found and {name: found[0][name] for name in names}
            for key, found in (("single", single), ("recomputed", recomputed), ("mean_weights", mean_weights))
        },
        "each": {name: _range([found[name] for found, _ in measured]) for name in names},
        "difference": difference["difference"],
        "interval": difference.get("interval"),
        "disagreement": _disagreement(items) if classify else None,
        "density": _range([one.density for one in members]),
        "macs": sum(macs[1:]),
        "single_macs": macs[0],
        "bytes": sum(one.tensor_bytes for one in members),
        "single_bytes": subnet.tensor_bytes,
    }


def _from_logits(task: LogitsTask, members: Sequence[ItemMetrics]) -> tuple[dict[str, Any], ItemMetrics | None]:
    """The metrics of an ensemble of classifiers from the logits of its members, without another pass over the items."""
    logits, rows = task.averaged([one.logits for one in members]), torch.arange(len(members[0].rows))
    return task.measure_items(lambda index: logits[index], [(rows, members[0].labels)])


def _range(values: Sequence[float]) -> dict[str, float]:
    return {"mean": fmean(values), "low": min(values), "high": max(values)}


def _disagreement(found: Sequence[ItemMetrics]) -> float:
    """The fraction of items that two classifiers predict differently, the mean over all pairs."""
    classes = [items.logits.argmax(1) for items in found if items.logits is not None]
    return fmean(float((one != other).double().mean()) for one, other in combinations(classes, 2))
