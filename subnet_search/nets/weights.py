"""Which parameters are prunable, and which are counted but not pruned, with the reason.

Counted: every parameter with two or more dimensions, except those of normalisation layers. Prunable: weights of layers,
also recurrent ones (`weight_ih_l0`). Left whole: embeddings, frozen parameters (`requires_grad=False`), parameters that
are not the weight of a layer, such as position embeddings, and the layers of `dense_layers`.
"""

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from subnet_search.core.errors import UserError, unknown
from subnet_search.nets.dynamic import Gate

EMBEDDING = "an embedding"
FROZEN = "frozen, requires_grad=False"
DENSE = "in dense_layers"
OWN = "a parameter that is not a layer's weight"
CONV1D = ("transformers.pytorch_utils", "Conv1D")
_UNCOUNTED = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, Gate)


def prunable(net: nn.Module, dense_layers: Sequence[str] = ()) -> dict[str, nn.Parameter]:
    """The prunable weights by name: trainable weights of layers with two or more dimensions.

    They are found by torch's naming: names that end in `weight` (`conv1.weight`, `attention.in_proj_weight`), and the
    parameters of recurrent layers. If all are frozen, all are returned, since relevance can be learned on frozen weights.
    dense_layers: layers to leave out, as names or patterns of modules or parameters (`fc`, `layer4.*`, `*.downsample`).
    Raises UserError when there is none, when two names share one tensor, and for a pattern that matches no layer.
    """
    dense = matching(net, dense_layers)
    weights = {name: parameter for name, parameter, why in _counted(net) if why is None and name not in dense}
    found = {name: parameter for name, parameter in weights.items() if parameter.requires_grad} or weights
    if not found and dense:
        raise UserError(f"dense_layers leaves no weight of {type(net).__name__} to prune", "dense_layers")
    if not found:
        raise UserError(
            f"{type(net).__name__} has no prunable weights: no parameter (except embeddings) "
            "has two or more dimensions and a name that ends in 'weight'"
        )
    shared = set(found.values())
    for name, parameter in net.named_parameters(remove_duplicate=False):
        if name not in found and parameter in shared:
            raise UserError(f"{type(net).__name__} shares one weight tensor under two names; one of them is {name!r}")
    return found


def left_whole(net: nn.Module, pruned: Iterable[str]) -> dict[str, str]:
    """The counted parameters that are not in `pruned`, by name, with the reason."""
    pruned = set(pruned)
    return {
        name: why or (DENSE if parameter.requires_grad else FROZEN)
        for name, parameter, why in _counted(net)
        if name not in pruned
    }


def inputs_first(net: nn.Module) -> set[str]:
    """The weights that are stored as (inputs, outputs), by name: of the `Conv1D` of transformers, as in GPT-2.

    All others are (outputs, inputs, ...).
    """
    return {f"{path}.weight" if path else "weight" for path, module in net.named_modules() if _is_conv1d(module)}


def _is_conv1d(module: nn.Module) -> bool:
    """Whether a module is a `Conv1D` of transformers, which is a linear layer; the library is not imported for this."""
    return any((kind.__module__, kind.__name__) == CONV1D for kind in type(module).__mro__)


def matching(net: nn.Module, patterns: Sequence[str]) -> set[str]:
    """The names of all parameters that a pattern matches, by their own name or that of a module that contains them.

    Raises UserError for a pattern that matches none.
    """
    found: set[str] = set()
    names = [name for name, _ in net.named_parameters()]
    for pattern in patterns:
        hits = {name for name in names if any(fnmatchcase(part, pattern) for part in _prefixes(name))}
        if not hits:
            layers = {name.rpartition(".")[0] for name, _, why in _counted(net) if why is None}
            raise unknown(f"layer of {type(net).__name__}", pattern, layers, "dense_layers")
        found |= hits
    return found


def _prefixes(name: str) -> list[str]:
    """A dotted name and every name that it begins with: a.b.weight, a.b, a."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts), 0, -1)]


def _counted(net: nn.Module) -> Iterator[tuple[str, nn.Parameter, str | None]]:
    """Every counted parameter: its first name, the parameter, and why it is not pruned (None: prunable)."""
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
