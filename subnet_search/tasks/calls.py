"""What a task calls the network with, and a network that is called with other tensors."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from subnet_search.core.errors import RunError, UserError, reason
from subnet_search.core.nested import length_of, rows_of
from subnet_search.data.batch import LABELS
from subnet_search.nets import call, not_accepted, outputs_in
from subnet_search.tasks.base import Network, Task
from subnet_search.tasks.user import UserTask


class Recorded:
    """A network that keeps the inputs and output of its last call, and the exception that it raised."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self.output: Any = None
        self.called = False
        self.error: Exception | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.args, self.kwargs, self.called = args, kwargs, True
        try:
            self.output = self.network(*args, **kwargs)
        except Exception as error:
            self.error = error
            raise
        return self.output

    def sent(self) -> Any:
        """What the last call was with, for messages."""
        if self.kwargs:
            return {**{str(index): value for index, value in enumerate(self.args)}, **self.kwargs}
        return self.args[0] if len(self.args) == 1 else self.args

    def inputs(self, net: nn.Module) -> Any:
        """The inputs of the last call, so that `nets.call` repeats it: a tensor, a tuple, or a dict of keywords."""
        args, kwargs = self.args, self.kwargs
        if kwargs and args:
            return {**dict(zip(inspect.signature(net.forward).parameters, args, strict=False)), **kwargs}
        if kwargs:
            return kwargs
        return args[0] if len(args) == 1 and isinstance(args[0], Tensor) else args


def inputs_sent(net: nn.Module, task: Task, batch: Any, name: str = "", outputs: int | None = None) -> Any:
    """What the task calls the network with for a batch; its state and mode are restored.

    name: of the network, for messages. Raises UserError when the network does not accept it, when the task fails, when the
    loss is no scalar, and when the output is not what the task needs (`outputs`: the number of outputs).
    """
    name, was_training = name or type(net).__name__, net.training
    recorded = Recorded(net)
    try:
        with torch.no_grad():
            net.eval()
            loss = guarded_loss(task, recorded, batch, name, outputs)
    finally:
        net.train(was_training)
    check_scalar(loss, task)
    return recorded.inputs(net)


def first_inputs(net: nn.Module, task: Task, batches: Iterable[Any], count: int) -> list[Any]:
    """What the task calls the network with for the first `count` items of prepared batches, without labels."""
    found: list[Any] = []
    for batch in batches:
        inputs = rows_of(inputs_sent(net, task, batch), 0, count)
        found.append(without_labels(net, inputs, isinstance(task, UserTask)))
        count -= length_of(inputs)
        if count <= 0:
            break
    return found


@torch.no_grad()
def without_labels(net: nn.Module, inputs: Any, every: bool = False) -> Any:
    """Inputs without the labels among them, if these are arguments with a default and the outputs are the same without.

    A network that computes its own loss needs labels to be trained, and none afterwards. every: as for `nets.outputs_in`.
    """
    defaults = {
        name: parameter.default is not inspect.Parameter.empty
        for name, parameter in inspect.signature(net.forward).parameters.items()
    }
    if isinstance(inputs, Mapping):
        fewer: Any = {name: value for name, value in inputs.items() if not (name in LABELS and defaults.get(name))}
    elif isinstance(inputs, tuple):
        names = list(defaults)[: len(inputs)]
        kept = next((len(inputs) - index for index, name in enumerate(reversed(names)) if name not in LABELS), 0)
        fewer = inputs[:kept] if all(defaults[name] for name in names[kept:]) else inputs
    else:
        return inputs
    if len(fewer) == len(inputs) or not fewer:
        return inputs
    if isinstance(fewer, tuple) and len(fewer) == 1 and isinstance(fewer[0], Tensor):
        fewer = fewer[0]
    was_training = net.training
    try:
        net.eval()
        whole, same = (outputs_in(call(net, given), every) for given in (inputs, fewer))
    except Exception:  # it needs them: anything that a user's forward pass raises
        return inputs
    finally:
        net.train(was_training)
    equal = len(whole) == len(same) and all(torch.equal(a, b) for a, b in zip(whole.values(), same.values(), strict=True))
    return fewer if equal else inputs


@torch.no_grad()
def check_metrics(net: nn.Module, task: Task, batch: Any) -> None:
    """Measure a task of the user's on one batch. Raises UserError when its metrics fail, or are no numbers."""
    if not isinstance(task, UserTask):
        return
    was_training = net.training
    try:
        task.measure(net.eval(), [batch])
    except RunError as error:
        if "nan" not in str(error):  # of a single batch a metric may be undefined
            raise UserError(str(error)) from error
    finally:
        net.train(was_training)


def guarded_loss(task: Task, recorded: Recorded, batch: Any, name: str, outputs: int | None = None, when: str = "") -> Tensor:
    """The loss of a batch. Raises UserError with what failed: the network, its output, or the task."""
    try:
        loss = task.loss(recorded, batch)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # anything that a user's network or task raises
        if recorded.error is not None:
            raise not_accepted(name, recorded.sent(), recorded.error) from error
        if recorded.called:
            task.check_output(recorded.output, batch, outputs, name, when)
        if isinstance(error, UserError):
            raise
        if isinstance(error, RunError):  # of the task itself, before training
            raise UserError(str(error)) from error
        raise UserError(f"the loss of the task {task.name} fails: {reason(error)}") from error
    if not recorded.called:
        raise UserError(f"the loss of the task {task.name} does not call the network")
    task.check_output(recorded.output, batch, outputs, name, when)
    return loss


def check_scalar(loss: Any, task: Task) -> None:
    """Raise UserError unless the loss is a tensor with one number."""
    if not isinstance(loss, Tensor) or loss.dim():
        got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise UserError(f"the loss of the task {task.name} must be a scalar tensor, got {got}")


def with_outputs(network: Network, change: Callable[[Any], Any]) -> Network:
    """A network whose outputs are changed."""
    return lambda *args, **kwargs: change(network(*args, **kwargs))
