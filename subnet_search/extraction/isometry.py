"""Dynamical isometry of a subnetwork, and of the trained network that it was pruned from."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from subnet_search.artifact import Subnetwork
from subnet_search.artifact.subnetwork import state_in
from subnet_search.core.errors import UserError
from subnet_search.deploy.exported_network import Deployed
from subnet_search.evaluation.isometry import INPUTS, check_floats, mean_singular_value
from subnet_search.nets import build, file_sha256
from subnet_search.tasks import Task, first_inputs


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
        record["dense_isometry"] = mean_singular_value(_before_pruning(subnetwork, dense, own).eval(), inputs)
    except UserError as error:
        record["dense_isometry_error"] = str(error)
    return record


def _before_pruning(subnetwork: Subnetwork | Deployed, dense: nn.Module, own: bool) -> nn.Module:
    """The network with its trained weights before pruning. Raises UserError when they are not known.

    A file cannot cause reads outside of the current folder.
    """
    origin = subnetwork.origin
    if own and origin.init == "keep":
        return dense
    spec = origin.network
    if own or spec is None or not spec.state or spec.partial or spec.new_head:
        raise UserError("no trained weights from before pruning are known; recipe.record_isometry measures them during a run")
    path = Path(spec.state).expanduser()
    if not path.resolve().is_relative_to(Path.cwd()):
        raise UserError("the file names weights outside the current folder: pass the network with its weights in Python")
    file_sha256(spec.state, "network.state", spec.state_sha256)
    net = build(spec.model_copy(update={"options": origin.options}), origin.shape, origin.classes or None, 0, state_in(path))
    return origin.with_gates(net)
