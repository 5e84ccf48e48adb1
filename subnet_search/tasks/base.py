"""What a task is: how a batch goes into the network, the loss, and the metrics."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, model_serializer, model_validator
from pydantic import SerializerFunctionWrapHandler as Serialize
from torch import Tensor

from subnet_search.core.errors import UserError
from subnet_search.core.nested import length_of, rows_of
from subnet_search.core.settings import Settings
from subnet_search.data import Data, Labels, Values, split_batch
from subnet_search.evaluation.items import Items
from subnet_search.nets import call, logits_of, unwrapped

Network = Callable[..., Any]
"""A network as a task calls it: with the inputs of a batch, as its module would be called."""
Direction = Literal["minimize", "maximize"]
POSITIONS, NUMBERS = 2**22, 2**27  # of the outputs of one forward pass in a validation, where each item has many


def _weights(value: Any) -> Any:
    if isinstance(value, tuple) and (not value or min(value) < 0 or not any(value)):
        raise UserError("class weights must not be below 0, and not all be 0")
    return value


ClassWeights = Annotated[Literal["balanced"] | tuple[float, ...] | None, AfterValidator(_weights)]
"""One weight for each class, or balanced: in inverse proportion to how often the class occurs."""


class Task(Settings):
    """What a network is trained for. Written as a name, or as {name: ..., setting: ...}.

    A task of your own need not derive from this class: see `UserTask`. Arguments of several methods:

    network   function that is called with the inputs of a batch, as the module would be
    batch     inputs and labels, as the data gives them; `batches` are several, one after the other
    output    what the network returned for one batch; `outputs` of the same batch by several networks
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
    predicted_at_once: ClassVar[int] = 1000
    """Items in each forward pass of a prediction."""
    any_length: ClassVar[bool] = False
    """Whether inputs of other sizes than in training can be predicted."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def kind_of_labels(self) -> Labels:
        """What the labels of the data must be."""
        return Labels(self.class_labels, self.labels)

    def check_data(self, data: Data) -> None:
        """Raise UserError when the labels of the data are not those of this task."""

    def fitted(self, data: Data, device: torch.device | str) -> Self:
        """The task with what it needs of the training data, such as class weights; tensors are on `device`.

        Raises UserError when the labels of the data are not those of this task.
        """
        self.check_data(data)
        return self

    def outputs(self, data: Data) -> int | None:
        """The number of outputs that a network needs for this data; None: not known."""
        return None

    def loss(self, network: Network, batch: Any, label_smoothing: float = 0.0) -> Tensor:
        """The loss of a batch: a scalar, the mean over its items.

        label_smoothing: the share of the target that is spread over all classes, 0 to 1; 0 for tasks without classes.
        """
        raise NotImplementedError

    def measure(self, network: Network, batches: Iterable[Any]) -> dict[str, Any]:
        """All metrics over the items of all batches; the network is in evaluation mode, without gradients."""
        raise NotImplementedError

    def measure_items(self, network: Network, batches: Iterable[Any]) -> tuple[dict[str, Any], Items | None]:
        """`measure`, and what the leading metric is made of, for each item; None: not known."""
        return self.measure(network, batches), None

    def check_output(self, output: Any, batch: Any, outputs: int | None, name: str, when: str = "") -> None:
        """Raise UserError when what the network returned for a batch cannot be trained on.

        outputs: the number of outputs needed. name: of the network, for the message; `when` is added to it.
        """

    @property
    def has_distance(self) -> bool:
        """Whether the outputs of two networks can be compared by `distance`."""
        return type(self).distance is not Task.distance

    def distance(self, output: Any, teacher: Any, temperature: float) -> Tensor:
        """The loss between a network's output and its teacher's for the same inputs: a scalar, the mean over the batch.

        teacher: the output of the teacher. temperature: what the logits of both are divided by, above 0.
        Has a gradient for both outputs. Raises UserError when the task does not define it.
        """
        raise UserError(f"the task {self.name} has no distance between the outputs of two networks")

    def averaged(self, outputs: Sequence[Any]) -> Any:
        """An output for the mean of what several networks predict: of their probabilities, or of their values.

        Raises UserError when the task does not define it.
        """
        raise UserError(f"the task {self.name} has no mean of the outputs of several networks, so it has no ensembles")

    def answer(self, output: Any, inputs: Any) -> Any:
        """What a prediction keeps of the output for a batch of inputs."""
        return unwrapped(output)

    def prediction(self, answers: Any, outputs: int, names: tuple[str, ...] | None) -> Any:
        """The prediction from the answers of all items. outputs: the number needed; 0: not known. names: of the classes."""
        return answers


class LogitsTask(Task):
    """A task whose loss is a function of the network's logits and the labels of a batch."""

    @model_serializer(mode="wrap")
    def _by_alias(self, dump: Serialize) -> dict[str, Any]:
        """Plain values under the names that a configuration has: `loss` is also the name of a method."""
        aliases = {name: field.alias or name for name, field in type(self).model_fields.items()}
        return {aliases[name]: value for name, value in dump(self).items()}

    def loss(self, network: Network, batch: Any, label_smoothing: float = 0.0) -> Tensor:
        inputs, labels = self.split(batch)
        return self.criterion(self.scores(call(network, inputs)).float(), labels, label_smoothing)

    def split(self, batch: Any) -> tuple[Any, Any]:
        """The inputs and labels of a batch."""
        return split_batch(batch, self.labels)

    def scores(self, output: Any) -> Any:
        """The logits in what the network returns."""
        return logits_of(output)

    def criterion(self, logits: Tensor, labels: Any, label_smoothing: float = 0.0) -> Tensor:
        """The loss of logits (batch, ...), float32: a scalar."""
        raise NotImplementedError

    def distance(self, output: Any, teacher: Any, temperature: float) -> Tensor:
        """Kullback-Leibler divergence of softened class probabilities, times temperature squared (Hinton et al. 2015)."""
        logits, target = (self.class_last(self.scores(one).float()) / temperature for one in (output, teacher))
        logits, target = logits.log_softmax(-1), target.log_softmax(-1)
        return (target.exp() * (target - logits)).sum(-1).mean() * temperature**2

    def averaged(self, outputs: Sequence[Any]) -> Tensor:
        """The logarithm of the mean probabilities, float64."""
        logits = torch.stack([self.class_last(self.scores(one).double()).log_softmax(-1) for one in outputs])
        return logits.logsumexp(0) - math.log(len(outputs))

    def class_last(self, logits: Tensor) -> Tensor:
        """Logits with the classes in the last dimension."""
        return logits

    def answer(self, output: Any, inputs: Any) -> Any:
        return self.scores(output)


