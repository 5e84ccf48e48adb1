"""Python objects in a configuration: a network, data and a task that were passed, and that no other process has.

The configuration holds a placeholder for the network and the data, `python_object:...`, and the task itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from subnet_search.core.errors import UserError, shown
from subnet_search.data import Data, DataSpec, from_user
from subnet_search.data.given import batch_size_of
from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.config_file import DEFAULTS, check, read_values
from subnet_search.extraction.provenance import identity_of
from subnet_search.nets import NetworkSpec
from subnet_search.tasks import Task, UserTask
from subnet_search.tasks.registry import task_of

PLACEHOLDER = "python_object"
INIT = ("init", "init_density", "new_head", "trained")  # keys of `run.network` that apply to a module too


@dataclass(frozen=True, eq=False)
class Passed:
    """What was passed beside a configuration, and the callbacks of a study."""

    network: nn.Module | None = None
    data: Data | None = None
    on_epoch: Callable[..., Any] | None = None
    on_trial: Callable[..., Any] | None = None

    @cached_property
    def identity(self) -> dict[str, str]:
        """Hashes of the network's structure, its weights and the data, of those that were passed."""
        found: dict[str, str | None] = {}
        if self.network is not None:
            found = identity_of(self.network, self.network, "keep", None)
        fingerprint = None if self.data is None else self.data.fingerprint
        return {key: value for key, value in {**found, "init": None, "data": fingerprint}.items() if value is not None}


NOTHING = Passed()


def is_object(task: Task) -> bool:
    """Whether a task was passed as an object, so that no other process can make it."""
    return isinstance(task, UserTask) and not task.by_name


def config_like(run: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """The configuration of stored values. If the task of `run` is an object, it replaces the name in the values."""
    return check(RunConfig, {**values, "task": run.task} if is_object(run.task) else values)


def values_of(run: RunConfig) -> dict[str, Any]:
    """The values that were set in a configuration, with its task if that is an object."""
    return {**run.given(), "task": run.task} if is_object(run.task) else run.given()


def put_objects(
    run: Mapping[str, Any], network: Any = None, data: Any = None, task: Any = None, trained: bool | None = None
) -> tuple[dict[str, Any], Passed]:
    """Values of a run in which `network`, `data` and `task` replace those that it has, and the objects among them.

    network   a module, whose weights are kept unless the run sets `network.init`; or a name or settings
    data      anything that `extract` takes as data
    task      an object, a name or settings
    trained   whether the weights of the network are trained: `network.trained`; None: as the run has it

    Raises UserError for anything else.
    """
    run = dict(run)
    module, loaded = None, None
    if isinstance(network, nn.Module):
        before = run.get("network")
        kept = {key: before[key] for key in INIT if key in before} if isinstance(before, Mapping) else {}
        module, run["network"] = network, {**kept, "name": f"{PLACEHOLDER}:{type(network).__name__}"}
    elif isinstance(network, str | Mapping | NetworkSpec):
        run["network"] = network
    elif network is not None:
        hint = f": pass an instance, {network.__name__}(...)" if isinstance(network, type) else ""
        raise UserError(f"network must be a torch.nn.Module or the name of one, got {shown(network)}{hint}")
    if trained is not None:
        before = run.get("network", DEFAULTS["network"])
        before = before.model_dump(exclude_unset=True) if isinstance(before, NetworkSpec) else before
        run["network"] = {**({"name": before} if isinstance(before, str) else before), "trained": trained}
    if task is not None:
        run["task"] = task if isinstance(task, str | Mapping) else task_of(task)
    if isinstance(data, str | DataSpec) or (isinstance(data, Mapping) and "name" in data):
        run["data"] = data
    elif data is not None:
        loaded = from_user(data, labels=task_of(run.get("task", "classification")).kind_of_labels)
        size, recipe = batch_size_of(data), run.get("recipe", {})
        if size and isinstance(recipe, Mapping) and "batch_size" not in recipe:
            run["recipe"] = {**recipe, "batch_size": size}
        if loaded.spec is not None:  # loaded by name, which any process can do
            run["data"], loaded = loaded.spec.model_dump(exclude_unset=True), None
        else:
            run["data"] = f"{PLACEHOLDER}:data"
    return run, Passed(module, loaded)


def read_run(
    config: RunConfig | Mapping[str, Any] | str | Path,
    network: Any = None,
    data: Any = None,
    task: Any = None,
    trained: bool | None = None,
) -> tuple[RunConfig, Passed]:
    """A configuration from a YAML file, its values or itself, with `put_objects`."""
    places: dict[str, str] = {}
    if isinstance(config, RunConfig):
        values = values_of(config)
    elif isinstance(config, Mapping):
        values = dict(config)
    elif isinstance(config, str | Path):
        values, places = read_values(RunConfig, config)
    else:
        raise UserError(f"a configuration is a path, a mapping or a RunConfig, got {shown(config)}")
    values, passed = put_objects(values, network, data, task, trained)
    return check(RunConfig, values, places), passed
