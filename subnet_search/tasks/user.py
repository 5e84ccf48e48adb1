"""A task of the user's: an object with `loss(network, batch)`, and `metrics(network, batch)` if it measures more."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import ConfigDict, PrivateAttr, model_serializer
from torch import Tensor

from subnet_search.core.errors import RunError, UserError, reason, shown
from subnet_search.core.nested import length_of
from subnet_search.tasks.base import Direction, Network, Task

BOTH = ("minimize", "maximize")


class UserTask(Task):
    """A task of the user's.

    The object has

    loss(network, batch)      a scalar tensor with a gradient, the mean over the items of the batch
    metrics(network, batch)   a mapping of names to numbers or scalar tensors, each a mean over the items; may be absent
    leading                   the metric that the best epoch is chosen by; default "loss", which is always measured
    directions                {metric: "minimize" or "maximize"} of metrics that a study optimises, and of `leading` (default
                              minimize for "loss")
    distance(output, teacher_output, temperature)   a scalar tensor, for `recipe.distill`; may be absent

    `network` is called like the module. `batch` is what the collate function returns, on the run's device.
    """

    model_config = ConfigDict(extra="allow")

    _task: Any = PrivateAttr()
    _by_name: bool = PrivateAttr(default=False)

    @classmethod
    def of(cls, task: Any, name: str | None = None, options: Mapping[str, Any] | None = None) -> "UserTask":
        """Wrap an object. name: `module:Class`, if it was imported by name with these options."""
        kind = type(task).__name__
        if not callable(getattr(task, "loss", None)):
            raise UserError(f"the task {name or kind} has no method loss(network, batch)")
        found = cls(name=name or f"{type(task).__module__}:{type(task).__qualname__}", **(options or {}))
        found._task, found._by_name = task, name is not None
        if found.leading not in found.directions:
            raise UserError(f"the task {found.name} must say in `directions` whether {found.leading} is to be maximized")
        if found.leading == "error":  # records name it test_error, which says why the test split could not be read
            raise UserError(f"the task {found.name}: the leading metric cannot be called error")
        for metric, direction in found.directions.items():
            if direction not in BOTH:
                raise UserError(f"the task {found.name}: the direction of {metric} must be minimize or maximize")
        return found

    @property
    def by_name(self) -> bool:
        """Whether the task was imported by its name, so that a configuration describes it."""
        return self._by_name

    @property
    def leading(self) -> str:  # type: ignore[override]
        """The metric that the best epoch is chosen by; the loss if the object names none."""
        return str(getattr(self._task, "leading", "loss"))

    @property
    def directions(self) -> Mapping[str, Direction]:  # type: ignore[override]
        """The metrics that a study can optimise, with their directions; the loss is one of them."""
        return {"loss": "minimize", **getattr(self._task, "directions", {})}

    def loss(self, network: Network, batch: Any, label_smoothing: float = 0.0) -> Tensor:
        with self._failing("loss"):
            return self._task.loss(network, batch)  # type: ignore[no-any-return]

    @property
    def has_distance(self) -> bool:
        return callable(getattr(self._task, "distance", None))

    def distance(self, output: Any, teacher: Any, temperature: float) -> Tensor:
        if not self.has_distance:
            return super().distance(output, teacher, temperature)
        with self._failing("distance"):
            return self._task.distance(output, teacher, temperature)  # type: ignore[no-any-return]

    def measure(self, network: Network, batches: Iterable[Any]) -> dict[str, Any]:
        """The mean of each metric over all items; batches count by their number of items."""
        total, items = defaultdict[str, float](float), 0
        more = getattr(self._task, "metrics", None)
        for batch in batches:
            size = length_of(batch)
            with self._failing("metrics"):
                found = {"loss": self._task.loss(network, batch), **(more(network, batch) if more else {})}
            for metric, value in found.items():
                total[metric] += _number(self.name, metric, value) * size
            items += size
        if missing := self.directions.keys() - total.keys():
            raise RunError(f"the metrics of the task {self.name} have no {min(missing)}, which `directions` names")
        return {metric: value / items for metric, value in total.items()}

    @contextmanager
    def _failing(self, what: str) -> Iterator[None]:
        """Turn any exception of the user's task into RunError."""
        try:
            yield
        except (UserError, RunError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise RunError(f"the {what} of the task {self.name} fails: {reason(error)}") from error

    @model_serializer
    def _plain(self) -> dict[str, Any]:
        return {"name": self.name, **(self.model_extra or {})}


def _number(task: str, metric: str, value: Any) -> float:
    try:
        number = float(value)
    except Exception as error:  # anything that a user's task returns
        raise RunError(f"the metric {metric} of the task {task} must be one number, got {shown(value)}") from error
    if math.isnan(number):
        raise RunError(f"the metric {metric} of the task {task} is not a number (nan)")
    return number