def in_parts(batches: Iterable[Any], positions: int, outputs: int) -> Iterator[Any]:
    """Batches in parts whose outputs fit in memory: at most `POSITIONS` positions and `NUMBERS` numbers each.

    positions: of each item. outputs: numbers at each position.
    """
    rows = max(1, min(POSITIONS // max(1, positions), NUMBERS // max(1, positions * outputs)))
    for batch in batches:
        for start in range(0, length_of(batch), rows):
            yield rows_of(batch, start, start + rows)


def cross_entropy(
    logits: Tensor, labels: Tensor, ignore_index: int = -100, weights: Tensor | None = None, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The sum of weight times loss over all positions but those labelled `ignore_index`, and the number of these positions.

    logits: (..., classes). labels: (...). weights: (classes,), of which the logits may have more.
    """
    flat, targets = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1).long()
    if weights is not None:
        weights = F.pad(weights, (0, flat.shape[1] - len(weights)), value=1.0)
    losses = F.cross_entropy(
        flat, targets, weights, ignore_index=ignore_index, reduction="none", label_smoothing=label_smoothing
    )
    return losses.sum(), (targets != ignore_index).sum()


def label_values(data: Data, part: str, task: str, wanted: str) -> Values:
    """The values of the labels of a part. Raises UserError when they are missing or are no single tensor."""
    values = data.values[part].get("labels")
    if values is None:
        _, labels = split_batch(data.first(1), data.label_key)
        raise unfit(data, part, task, wanted, "none" if labels is None else f"labels of type {type(labels).__name__}")
    return values


def unfit(data: Data, part: str, task: str, wanted: str, got: Values | str) -> UserError:
    """The error for data that a task cannot use. wanted, got: what the task needs and what the data has."""
    if isinstance(got, Values):
        shape = "different shapes" if got.shape is None else f"shape ({', '.join(['N', *map(str, got.shape)])})"
        got = f"{got.dtype} of {shape}"
    return UserError(f"{part_name(data, part)}: {task} needs {wanted}, got {got}")


def part_name(data: Data, part: str) -> str:
    """The name of a part of the data, for messages."""
    return data.name if part == "train" else f"{data.name} (validation)"


def got_output(output: Any) -> str:
    """The shape of a network's output, for messages."""
    found = logits_of(output)
    return str(tuple(found.shape)) if isinstance(found, Tensor) else type(output).__name__
