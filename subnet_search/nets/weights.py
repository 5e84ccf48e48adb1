"""What counts in a network: the weights that may be pruned, and those that are left whole, with the reason.

Counted is every parameter with two or more dimensions, but for normalisation. Weights of layers may be pruned, recurrent
ones too (`weight_ih_l0`); embeddings, what is frozen (`requires_grad=False`), and parameters of a module's own, such as
position embeddings, are left whole.
"""

from collections.abc import Iterable, Iterator

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from subnet_search.core.errors import UserError
from subnet_search.nets.dynamic import Gate

EMBEDDING = "an embedding"
FROZEN = "frozen, requires_grad=False"
OWN = "a parameter of a module's own, no layer's weight"
_UNCOUNTED = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, Gate)


def prunable(net: nn.Module) -> dict[str, nn.Parameter]:
    """The weight tensors that may be pruned: those of layers, with two or more dimensions, without what is frozen.

    That goes by torch's own names: they end in `weight` (`conv1.weight`, `attention.in_proj_weight`), or are those of a
    recurrent layer. Where all of them are frozen, all are returned: relevance can be learned on them. Raises UserError when
    there is none, or when two names share one tensor.
    """
    weights = {name: parameter for name, parameter, why in _counted(net) if why is None}
    found = {name: parameter for name, parameter in weights.items() if parameter.requires_grad} or weights
    if not found:
        raise UserError(
            f"{type(net).__name__} has no prunable weights: none of its parameters "
            "has two or more dimensions and a name that ends in 'weight', embeddings left out"
        )
    shared = set(found.values())
    for name, parameter in net.named_parameters(remove_duplicate=False):
        if name not in found and parameter in shared:
            raise UserError(f"{type(net).__name__} shares one weight tensor under two names, {name!r} among them")
    return found


def left_whole(net: nn.Module, pruned: Iterable[str]) -> dict[str, str]:
    """Why each parameter that counts is not among those that are pruned, by its name."""
    pruned = set(pruned)
    return {name: why or FROZEN for name, _, why in _counted(net) if name not in pruned}


def _counted(net: nn.Module) -> Iterator[tuple[str, nn.Parameter, str | None]]:
    """Every parameter that counts, by its first name, and why it is left whole; None: it may be pruned."""
    owned = [(module, parameter) for module in net.modules() for parameter in module.parameters(recurse=False)]
    uncounted = {parameter for module, parameter in owned if isinstance(module, _UNCOUNTED)}
    embeddings = {parameter for module, parameter in owned if isinstance(module, nn.Embedding | nn.EmbeddingBag)}
    recurrent = {parameter for module, parameter in owned if isinstance(module, nn.RNNBase | nn.RNNCellBase)}
    for name, parameter in net.named_parameters():
        if parameter in uncounted:
            continue
        if parameter in embeddings:
            yield name, parameter, EMBEDDING
        elif parameter.dim() >= 2 and (name.endswith("weight") or parameter in recurrent):
            yield name, parameter, None
        elif sum(length > 1 for length in parameter.shape) >= 2:
            yield name, parameter, OWN
