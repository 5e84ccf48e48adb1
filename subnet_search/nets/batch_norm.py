"""Batch norm needs more than one value a channel in a training batch."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from subnet_search.core.errors import UserError
from subnet_search.core.nested import moved
from subnet_search.nets.outputs import call


@torch.no_grad()
def check_batch_norm(net: nn.Module, inputs: Any, batch_size: int) -> None:
    """Raise UserError when a batch norm layer would see one value a channel in a training batch of this size.

    inputs: of one item, as `call` passes them.
    Layers that stay in evaluation mode after `net.train()` accept any batch. Returns at once for
    batches of two items or more.
    """
    if batch_size > 1:
        return
    was_training = net.training
    net.train()
    layers = {name: module for name, module in net.named_modules() if isinstance(module, _BatchNorm) and module.training}
    single: list[str] = []

    def check_input(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor) and args[0].dim() > 1 and args[0].numel() == args[0].shape[1]:
            single.append(name)

    hooks = [layer.register_forward_pre_hook(partial(check_input, name)) for name, layer in layers.items()]
    try:
        device = next((parameter.device for parameter in net.parameters()), torch.device("cpu"))
        call(net.eval(), moved(inputs, device))
    finally:
        for hook in hooks:
            hook.remove()
        net.train(was_training)
    if single:
        raise UserError(
            f"batch norm ({single[0]}) needs two or more values a channel, and a training batch of one item gives one: set a "
            "larger recipe.batch_size (or extractor.images), or use more training data or fewer processes"
        )


def has_batch_norm(net: nn.Module) -> bool:
    """Whether the network has batch norm with running statistics."""
    return bool(_with_statistics(net))


def never_trained(net: nn.Module) -> bool:
    """Whether a batch norm layer has running statistics that no batch has changed."""
    return any(int(layer.num_batches_tracked) == 0 for layer in _with_statistics(net) if layer.num_batches_tracked is not None)


@torch.no_grad()
def recompute_statistics(net: nn.Module, passes: Callable[[], None]) -> None:
    """Replace the running statistics of batch norm by their means over the batches of `passes`, which calls the network.

    All other layers are in evaluation mode, in which the network is left. Without batch norm, `passes` is not called. Source:
    Maddox et al. 2019, arXiv:1902.02476, section 3.2 (there for weights that were drawn).
    """
    layers = _with_statistics(net.eval())
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the mean over all batches
            layer.train()
        if layers:
            passes()
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        net.eval()


def _with_statistics(net: nn.Module) -> list[_BatchNorm]:
    return [module for module in net.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
