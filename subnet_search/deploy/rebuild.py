"""Rebuild the network and data of a subnetwork."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from subnet_search.artifact import Subnetwork
from subnet_search.artifact.subnetwork import Origin
from subnet_search.core.errors import UserError
from subnet_search.data import Data, DataSpec, Items, Split, catalogue, from_user, load
from subnet_search.data.sources import IMPORTED, TABLES
from subnet_search.deploy.exported_network import Artifact, Deployed
from subnet_search.deploy.onnx_file import OnnxFile
from subnet_search.tasks import Task, inputs_sent, task_names, task_of


def network_of(subnetwork: Artifact, network: nn.Module | str | None) -> nn.Module:
    """The network of a file, from its name, or from a dense network: a module or `package.module:factory`.

    An ONNX file needs no network.
    """
    return subnetwork.network() if isinstance(subnetwork, OnnxFile) else subnetwork.on(dense_of(subnetwork, network))


def statistics_outside(subnetwork: Artifact) -> tuple[Tensor | None, Tensor | None]:
    """The mean and std to normalise inputs by before they go into the network of a file; None: they are not normalised.

    0 and 1, so that images are only scaled to 0..1, where the file includes the normalisation.
    """
    if isinstance(subnetwork, Deployed | OnnxFile) and subnetwork.normalise:
        return torch.zeros(1), torch.ones(1)
    mean, std = (None if t is None else torch.tensor(t) for t in (subnetwork.origin.mean, subnetwork.origin.std))
    return mean, std


def split_of(subnetwork: Artifact, net: nn.Module, data: Any, task: Task, split: Literal["val", "test"]) -> Split | Items:
    """A split of the given data, or of the run's, that the network `net` of the file takes.

    Raises UserError when there is no data, no such split, or when the data does not fit the network or the task.
    """
    origin = subnetwork.origin
    given = data_of(subnetwork, data, task, all_is_test=split == "test")
    one = origin.input_spec is None and not task.any_length
    if (one and given.shape != origin.shape) or (origin.logits is not None and given.classes > origin.classes):
        raise UserError(
            f"{given.name} has inputs of shape {given.shape} and {given.classes} classes; "
            f"the subnetwork takes {origin.shape} and {origin.classes}"
        )
    task.check_data(given)
    chosen = given.val if split == "val" else given.test()
    if chosen is None:
        raise UserError(f"{given.name} has no test split")
    if not one or origin.logits is None:
        inputs_sent(net, task, given.first(), outputs=task.outputs(given))  # raises UserError where the data does not fit
    return chosen


def training_data_of(subnetwork: Artifact, data: Any, task: Task, split: Literal["val", "test"]) -> Data:
    """The given data, or the run's, whose training items are not part of `split`.

    Raises UserError for data without parts, all of which is the split "test".
    """
    found = data_of(subnetwork, data, task)
    if split == "test" and found.test() is None:
        raise UserError(f"{found.name} is one part, all of it for testing: pass it in parts, with the training data of the run")
    return found


def dense_of(subnetwork: Artifact, network: nn.Module | str | None) -> nn.Module:
    """The dense network of a file; `network` if it is a module, otherwise newly built."""
    if isinstance(network, nn.Module):
        return network
    if network is None and isinstance(subnetwork, Subnetwork) and subnetwork.module is not None:
        return subnetwork.module
    return subnetwork.origin.build(name=network)


class NotPassed(UserError):
    """What a file does not import was not passed. options: those of the command line that pass it."""

    def __init__(self, problems: Sequence[str], options: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.options = options


def check_given(subnetwork: Artifact, network: Any, data: Any, task: Any) -> None:
    """Raise NotPassed for all that a file does not import and that was not passed: network, data and task, in one line."""
    origin = subnetwork.origin
    known = isinstance(subnetwork, OnnxFile) or (isinstance(subnetwork, Subnetwork) and subnetwork.module is not None)
    checks: list[tuple[str, str, Callable[[], object]]] = []
    if network is None and not known:
        checks += [("--network", origin.import_path, origin.check_named)]
    if data is None:
        checks += [("--data", (origin.data or {}).get("name", "NAME"), partial(_check_data_named, origin))]
    if task is None:
        checks += [("--task", (origin.task or {}).get("name", ""), partial(task_of_run, subnetwork))]
    problems, options = list[str](), list[str]()
    for option, value, check in checks:
        try:
            check()
        except UserError as error:
            problems.append(str(error))
            options += [option, value]
    if problems:
        raise NotPassed(problems, options)


def _check_data_named(origin: Origin) -> None:
    """Raise UserError where a file must not decide on the data: its `root`, other folders, downloads, imports."""
    if origin.data is None:
        raise UserError("the data of this run was passed from Python: name a data set, --data NAME")
    spec = DataSpec.of({**origin.data, "root": None})
    if spec.kind == IMPORTED:
        raise UserError(f"the data of this run is made by your function: to import it, pass --data {spec.name}")
    kind, _, path = spec.name.partition(":")
    if path and not Path(path).expanduser().resolve().is_relative_to(Path.cwd()):
        raise UserError(f"the file names data outside the current folder: to read it, pass --data {spec.name}")
    if not path and any(row["name"] == kind and not row["state"].startswith("here") for row in catalogue()):
        raise UserError(f"{spec.name} is not on this machine: to download it, pass --data {spec.name}")


def task_of_run(subnetwork: Artifact, task: Any = None) -> Task:
    """The given task, or that of the run. Raises UserError for a task of the user's, which a file does not import."""
    if task is not None:
        return task_of(task)
    stored = subnetwork.origin.task or {"name": "classification"}
    if stored["name"] not in task_names():
        raise UserError(f"the task of this run is not built in: pass it, task=... or --task {stored['name']}")
    return task_of(stored)


