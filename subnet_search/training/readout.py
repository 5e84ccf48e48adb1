"""The readout: the last layer of a network, solved in closed form by ridge regression on the features that it reads.

With features x and targets y of n training items, W and b minimise 1/n sum |W x + b - y|^2 + penalty |W|^2. Targets of classes
are one-hot minus 1 / classes, as usual for networks with random features (Huang, Zhu & Siew 2006, "Extreme learning machine:
theory and applications"; Rahimi & Recht 2008, "Weighted sums of random kitchen sinks"). One pass over the data sums the normal
equations in float64, in memory of the order of features^2. Of a pruned layer only the kept weights are solved for.

`forward_ridge` first solves the linear layers before it in the same way, in the order of the forward pass, each with a pass of
its own: the targets of a hidden layer with inputs a are sign(a Q) + sign(y U), with Q and U normal (O'Shea et al. 2025,
"Closed-form feedback-free learning with forward projection", arXiv:2501.16476; y is centred here).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subnet_search.core.errors import RunError, UserError, unknown
from subnet_search.nets import call, logits_of
from subnet_search.tasks import Classification, Regression, Task

Readout: TypeAlias = Literal["ridge", "forward_ridge"]
PENALTIES = tuple(10.0**power for power in range(-8, 2))  # tried, times the mean variance of the features
TRIED = 16  # outputs of a pruned layer that the penalty is chosen by, since each is solved by itself
HELD_OUT = 10  # one of so many training items is held out to choose the penalty


class NormalEquations:
    """Sums over items for a ridge regression of targets on features, float64."""

    def __init__(self, features: int, targets: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self.xx = torch.zeros(features, features, dtype=torch.float64, device=device)
        self.xy = torch.zeros(features, targets, dtype=torch.float64, device=device)
        self.x = torch.zeros(features, dtype=torch.float64, device=device)
        self.y = torch.zeros(targets, dtype=torch.float64, device=device)
        self.yy = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, features: Tensor, targets: Tensor) -> None:
        """Add the items of a batch. features: (N, features). targets: (N, targets)."""
        x, y = features.double(), targets.double()
        self.count += len(x)
        self.xx.addmm_(x.T, x)
        self.xy.addmm_(x.T, y)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.yy += y.square().sum()

    def __add__(self, other: "NormalEquations") -> Self:
        """The sums over the items of both."""
        found = type(self)(len(self.x), len(self.y), self.x.device)
        for name in vars(self):
            setattr(found, name, getattr(self, name) + getattr(other, name))
        return found

    @property
    def variance(self) -> float:
        """The mean variance of the features; 1 if all are constant."""
        return float((self.xx.diagonal() / self.count - (self.x / self.count).square()).mean().clamp(min=0)) or 1.0

    def solve(self, penalty: float, mask: Tensor | None = None, bias: bool = True) -> tuple[Tensor, Tensor]:
        """Weights (targets, features), 0 outside of `mask`, and the bias (targets,): not penalised, and 0 with bias=False.

        Raises RunError when the penalty is too small for float64.
        """
        n, x, y = self.count, self.x / self.count, self.y / self.count
        if not bias:
            x, y = torch.zeros_like(x), torch.zeros_like(y)
        left = self.xx / n - x[:, None] * x
        left.diagonal().add_(penalty)
        right = self.xy / n - x[:, None] * y
        weight = torch.zeros_like(right)  # (features, targets)
        if mask is None or bool(mask.all()):
            weight = _solved(left, right, penalty)
        else:
            for column, kept in enumerate(mask):
                index = kept.nonzero().view(-1)
                weight[index, column] = _solved(left[index][:, index], right[index, column : column + 1], penalty).view(-1)
        return weight.T.contiguous(), y - x @ weight

    def error(self, weight: Tensor, bias: Tensor) -> float:
        """The mean over items of |W x + b - y|^2."""
        whole = (weight @ self.xx * weight).sum() - 2 * (weight.T * self.xy).sum() + self.yy
        whole += 2 * bias @ (weight @ self.x - self.y) + self.count * bias.square().sum()
        return float(whole) / self.count


def _solved(left: Tensor, right: Tensor, penalty: float) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(left)
    if int(failed):
        raise RunError(f"readout_penalty {penalty:g} is too small, since features depend on each other: use a larger one")
    return torch.cholesky_solve(right, factor)


@dataclass(frozen=True)
class Solved:
    """A solved layer."""

    layer: str
    weight: Tensor  # (outputs, features) float64, dead weights 0
    bias: Tensor | None  # (outputs,); None: the layer has none
    penalty: float
    chosen: bool  # whether the penalty was chosen on held-out training items
    items: int  # training items

    def plain(self) -> dict[str, Any]:
        """What a record has of it."""
        return {name: getattr(self, name) for name in ("layer", "penalty", "chosen", "items")}


def check_readout(net: nn.Module, task: Task, batch: Any, kind: Readout = "ridge", layer: str | None = None) -> list[str]:
    """The names of the layers that a readout of `net` solves, in the order of the forward pass; the last gives the outputs.

    layer: its name; default: the last linear layer. batch: prepared items. Raises UserError when the task or the network has
    none.
    """
    if not isinstance(task, Classification | Regression):
        raise UserError(f"readout: ridge regression is for the tasks classification and regression, got {task.name}")
    if isinstance(task, Classification) and task.class_weights is not None:
        raise UserError("readout: ridge regression has no class weights: leave task.class_weights out")
    layers = {name: module for name, module in net.named_modules() if isinstance(module, nn.Linear) and name}
    if layer is not None and layer not in layers:
        raise unknown(f"linear layer of {type(net).__name__}", layer, list(layers), "readout_layer")
    if not layers:
        raise UserError(f"readout: {type(net).__name__} has no linear layer")
    last, was_training = layer or list(layers)[-1], net.training
    called: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda module, args, output: called.append(name if args[0].dim() == 2 else "")

    hooks = [module.register_forward_hook(note(name)) for name, module in layers.items()]
    try:
        next(_features(net.eval(), last, task, [batch]))
    finally:
        net.train(was_training)
        for hook in hooks:
            hook.remove()
    before = called[: called.index(last)] if kind == "forward_ridge" else []
    return [*(name for name in before if name and called.count(name) == 1), last]


def solve_readout(
    net: nn.Module,
    task: Task,
    batches: Callable[[], Iterable[Any]],
    layers: Iterable[str],
    *,
    penalty: float | None = None,
    masks: Mapping[str, Tensor] = {},
    seed: int = 0,
    solved: Callable[[], None] = lambda: None,
) -> list[Solved]:
    """Solve layers of `net`, in evaluation mode, on prepared batches of training items, and put the weights into it.

    batches   one pass over the items
    layers    of `check_readout`
    penalty   None: of PENALTIES, the one with the smallest squared error on every tenth item when fitted to the others; then
              all items are used
    masks     bool (outputs, features) by layer: the weights that it keeps
    seed      of the targets of hidden layers
    solved    called after each hidden layer

    Raises UserError for too few items, RunError for a penalty that is too small.
    """
    assert isinstance(task, Classification | Regression)
    *hidden, last = layers
    reads: Any = net.get_submodule(last)
    outputs: int = reads.out_features
    rng, found = torch.Generator().manual_seed(seed), list[Solved]()

    def wanted(features: Tensor, labels: Any) -> Tensor:
        return _targets(task, labels, outputs)

    if hidden:
        center, count = torch.zeros(outputs, dtype=torch.float64), 0
        for _, labels in map(task.split, batches()):
            targets = _targets(task, labels, outputs).cpu()
            center, count = center + targets.sum(0), count + len(targets)
        center /= count
    for name in hidden:
        owner: Any = net.get_submodule(name)
        from_inputs = torch.randn(owner.in_features, owner.out_features, generator=rng, dtype=torch.float64)
        from_labels = torch.randn(outputs, owner.out_features, generator=rng, dtype=torch.float64)

        def projected(features: Tensor, labels: Any, q: Tensor = from_inputs, u: Tensor = from_labels) -> Tensor:
            y = wanted(features, labels) - center.to(features.device)
            return (features.double() @ q.to(y.device)).sign() + (y @ u.to(y.device)).sign()

        found.append(_solve(net, task, batches(), name, projected, penalty, masks.get(name), last=False))
        solved()
    return [*found, _solve(net, task, batches(), last, wanted, penalty, masks.get(last))]


def _solve(
    net: nn.Module,
    task: Task,
    batches: Iterable[Any],
    layer: str,
    targets: Callable[[Tensor, Any], Tensor],
    penalty: float | None,
    mask: Tensor | None,
    last: bool = True,
) -> Solved:
    """Solve one layer for `targets` of its inputs and the labels."""
    owner: Any = net.get_submodule(layer)
    device, bias = owner.weight.device, owner.bias is not None
    fit, held = (NormalEquations(owner.in_features, owner.out_features, device) for _ in range(2))
    mask = None if mask is None or bool(mask.all()) else mask.to(device)
    for features, labels in _features(net, layer, task, batches, last):
        out = (fit.count + held.count + torch.arange(len(features), device=device)) % HELD_OUT == HELD_OUT - 1
        wanted = targets(features, labels)
        for sums, chosen in ((fit, ~out), (held, out)):
            sums.add(features[chosen], wanted[chosen])
    whole, given = fit + held, penalty is not None
    if penalty is None:
        if not held.count:
            raise UserError(f"readout: {whole.count} training items are too few to choose the penalty: set readout_penalty")
        some = mask if mask is None else mask & (torch.arange(len(mask), device=device) % -(-len(mask) // TRIED) == 0)[:, None]
        tried = [one * fit.variance for one in PENALTIES]
        penalty = min(tried, key=lambda one: held.error(*fit.solve(one, some, bias)))  # rows without weights are equal in all
    weight, offset = whole.solve(penalty, mask, bias)
    with torch.no_grad():
        owner.weight.copy_(weight)
        if bias:
            owner.bias.copy_(offset)
    return Solved(layer, weight, offset if bias else None, penalty, not given, whole.count)


@torch.no_grad()
def _features(
    net: nn.Module, layer: str, task: Task, batches: Iterable[Any], last: bool = True
) -> Iterator[tuple[Tensor, Any]]:
    """What the layer reads, (N, features), and the labels of each batch.

    last: raise UserError when the output of the network is not that of the layer.
    """
    assert isinstance(task, Classification | Regression)
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        seen.append((args[0], output))

    hook = net.get_submodule(layer).register_forward_hook(keep)
    try:
        for inputs, labels in map(task.split, batches):
            seen.clear()
            output = logits_of(call(net, inputs))
            alone = len(seen) == 1 and seen[0][0].dim() == 2 and isinstance(output, Tensor)
            if last and not (alone and torch.equal(output.reshape(-1), seen[0][1].reshape(-1))):
                raise UserError(
                    f"readout: the outputs of {type(net).__name__} are not those of its linear layer {layer} for one vector an "
                    "item: name the layer that computes them, readout_layer"
                )
            yield seen[0][0], labels
    finally:
        hook.remove()


def _targets(task: Task, labels: Tensor, outputs: int) -> Tensor:
    """The targets (N, outputs), float64."""
    if isinstance(task, Classification):
        return F.one_hot(labels, outputs).double() - 1 / outputs
    return labels.double().view(len(labels), -1)
