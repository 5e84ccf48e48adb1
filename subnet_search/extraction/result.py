"""Make subnetworks and their records from a trained supernet."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn

from subnet_search.artifact import Origin, Subnetwork
from subnet_search.artifact.subnetwork import Distribution
from subnet_search.core.errors import Interrupted, RunError, UserError
from subnet_search.data import Data, Items, Split
from subnet_search.evaluation.cost import chosen_macs, cost
from subnet_search.extraction.provenance import named
from subnet_search.extraction.refit import with_readout
from subnet_search.extractors import Extractor
from subnet_search.tasks import Network
from subnet_search.topology.channels import Channels
from subnet_search.training import Outcome, Supernet
from subnet_search.training.distributed import any_rank, rank_and_world
from subnet_search.training.loop import evaluate, measured
from subnet_search.training.weight_statistics import COUNT, LEAST, mean_and_variance

log = logging.getLogger(__name__)


def subnetworks(
    supernet: Supernet,
    data: Data,
    outcome: Outcome,
    origin: Origin,
    methods: Sequence[Extractor],
    example: Any,
    unpruned: nn.Module | None = None,
) -> list[Subnetwork]:
    """One subnetwork for each method, from the trained supernet; the first method is the one that trained it.

    example: inputs of two items, as passed to the network. unpruned: the network with its trained weights, before training,
    to measure on the test split too.
    """
    here, first = data.to(supernet.device), methods[0]
    records = []
    for method in methods:
        supernet.extractor = method
        val = outcome.val if method is first else evaluate(supernet, here, here.val)
        records.append(_record(supernet, here, outcome, val, example))
    test, problem = _test_split(data, supernet.device)
    before = {} if unpruned is None or test is None else _unpruned_test(supernet, unpruned, here, test)
    found = []
    for method, record in zip(methods, records, strict=True):
        supernet.extractor = method
        record |= {"test_error": problem, **before}
        subnet = _subnetwork(supernet, origin.model_copy(update={"extractor": named(method)}), record)
        network: Network = supernet.evaluator()
        if supernet.recipe.readout:
            subnet, network = _refitted(supernet, subnet, here, record)
        if test is not None:
            try:
                record[f"test_{supernet.task.leading}"] = measured(supernet.task, network, here, test)[supernet.task.leading]
            except Interrupted:
                raise
            except RunError as error:  # items of a test split are not checked before
                record["test_error"] = str(error)
                log.warning("the test split was not measured: %s", error)
        found.append(replace(subnet, metrics=record))
    return found


def _refitted(supernet: Supernet, subnet: Subnetwork, data: Data, record: dict[str, Any]) -> tuple[Subnetwork, nn.Module]:
    """The subnetwork with the recipe's readout, and its network; puts the validation metrics of these into `record`."""
    recipe, task = supernet.recipe, supernet.task
    net = subnet.on(supernet.net).to(supernet.device).eval()
    assert recipe.readout is not None
    layer, penalty = recipe.readout_layer, recipe.readout_penalty
    subnet, how = with_readout(subnet, net, data, task, kind=recipe.readout, layer=layer, penalty=penalty)
    val = measured(task, net, data, data.val)
    record |= {f"val_{name}": val[name] for name in task.directions if name in val} | {"readout": how}
    return subnet, net


def _unpruned_test(supernet: Supernet, net: nn.Module, data: Data, test: Split | Items) -> dict[str, float]:
    """The leading metric of the network before training on the test split; empty when it cannot be measured."""
    task = supernet.task
    try:
        return {f"unpruned_test_{task.leading}": measured(task, net.to(supernet.device).eval(), data, test)[task.leading]}
    except Interrupted:
        raise
    except RunError as error:  # items of a test split are not checked before
        log.warning("the unpruned network was not measured on the test split: %s", error)
        return {}


def _test_split(data: Data, device: torch.device) -> tuple[Split | Items | None, str | None]:
    """The test split on the device, and the reason if it cannot be read: an error must not discard the training."""
    test, problem = None, None
    try:
        if (test := data.test()) is not None:  # the only line of a run that opens the test split
            test = test.to(device)
    except Interrupted:
        raise
    except (UserError, RuntimeError) as error:  # RuntimeError: out of device memory
        problem = str(error).partition("\n")[0]
    if any_rank(problem is not None):
        test, problem = None, problem or "another process could not read the test split"
        log.warning("the test split was not measured: %s", problem)
    return test, problem


def _record(supernet: Supernet, data: Data, outcome: Outcome, val: dict[str, Any], example: Any) -> dict[str, Any]:
    units = supernet.final()
    masks = supernet.weight_masks(units)
    counted = cost(supernet.net, masks, data.shape, example, supernet.left_whole)
    task = supernet.task
    return {
        f"test_{task.leading}": None,
        **{f"val_{name}": val[name] for name in task.directions if name in val},
        "epoch": outcome.epoch,
        "steps": outcome.steps,
        "probe_steps": outcome.probe_steps,
        "raised_intervals": outcome.raised_intervals,
        "passes": supernet.passes._asdict(),
        "seconds": outcome.seconds,
        "processes": rank_and_world()[1],
        "weights": counted.weights,
        "kept": counted.kept,
        "macs": counted.macs,
        "kept_macs": counted.kept_macs,
        **chosen_macs(supernet.net, example, lambda: evaluate(supernet, data, data.val)),
        "left_whole": [asdict(one) for one in counted.left_whole],
        "channels_left_whole": [
            {"name": name.removesuffix(".weight"), "why": why} for name, why in supernet.units.left_whole.items()
        ]
        if isinstance(supernet.units, Channels)
        else [],
        "asked": supernet.extractor.target_density,
        "reached": supernet.units.cost(units),
        "collapsed": [name for name, mask in masks.items() if not mask.any()],
        "exploration_rate": supernet.exploration_rate(),
        **({"isometry_at_pruning": outcome.isometry} if supernet.recipe.record_isometry else {}),
    }


def _subnetwork(supernet: Supernet, origin: Origin, record: dict[str, Any]) -> Subnetwork:
    """Make the current subnetwork, and restore the supernet's weights for the next one."""
    units = supernet.final()
    masks = supernet.weight_masks(units)
    before = {name: weight.detach().clone() for name, weight in supernet.weights.items()}
    supernet.fold_gates(units)
    subnet = Subnetwork.of(supernet.net, masks, supernet.factors(units), origin, record)
    with torch.no_grad():
        for name, weight in supernet.weights.items():
            weight.copy_(before[name])
    return replace(subnet, distribution=_distribution(supernet))


def _distribution(supernet: Supernet) -> Distribution | None:
    """What the recipe stores for ensembles, on the CPU."""
    sums = supernet.weight_sums
    if supernet.recipe.store_relevance:
        return Distribution({name: value.detach().cpu().clone() for name, value in supernet.relevance.items()})
    if not supernet.recipe.weight_statistics:
        return None
    if (samples := int(sums.get(COUNT, 0))) < LEAST:
        log.warning(
            "weight_statistics are not stored: %d sample%s since the last change of the topology; let %s end earlier, or set "
            "recipe.statistics_every",
            samples,
            "" if samples == 1 else "s",
            supernet.extractor.name,
        )
        return None
    mean, variance = ({name: value.cpu() for name, value in one.items()} for one in mean_and_variance(sums))
    return Distribution({}, mean, variance, samples)
