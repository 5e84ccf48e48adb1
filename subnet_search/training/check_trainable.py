"""Two training passes before a run, so that a network that cannot be trained is reported at once."""

from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from subnet_search.core.errors import UserError
from subnet_search.core.nested import moved
from subnet_search.data import Data
from subnet_search.tasks import Recorded, check_scalar, guarded_loss
from subnet_search.training.supernet import Supernet

PASSES = 2  # a network that keeps its graph from one batch to the next fails at the second


def check_trainable(supernet: Supernet, data: Data) -> None:
    """Run forward and backward passes of two training inputs in training mode; the network's state is restored.

    data: on the supernet's device. Raises UserError when the network does not return logits, when a pass fails, or when no
    gradient reaches the weights.
    """
    net, device = supernet.net, supernet.device
    name = type(net).__name__
    batch = moved(data.first(), device)
    weights = {key: weight.detach().clone().requires_grad_() for key, weight in supernet.weights.items()}
    before = {key: buffer.clone() for key, buffer in net.named_buffers()}
    was_training = net.training
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
            net.train()
            for _ in range(PASSES):
                _pass(supernet, weights, batch, supernet.task.outputs(data), name)
    finally:
        net.train(was_training)
        with torch.no_grad():
            for key, buffer in net.named_buffers():
                buffer.copy_(before[key])


def _pass(supernet: Supernet, weights: dict[str, Tensor], batch: Any, outputs: int | None, name: str) -> None:
    recorded = Recorded(lambda *args, **kwargs: functional_call(supernet.net, weights, args, kwargs))
    try:
        loss = guarded_loss(supernet.task, recorded, batch, name, outputs, " in training mode too")
    except UserError as error:
        if recorded.error is None:
            raise
        raise _not_trainable(name, recorded.error) from error
    check_scalar(loss, supernet.task)
    if not loss.requires_grad:
        raise UserError(f"no gradient reaches the weights of {name}: its forward pass detaches them, or disables gradients")
    try:
        torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # anything that a user's network raises
        raise _not_trainable(name, error) from error


def _not_trainable(name: str, error: Exception) -> UserError:
    reason = str(error).splitlines()[0] if str(error) else ""
    return UserError(f"{name} cannot be trained on this data: {type(error).__name__}: {reason}")
