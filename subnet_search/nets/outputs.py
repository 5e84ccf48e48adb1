"""The logits in what a network returns."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from subnet_search.core.errors import UserError


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


class LogitsOnly(nn.Module):
    """A network that returns nothing but its logits."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.train(net.training)

    def forward(self, inputs: Tensor) -> Tensor:
        return logits_of(self.net(inputs))  # type: ignore[no-any-return]
