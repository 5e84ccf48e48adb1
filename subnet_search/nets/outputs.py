"""How inputs are passed to a network, and the logits or other tensors in what it returns."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from subnet_search.core.errors import UserError
from subnet_search.core.nested import moved, shapes_in, tensors_in
from subnet_search.nets.sources import outputs_hint


def call(net: Callable[..., Any], inputs: Any) -> Any:
    """The output of a network: a tuple or list of inputs is passed as positional arguments, a mapping as keywords."""
    args, kwargs = arguments(inputs)
    return net(*args, **kwargs)


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword arguments of `call`."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, tuple | list) else ((inputs,), {})


@contextmanager
def without_fused_attention() -> Iterator[None]:
    """Run transformer layers of torch by their parts, as exported networks do.

    The fused operation skips padding, so that it returns zeros there, and hooks on its parts do not see it.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


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


def unwrapped(output: Any) -> Any:
    """The logits of an object that has them, and the fields of a dataclass as a dict; other outputs as they are."""
    if isinstance(output, Tensor | Mapping | tuple | list):
        return output
    found = logits_of(output)
    if found is output and is_dataclass(output) and not isinstance(output, type):
        return {field.name: getattr(output, field.name) for field in fields(output)}
    return found


def outputs_in(output: Any, every: bool = False) -> dict[str, Tensor]:
    """The tensors in an output by name: `logits` where there is one, otherwise each by its path, such as `boxes.0`.

    every: take all tensors of a tuple, list or dict, and not only its logits. Scalars, such as a loss, are left out.
    Raises UserError when there is none.
    """
    if not every or type(output) not in (tuple, list, dict):
        found = logits_of(output)
        if isinstance(found, Tensor):
            return {"logits": found}
    tensors = {path or "logits": tensor for path, tensor in tensors_in(unwrapped(output)) if tensor.dim()}
    if not tensors:
        raise UserError(f"networks must return tensors to be compared or exported, and this one returns {_content(output)}")
    return tensors if len(tensors) > 1 else {"logits": next(iter(tensors.values()))}


def compared(output: Any, every: bool = False) -> list[Tensor]:
    """What is compared between two networks' outputs: the logits, or all tensors of numbers as `outputs_in` finds them."""
    found = list(outputs_in(output, every).values())
    return [tensor for tensor in found if tensor.is_floating_point()] or found


def _content(output: Any) -> str:
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    inner = ", ".join(sorted({type(part).__name__ for part in parts}))
    return f"a {type(output).__name__}" + (f" of {inner}" if inner else "")


def check_logits(output: Any, classes: int, name: str, when: str = "", hint: str = "") -> Tensor:
    """The logits of an output. Raises UserError unless their shape is (batch, at least `classes`).

    when: is added to the message. hint: what to do about the number of classes, where it is probably wrong.
    """
    out = logits_of(output)
    if not isinstance(out, Tensor) or out.dim() != 2:
        several = f" of {len(output)}" if isinstance(output, tuple | list | Mapping) else ""
        keys = f" with {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
        got = tuple(out.shape) if isinstance(out, Tensor) else f"{type(output).__name__}{several}{keys}"
        raise UserError(f"{name} must return logits of shape (batch, classes){when}, got {got}")
    if out.shape[1] < classes:
        hint = f": {hint}" if hint else outputs_hint(name, classes)
        raise UserError(f"{name} has {out.shape[1]} outputs{when}, but the data has {classes} classes{hint}")
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


def check_types(net: nn.Module, name: str, batch: Any) -> None:
    """Raise UserError for weights without values, and for a precision of weights that is not float32 nor that of the data."""
    parameters = list(net.parameters())
    if any(parameter.is_meta for parameter in parameters):
        raise UserError(f"weights of {name} are on the device meta, which holds no values: build it on the CPU")
    others = {parameter.dtype for parameter in parameters} & {torch.float16, torch.bfloat16, torch.float64}
    given = {tensor.dtype for _, tensor in tensors_in(batch) if tensor.is_floating_point()}
    if others and given and not others & given:
        raise UserError(
            f"weights of {name} are {str(min(others, key=str)).removeprefix('torch.')}, the data is "
            f"{str(min(given, key=str)).removeprefix('torch.')}: pass net.float(); recipe.precision bf16 uses autocast"
        )


def not_accepted(name: str, inputs: Any, error: Exception) -> UserError:
    """The error for a network that fails on its inputs."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if not isinstance(inputs, Tensor):
        return UserError(f"{name} does not accept the inputs {shapes_in(inputs)}: {reason}")
    kind, hint = "", channels_last(inputs)
    if not inputs.is_floating_point():
        kind = f"{str(inputs.dtype).removeprefix('torch.')} "
        hint = "; indices are passed as they are: if they are measurements, pass inputs.float()"
    return UserError(f"{name} does not accept {kind}inputs of shape {tuple(inputs.shape[1:])}: {reason}{hint}")


def channels_last(inputs: Tensor) -> str:
    """A hint for images whose channels seem to be their last dimension."""
    shape = inputs.shape[1:]
    seems = len(shape) == 3 and shape[2] in (1, 3, 4) and shape[0] not in (1, 3, 4)
    return "; images are (N, channels, height, width): pass inputs.permute(0, 3, 1, 2)" if seems else ""


class LogitsOnly(nn.Module):
    """A network that returns nothing but its logits."""

    def __init__(self, net: nn.Module, every: bool = False) -> None:
        super().__init__()
        self.net, self.every = net, every
        self.train(net.training)

    def forward(self, inputs: Tensor) -> Tensor:
        return outputs_in(self.net(inputs), self.every)["logits"]
