"""A trial before training: what would fail at the first step, or at the second, is said before the run begins."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from subnet_search.core.errors import UserError
from subnet_search.data import Data
from subnet_search.nets import check_logits
from subnet_search.training.supernet import Supernet

TRIES = 2  # a network that carries its graph from one batch to the next fails at the second


def try_out(supernet: Supernet, data: Data) -> None:
    """Pass two of the training inputs forward and backward in training mode; all is put back afterwards.

    data: on the supernet's device. Raises UserError when the network cannot be trained as it is: one that returns more
    than logits, that fails, or whose weights no gradient reaches.
    """
    net, device = supernet.net, supernet.device
    name = type(net).__name__
    inputs, labels = data.examples(), data.train.labels[:2]
    weights = {key: weight.detach().clone().requires_grad_() for key, weight in supernet.weights.items()}
    before = {key: buffer.clone() for key, buffer in net.named_buffers()}
    was_training = net.training
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
            net.train()
            for _ in range(TRIES):
                _pass(net, weights, inputs, labels, data.classes, name)
    finally:
        net.train(was_training)
        with torch.no_grad():
            for key, buffer in net.named_buffers():
                buffer.copy_(before[key])


def _pass(net: nn.Module, weights: dict[str, Tensor], inputs: Tensor, labels: Tensor, classes: int, name: str) -> None:
    logits = _said(name, lambda: functional_call(net, weights, (inputs,)))
    check_logits(logits, classes, name, " in training mode too")
    loss = F.cross_entropy(logits.float(), labels)
    if not loss.requires_grad:
        raise UserError(f"no gradient reaches the weights of {name}: its forward pass detaches them, or switches gradients off")
    _said(name, lambda: torch.autograd.grad(loss, list(weights.values()), allow_unused=True))


def _said(name: str, call: Any) -> Any:
    try:
        return call()
    except (MemoryError, torch.OutOfMemoryError):  # no fault of the network
        raise
    except Exception as error:  # whatever a user's forward pass raises
        reason = str(error).splitlines()[0] if str(error) else ""
        raise UserError(f"{name} cannot be trained on this data: {type(error).__name__}: {reason}") from error