def data_of(subnetwork: Artifact, data: Any, task: Task | None = None, all_is_test: bool = False) -> Data:
    """The given data, or the data set that the subnetwork was found on, with the same split.

    For security a file cannot cause downloads or reads elsewhere: its `root`, paths outside the current folder, and data
    sets that are not downloaded yet are used only if `data` names them, and so is a function of the user's that makes data.
    Other tables and texts are encoded as those of the run. Raises UserError when there is no data, or when its
    mean or std differ from the file's.
    """
    origin = subnetwork.origin
    task = task or task_of_run(subnetwork)
    same = origin.data is not None and isinstance(data, str) and data == origin.data.get("name")
    if data is not None and not same:
        return from_user(_encoded_alike(origin, data), all_is_test=all_is_test, labels=task.kind_of_labels)
    if origin.data is None or not same:
        _check_data_named(origin)
    spec = DataSpec.of({**(origin.data or {}), "root": None})
    if same:
        return load(spec, task.kind_of_labels)
    found = load(spec, task.kind_of_labels)
    for name in ("mean", "std"):
        stored, now = getattr(origin, name), getattr(found, name)
        if (stored is None) != (now is None) or (
            stored is not None and not torch.allclose(torch.tensor(stored), now, rtol=1e-4)
        ):
            raise UserError(
                f"the {name} in the file differs from that of {spec.name}: the file or the data was changed; "
                f"to use this data, pass --data {spec.name}"
            )
    return found


def _encoded_alike(origin: Origin, data: Any) -> Any:
    """A table or text by name, with the settings and the encoding of the run's; other data as it is."""
    if origin.data is None or not isinstance(data, str):
        return data
    spec, known = DataSpec.of(data), DataSpec.of({**origin.data, "root": None})
    if known.encoding is None or (spec.kind in TABLES) != (known.kind in TABLES) or spec.kind not in (*TABLES, "text"):
        return data
    kept = {"target", "encoding"} if spec.kind in TABLES else {"tokens", "context", "encoding"}
    return spec.model_copy(update=known.model_dump(include=kept) | {"encoding": known.encoding})
