"""Batch norm in training divides by a standard deviation over the batch: that of a single value is none."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from subnet_search.core.errors import UserError


@torch.no_grad()
def check_batch_norm(net: nn.Module, shape: tuple[int, ...], batch_size: int) -> None:
    """Raise UserError when a batch norm layer would see one value a channel in a training batch of this size.

    shape: of one input. Layers that are not in training mode when the network is, as a network of one's own may have
    it, take any batch. Nothing is computed for batches of two items or more.
    """
    if batch_size > 1:
        return
    was_training = net.training
    net.train()
    layers = {name: module for name, module in net.named_modules() if isinstance(module, _BatchNorm) and module.training}
    single: list[str] = []

    def look(name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(inputs[0], Tensor) and inputs[0].dim() > 1 and inputs[0].numel() == inputs[0].shape[1]:
            single.append(name)

    hooks = [layer.register_forward_pre_hook(partial(look, name)) for name, layer in layers.items()]
    try:
        device = next((parameter.device for parameter in net.parameters()), None)
        net.eval()(torch.zeros(1, *shape, device=device))
    finally:
        for hook in hooks:
            hook.remove()
        net.train(was_training)
    if single:
        raise UserError(
            f"a training batch of one item gives batch norm ({single[0]}) one value a channel, and it needs two or more: set a "
            "larger recipe.batch_size (or extractor.images), or use more training data or fewer processes"
        )
