"""Dynamical isometry: the mean singular value of a network's input-output Jacobian.

Saxe, McClelland & Ganguli 2014, arXiv:1312.6120: a network trains well when the singular values of its Jacobian are near 1.
Wang, Qin, Bai & Fu 2021, arXiv:2105.05916: pruning a trained network makes them small, and their mean measures by how much.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from subnet_search.core.errors import RunError, UserError
from subnet_search.core.nested import map_tensors, rows_of, shapes_in, tensors_in
from subnet_search.nets import call, own_copy
from subnet_search.nets.outputs import compared

INPUTS = 128  # that the mean is over
BATCH = 32  # of inputs whose Jacobians are in memory together
MOST_OUTPUTS = 4096  # for each input: each costs a backward pass


def mean_singular_value(net: nn.Module, inputs: Iterable[Any], *, double: bool = False) -> float:
    """The mean over inputs x and singular values s of J(x) = df(x)/dx, for a network f in evaluation mode.

    inputs   batches of inputs, as passed to the network
    double   compute in float64, on a copy of the network

    Raises UserError as `jacobians` does, RunError when a Jacobian is not finite.
    """
    if double:
        net, inputs = own_copy(net).double(), (map_tensors(_double, batch) for batch in inputs)
    values = [singular_values(net, batch).flatten() for batch in inputs]
    return torch.cat(values).double().mean().item()


def singular_values(net: nn.Module, inputs: Any) -> Tensor:
    """The singular values of each input's Jacobian, the largest first: (inputs, min(outputs, numbers of an input))."""
    count = len(_floats(inputs)[0])
    found = []
    for start in range(0, count, BATCH):
        jacobian = jacobians(net, rows_of(inputs, start, start + BATCH))
        if not bool(jacobian.isfinite().all()):
            raise RunError("the Jacobian of this network is not finite")
        found.append(torch.linalg.svdvals(jacobian))
    return torch.cat(found)


def jacobians(net: nn.Module, inputs: Any) -> Tensor:
    """The derivative of each input's outputs with respect to it: (inputs, outputs, numbers of an input).

    Exact: one backward pass for each output, for all inputs together, which evaluation mode keeps independent. Outputs are
    the logits, or all float tensors of other outputs; several float tensors of an input are joined.
    inputs: a tensor (N, ...), or several in a tuple, list or mapping; N first in each.
    Raises UserError for inputs without a float tensor, and for outputs that do not depend on them or are too many.
    """
    leaves = map_tensors(lambda tensor: tensor.detach().requires_grad_(tensor.is_floating_point()), inputs)
    floats, was_training = _floats(leaves), net.training
    try:
        return _jacobians(net.eval(), leaves, floats)
    finally:
        net.train(was_training)


def _jacobians(net: nn.Module, inputs: Any, floats: list[Tensor]) -> Tensor:
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):  # its recurrent layers need training mode
        outputs = torch.cat([_rows(tensor, len(floats[0])) for tensor in compared(call(net, inputs))], 1)
        if outputs.shape[1] > MOST_OUTPUTS:
            raise UserError(f"isometry: {outputs.shape[1]:,} outputs for each input are more than {MOST_OUTPUTS:,}")
        if not outputs.requires_grad:
            raise UserError("isometry: the outputs of this network have no gradient with respect to its inputs")
        try:
            rows = [_gradient(total, floats) for total in outputs.sum(0)]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # of sparse layers
            reason = str(error).splitlines()[0]
            raise UserError(f"isometry: this network cannot be differentiated by its inputs: {reason}") from error
    return torch.stack(rows, 1)


def _gradient(total: Tensor, floats: list[Tensor]) -> Tensor:
    slopes = torch.autograd.grad(total, floats, retain_graph=True, materialize_grads=True)
    return torch.cat([slope.flatten(1) for slope in slopes], 1)


def check_floats(inputs: Any) -> None:
    """Raise UserError for inputs without a float tensor."""
    _floats(inputs)


def _floats(inputs: Any) -> list[Tensor]:
    found = [tensor for _, tensor in tensors_in(inputs) if tensor.is_floating_point() and tensor.dim()]
    if not found:
        raise UserError(f"isometry needs float inputs to differentiate by, and these are {shapes_in(inputs)}")
    return found


def _rows(tensor: Tensor, count: int) -> Tensor:
    if not tensor.dim() or len(tensor) != count:
        raise UserError(
            f"isometry: outputs have shape {tuple(tensor.shape)}, and the first dimension must be the {count} inputs"
        )
    return tensor.flatten(1) if tensor.dim() > 1 else tensor[:, None]


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
