"""A subnetwork with a last layer that is solved in closed form on training data: see `training.readout`."""

from collections.abc import Container, Iterable, Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from subnet_search.artifact import Subnetwork
from subnet_search.core.errors import UserError
from subnet_search.data import Batches, Data, in_order
from subnet_search.extraction.config import RunConfig
from subnet_search.nets import call, never_trained, recompute_statistics
from subnet_search.tasks import LogitsTask, Task
from subnet_search.training.distributed import from_first
from subnet_search.training.readout import Readout, Solved, check_readout, solve_readout


def training_batches(data: Data, batch_size: int, seed: int) -> Iterator[Any]:
    """One epoch of training batches in a seeded order, without augmentation."""
    batches = Batches(data.train, data.mean, data.std, batch_size, seed)
    return map(batches.batch, range(batches.steps_per_epoch))


def with_readout(
    subnet: Subnetwork,
    net: nn.Module,
    data: Data,
    task: Task,
    *,
    kind: Readout = "ridge",
    layer: str | None = None,
    penalty: float | None = None,
) -> tuple[Subnetwork, dict[str, Any]]:
    """The subnetwork with its last layer, or its linear layers, solved on the training items, and a record of that.

    net     the masked network, which is changed; on the device of `data`. Batch norm that no batch has been through gets
            the statistics of the training items first
    kind, layer, penalty   as for `check_readout` and `solve_readout`

    Must be called on every rank; rank 0 solves.
    """
    origin = subnet.origin
    layers = check_readout(net.eval(), task, data.first(), kind, layer)

    assert isinstance(task, LogitsTask)

    def solve() -> tuple[dict[str, Tensor], list[Solved]]:
        untrained = never_trained(net)

        def recompute() -> None:
            if untrained:
                batches = training_batches(data, origin.recipe["batch_size"], origin.seed)
                recompute_statistics(net, lambda: run_over(net, task, batches))

        recompute()
        found = solve_readout(
            net,
            task,
            lambda: in_order(data.train, data.mean, data.std),
            layers,
            penalty=penalty,
            masks={name.removesuffix(".weight"): mask for name, mask in subnet.masks.items()},
            seed=origin.seed,
            solved=recompute,
        )
        return {name: value.cpu() for name, value in net.state_dict().items() if name in subnet.state}, found

    state, found = from_first(solve)
    solved = {f"{one.layer}.weight": one.weight for one in found}
    solved |= {f"{one.layer}.bias": one.bias for one in found if one.bias is not None}
    weights, scales = dict(subnet.weights), {name: one for name, one in subnet.scales.items() if name not in solved}
    for name, value in solved.items():
        values = weights if name in weights else state
        values[name] = value.to(values[name].dtype).cpu()
    refitted = replace(subnet, weights=weights, scales=scales, state=state)
    net.load_state_dict({**net.state_dict(), **refitted.state_dict()})
    return refitted, {"kind": kind, **found[-1].plain(), **({"layers": layers} if len(layers) > 1 else {})}


def run_over(net: nn.Module, task: LogitsTask, batches: Iterable[Any]) -> None:
    """Call the network with all batches."""
    for batch in batches:
        call(net, task.split(batch)[0])


def check_refit(config: RunConfig, net: nn.Module, data: Data, prunable: Container[str]) -> None:
    """Raise UserError when `recipe.readout` cannot be solved for this network, or not be stored as the configuration says."""
    recipe = config.recipe
    if recipe.readout is None:
        return
    for layer in check_readout(net, config.task, data.first(), recipe.readout, recipe.readout_layer):
        if config.weights == "seed" and f"{layer}.weight" in prunable:
            raise UserError(
                f"readout changes {layer}, so a seed cannot generate it: use weights='values', or add {layer} to dense_layers"
            )
