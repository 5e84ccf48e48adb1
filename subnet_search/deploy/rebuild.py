"""The network and data of a subnetwork, built again."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from subnet_search.artifact import Subnetwork
from subnet_search.core.errors import UserError
from subnet_search.data import Data, DataSpec, catalogue, from_user, load
from subnet_search.deploy.exported_network import Deployed
from subnet_search.nets import NetworkSpec, build


def network_of(subnetwork: Subnetwork | Deployed, network: nn.Module | str | None) -> nn.Module:
    """The network of a file: built from its name, or on a dense one, a module or `package.module:factory`."""
    return subnetwork.on(dense_of(subnetwork, network))


def dense_of(subnetwork: Subnetwork | Deployed, network: nn.Module | str | None) -> nn.Module:
    """The dense network that a file belongs to, freshly initialised."""
    if isinstance(network, nn.Module):
        return network
    origin = subnetwork.origin
    if network is None:
        return origin.build()
    spec = NetworkSpec(name=network, init="keep", options=origin.options)
    return build(spec, origin.shape, origin.classes, origin.seed)


def data_of(subnetwork: Subnetwork | Deployed, data: Any) -> Data:
    """The data handed in, or those that a subnetwork was found on, by their name alone and where they are here already.

    A file decides neither what is downloaded nor which folders are read: not its `root`, nor paths that lead elsewhere,
    unless they are named here. Data of the run's name are split as in the run. Raises UserError when there are none, or
    they are not normalised as the file says.
    """
    origin = subnetwork.origin
    same = origin.data is not None and isinstance(data, str) and data == origin.data.get("name")
    if data is not None and not same:
        return from_user(data)
    if origin.data is None:
        raise UserError("the data of this run was handed in from Python: name a data set to evaluate on")
    spec = DataSpec.of({**origin.data, "root": None})
    if same:
        return load(spec)
    kind, _, path = spec.name.partition(":")
    if path and not Path(path).expanduser().resolve().is_relative_to(Path.cwd()):
        raise UserError(f"the file names data outside of this folder: say so if they are to be read, --data {spec.name}")
    if not path and any(row["name"] == kind and not row["state"].startswith("here") for row in catalogue()):
        raise UserError(f"{spec.name} is not here, and is not downloaded because a file names it: say so, --data {spec.name}")
    found = load(spec)
    for name in ("mean", "std"):
        said, are = getattr(origin, name), getattr(found, name)
        if (said is None) != (are is None) or (said is not None and not torch.allclose(torch.tensor(said), are, rtol=1e-4)):
            raise UserError(
                f"the {name} that the file says its images were normalised by is not that of {spec.name} here: "
                f"the file or the data were changed; say which data, --data {spec.name}"
            )
    return found
