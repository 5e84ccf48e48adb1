"""How inputs are passed to a network, and the logits in what it returns."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from subnet_search.core.errors import UserError
from subnet_search.core.nested import moved, shapes_in, tensors_in


def call(net: Callable[..., Any], inputs: Any) -> Any:
    """The output of a network: a tuple or list of inputs is passed as positional arguments, a mapping as keywords."""
    args, kwargs = arguments(inputs)
    return net(*args, **kwargs)


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword arguments of `call`."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, tuple | list) else ((inputs,), {})


def logits_of(output: Any) -> Any:
    """The logits in an output: the tensor itself, `.logits` of an object, "logits" of a mapping, or the first of a tuple.

    Anything else is returned as it is.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        return output.get("logits", output)
    named = getattr(output, "logits", None)
    if named is not None:
        return named
    return output[0] if isinstance(output, tuple | list) and output else output


def compared(output: Any) -> Tensor:
    """What is compared between two networks' outputs: the logits; of several tensors all numbers, (batch, numbers)."""
    found = logits_of(output)
    if isinstance(found, Tensor):
        return found
    tensors = [tensor for _, tensor in tensors_in(found) if tensor.is_floating_point()]
    if not tensors:
        raise UserError(f"to compare networks, they must return tensors, not {type(output).__name__}")
    return torch.cat([tensor.flatten(1) for tensor in tensors], 1)


def check_logits(output: Any, classes: int, name: str, when: str = "") -> Tensor:
    """The logits of an output. Raises UserError unless their shape is (batch, at least `classes`); `when` is added to it."""
    out = logits_of(output)
    if not isinstance(out, Tensor) or out.dim() != 2:
        several = f" of {len(output)}" if isinstance(output, tuple | list | Mapping) else ""
        keys = f" with {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
        got = tuple(out.shape) if isinstance(out, Tensor) else f"{type(output).__name__}{several}{keys}"
        raise UserError(f"{name} must return logits of shape (batch, classes){when}, got {got}")
    if out.shape[1] < classes:
        raise UserError(f"{name} has {out.shape[1]} outputs{when}, but the data has {classes} classes")
    return out


@torch.no_grad()
def check_accepts(net: nn.Module, inputs: Any, outputs: int | None = None) -> None:
    """Run a forward pass. Raises UserError when the network does not accept the inputs.

    outputs: the number of logits that it must return at least; None: it may return anything.
    """
    name, was_training = type(net).__name__, net.training
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    try:
        out = call(net.eval(), moved(inputs, device))
    except Exception as error:  # anything that a user's forward pass raises
        raise not_accepted(name, inputs, error) from error
    finally:
        net.train(was_training)
    if outputs is not None:
        check_logits(out, outputs, name)


def not_accepted(name: str, inputs: Any, error: Exception) -> UserError:
    """The error for a network that fails on its inputs."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if not isinstance(inputs, Tensor):
        return UserError(f"{name} does not accept the inputs {shapes_in(inputs)}: {reason}")
    kind, hint = "", ""
    if not inputs.is_floating_point():
        kind = f"{str(inputs.dtype).removeprefix('torch.')} "
        hint = "; indices are passed as they are: if they are measurements, pass inputs.float()"
    return UserError(f"{name} does not accept {kind}inputs of shape {tuple(inputs.shape[1:])}: {reason}{hint}")


class LogitsOnly(nn.Module):
    """A network that returns nothing but its logits."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.train(net.training)

    def forward(self, inputs: Tensor) -> Tensor:
        return logits_of(self.net(inputs))  # type: ignore[no-any-return]
