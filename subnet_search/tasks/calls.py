"""What a task calls the network with, and a network that is called with other tensors."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from subnet_search.core.errors import RunError, UserError, reason
from subnet_search.nets import not_accepted
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
