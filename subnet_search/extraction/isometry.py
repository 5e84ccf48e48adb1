"""Dynamical isometry of a subnetwork, and of the trained network that it was pruned from."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from subnet_search.artifact import Subnetwork
from subnet_search.core.errors import UserError
from subnet_search.deploy.exported_network import Deployed
from subnet_search.evaluation.isometry import INPUTS, check_floats, mean_singular_value
from subnet_search.extraction.against import before_pruning
from subnet_search.tasks import Task, first_inputs

INSTEAD = "recipe.record_isometry measures them during a run"


def isometry_inputs(net: nn.Module, task: Task, batches: Iterable[Any]) -> list[Any]:
    """The first 128 inputs of a split. Raises UserError when they are not floats."""
    inputs = first_inputs(net, task, batches, INPUTS)
    check_floats(inputs)
    return inputs


def isometry_record(
    subnetwork: Subnetwork | Deployed, net: nn.Module, dense: nn.Module, own: bool, inputs: list[Any]
) -> dict[str, Any]:
    """Mean singular values of the Jacobians of the masked network and of the trained network before pruning.

    net, dense: take normalised inputs. own: whether `dense` was passed as a module, so that its weights are the caller's.
    """
    record: dict[str, Any] = {
        "isometry": mean_singular_value(net, inputs),
        "dense_isometry": None,
        "dense_isometry_error": None,
    }
    try:
        record["dense_isometry"] = mean_singular_value(before_pruning(subnetwork, dense, own, INSTEAD).eval(), inputs)
    except UserError as error:
        record["dense_isometry_error"] = str(error)
    return record
