"""Judge a subnetwork, or what was exported of one, that is in a file: accuracy, calibration, sturdiness, cost."""

from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import nn

from subnet_search.data import Data, from_user, load
from subnet_search.deploy import Subnetwork
from subnet_search.deploy.deployed import Deployed
from subnet_search.errors import UserError
from subnet_search.evaluation import quality
from subnet_search.evaluation.accuracy import logits
from subnet_search.evaluation.robustness import corruption_table, noise_curve
from subnet_search.nets import NetworkSpec, build


def evaluate(
    subnetwork: Subnetwork | Deployed,
    split: Literal["val", "test"] = "val",
    *,
    network: nn.Module | str | None = None,
    data: Any = None,
    noise: bool = False,
    corruptions: bool = False,
) -> dict[str, Any]:
    """The record of the subnetwork's run, with what is measured now on one split of its data.

    network   needed when the file's network is not one of ours or torchvision's: a module, or `package.module:factory`
    data      another data set than the one it was found on; images are normalised as in the run all the same
    noise     accuracy under uniform noise; corruptions: accuracy under common corruptions, by kind and severity

    Raises UserError when there is no such split, or network and data do not fit.
    """
    origin = subnetwork.origin
    net = network_of(subnetwork, network).eval()
    found = data_of(subnetwork, data)
    if found.shape != origin.shape or found.classes > origin.classes:
        raise UserError(
            f"{found.name} has inputs of shape {found.shape} and {found.classes} classes; "
            f"the subnetwork takes {origin.shape} and {origin.classes}"
        )
    chosen = found.val if split == "val" else found.test()
    if chosen is None:
        raise UserError(f"{found.name} has no test split")
    mean, deviation = (None if t is None else torch.tensor(t) for t in (origin.mean, origin.deviation))
    record = {
        **subnetwork.summary(),
        "split": split,
        "items": len(chosen),
        **asdict(quality(logits(net, chosen, mean, deviation), chosen.labels)),
    }
    if noise:
        record["noise"] = noise_curve(net, None, chosen, mean, deviation)
    if corruptions:
        record["corruptions"] = corruption_table(net, chosen, mean, deviation)
    return record


def network_of(subnetwork: Subnetwork | Deployed, network: nn.Module | str | None) -> nn.Module:
    """The network of a file: built from its name, or on a dense one, a module or `package.module:factory`."""
    if network is None:
        return subnetwork.network()
    if isinstance(network, str):
        origin = subnetwork.origin
        spec = NetworkSpec(name=network, init="keep", options=origin.network.options if origin.network else {})
        network = build(spec, origin.shape, origin.classes, origin.seed)
    return subnetwork.on(network)


def data_of(subnetwork: Subnetwork | Deployed, data: Any) -> Data:
    """The data that a subnetwork was found on, or those handed in. Raises UserError when there are none."""
    if data is not None:
        return from_user(data)
    if subnetwork.origin.data is None:
        raise UserError("the data of this run was handed in from Python: name a data set to evaluate on")
    return load(subnetwork.origin.data)
