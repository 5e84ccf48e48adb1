"""What a task is: how a batch goes into the network, the loss, and the metrics."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor

from subnet_search.core.errors import UserError
from subnet_search.core.settings import Settings
from subnet_search.data import Data, Labels, split_batch
from subnet_search.nets import call, logits_of

Network = Callable[..., Any]
"""A network as a task calls it: with the inputs of a batch, as its module would be called."""
Direction = Literal["minimize", "maximize"]


class Task(Settings):
    """What a network is trained for. Written as a name, or as {name: ..., setting: ...}.

    A task of your own need not derive from this class: see `UserTask`.
    """

    name: str
    labels: str | None = None
    """Key of the labels in a batch that is a mapping. Default: labels, label, targets, target or y."""

    leading: ClassVar[str]
    """The metric that the best epoch is chosen by, one of `directions`."""
    directions: ClassVar[Mapping[str, Direction]]
    """The metrics that are one number, and whether they are to be minimized or maximized."""
    class_labels: ClassVar[bool] = False
    """Whether labels are one class index for each item."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def kind_of_labels(self) -> Labels:
        """What the labels of the data must be."""
        return Labels(self.class_labels, self.labels)

    def fitted(self, data: Data, device: torch.device | str) -> Self:
        """The task with what it needs of the training data, such as class weights; tensors are on `device`.

        Raises UserError when the labels of the data are not those of this task.
        """
        return self

    def outputs(self, data: Data) -> int | None:
        """The number of outputs that a network needs for this data; None: not known."""
        return None

    def loss(self, network: Network, batch: Any, label_smoothing: float = 0.0) -> Tensor:
        """The loss of a batch: a scalar, the mean over its items."""
        raise NotImplementedError

    def measure(self, network: Network, batches: Iterable[Any]) -> dict[str, Any]:
        """All metrics over the items of all batches; the network is in evaluation mode, without gradients."""
        raise NotImplementedError

    def check_output(self, output: Any, batch: Any, outputs: int | None, name: str, when: str = "") -> None:
        """Raise UserError when what the network returned for a batch cannot be trained on.

        outputs: the number of outputs needed. name: of the network, for the message; `when` is added to it.
        """

    def distance(self, output: Any, teacher: Any, temperature: float) -> Tensor:
        """The loss between a network's output and its teacher's for the same inputs: a scalar. Raises UserError without."""
        raise UserError(f"recipe.distill: the task {self.name} has no distance between outputs")


class LogitsTask(Task):
    """A task whose loss is a function of the network's logits and the labels of a batch."""

    def loss(self, network: Network, batch: Any, label_smoothing: float = 0.0) -> Tensor:
        inputs, labels = self.split(batch)
        return self.criterion(logits_of(call(network, inputs)).float(), labels, label_smoothing)

    def split(self, batch: Any) -> tuple[Any, Any]:
        """The inputs and labels of a batch."""
        return split_batch(batch, self.labels)

    def criterion(self, logits: Tensor, labels: Any, label_smoothing: float = 0.0) -> Tensor:
        """The loss of logits (batch, ...), float32: a scalar."""
        raise NotImplementedError

    def distance(self, output: Any, teacher: Any, temperature: float) -> Tensor:
        """Kullback-Leibler divergence of softened class probabilities, times temperature squared (Hinton et al. 2015)."""
        logits, target = (self.class_last(logits_of(one).float()) / temperature for one in (output, teacher))
        divergence = F.kl_div(logits.log_softmax(-1), target.log_softmax(-1), reduction="none", log_target=True)
        return divergence.sum(-1).mean() * temperature**2

    def class_last(self, logits: Tensor) -> Tensor:
        """Logits with the classes in the last dimension."""
        return logits
