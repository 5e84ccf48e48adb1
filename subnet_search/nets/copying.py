"""Copy a user's network so that the original is never changed."""

import copy
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_leaves

from subnet_search.core.errors import UserError

UNDO = {
    BasePruningMethod: "torch.nn.utils.prune.remove",
    WeightNorm: "torch.nn.utils.remove_weight_norm",
    SpectralNorm: "torch.nn.utils.remove_spectral_norm",
}


def own_copy(net: nn.Module) -> nn.Module:
    """A deep copy of a network. Modules wrapped by `torch.compile` are copied unwrapped.

    Activations stored on modules are copied detached. Raises UserError for modules that cannot be copied, or whose
    parameters cannot be saved by name.
    """
    _check(net)
    return detached_copy(net)


def detached_copy(net: nn.Module) -> nn.Module:
    """As `own_copy`, also of networks whose parameters are computed."""
    memo: dict[int, Any] = {}
    for module in net.modules():
        for value in tree_leaves({name: value for name, value in vars(module).items() if name != "_modules"}):
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return _copied(net, memo)


def _copied(net: nn.Module, memo: dict[int, Any]) -> nn.Module:
    for module in net.modules():
        if isinstance(inner := getattr(module, "_orig_mod", None), nn.Module) and id(module) not in memo:
            memo[id(module)] = _copied(inner, memo)
    try:
        return copy.deepcopy(net, memo)
    except Exception as error:  # anything that a user's attribute raises
        name, kind = _uncopyable(net)
        raise UserError(
            f"cannot copy {type(net).__name__}: its attribute {name} ({kind}) cannot be copied; remove it"
        ) from error


def _uncopyable(net: nn.Module) -> tuple[str, str]:
    """The name and the type of the first attribute that cannot be copied by itself."""
    for path, module in net.named_modules():
        for name, value in vars(module).items():
            if name == "_modules":
                continue
            try:
                copy.deepcopy(value)
            except Exception:
                return f"{path}.{name}" if path else name, type(value).__name__
    return "(unknown)", "unknown"


def _check(net: nn.Module) -> None:
    """Raise UserError for wrapped modules, reparametrised weights and extra state."""
    if not isinstance(net, nn.Module):
        what = f"{net.__name__}(), not its class" if isinstance(net, type) else f"an nn.Module, got {type(net).__name__}"
        raise UserError(f"pass a network: {what}")
    for path, module in net.named_modules():
        name = path.replace("_orig_mod.", "") or type(net).__name__
        if isinstance(module, nn.DataParallel | DistributedDataParallel):
            raise UserError(f"cannot prune nn.{type(module).__name__}; pass its .module (several GPUs: torchrun)")
        for hook in module._forward_pre_hooks.values():
            for kind, undo in UNDO.items():
                if isinstance(hook, kind):
                    raise UserError(
                        f"a weight of {name} is computed from other tensors ({type(hook).__name__}): make it a plain "
                        f"parameter with {undo}(module, {getattr(hook, '_tensor_name', None) or getattr(hook, 'name', '')!r})"
                    )
        if is_parametrized(module):
            tensor = next(iter(module.parametrizations))
            raise UserError(
                f"{tensor} of {name} is computed from other tensors: make it a plain parameter with "
                f"torch.nn.utils.parametrize.remove_parametrizations(module, {tensor!r})"
            )
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise UserError(
                f"{name} has extra state (get_extra_state), which is not supported: store it in buffers (register_buffer)"
            )
