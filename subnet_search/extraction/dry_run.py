"""What a run would do: its complete configuration, the network's layers, the density in weights, steps and memory.

Everything that a run checks before training is checked. Nothing is trained and nothing is written (data and weights that a
run would download are downloaded).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from subnet_search.core.nested import moved, tensors_in
from subnet_search.data import Batches, Data, Items
from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.run_folder import RunFolder
from subnet_search.extraction.session import RunSession
from subnet_search.extractors import Clock
from subnet_search.nets import left_whole
from subnet_search.topology.select import count
from subnet_search.topology.units import parse
from subnet_search.training import Recipe, Supernet
from subnet_search.training.check_trainable import check_trainable
from subnet_search.training.weight_statistics import first_sample

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
UNITS = {"weight": "prunable weights", "channel": "channels", "n:m": "prunable weights", "block": "blocks"}
MEASURES = {"parameters": "the network's parameters", "flops": "the network's multiply-accumulates"}


def dry_run(config: RunConfig, exports: Sequence[str] = ()) -> dict[str, Any]:
    """A run's plan in plain values: `config`, `layers`, `biases`, `density`, `steps`, `memory`, `data`.

    exports: formats that the result would be exported to. Raises UserError as a run does.
    """
    config = config.resolve()
    session = RunSession(config, RunFolder(None), exports=exports)
    session.check_exports()
    supernet, data = session.supernet, session.data
    recipe = config.recipe
    steps = Batches(data.train, data.mean, data.std, recipe.batch_size, config.seed, recipe.augment).steps_per_epoch
    clock = Clock(0, max(1, steps * recipe.epochs), config.seed)
    if recipe.epochs:
        supernet.check(clock)
        check_trainable(supernet, data.to(supernet.device))
    if recipe.weight_statistics:
        first_sample(recipe, steps)
    layers, biases = layers_of(supernet.net, supernet.weights)
    return {
        "config": config.dump(),
        "layers": layers,
        "biases": biases,
        "density": density_in_words(supernet, config),
        "steps": {"epochs": recipe.epochs, "per_epoch": steps, "total": steps * recipe.epochs},
        "memory": memory_of(supernet, data, recipe, clock),
        "data": f"{len(data.train):,} training and {len(data.val):,} validation items, "
        + ("read item by item" if isinstance(data.train, Items) else "in memory"),
    }


def layers_of(net: nn.Module, prunable: dict[str, Tensor]) -> tuple[list[dict[str, Any]], int]:
    """A row for each weight: name, type of its module, shape, numbers, and whether it is pruned; and the numbers in biases."""
    why, rows, biases = left_whole(net, prunable), [], 0
    for name, parameter in net.named_parameters():
        owner, _, own = name.rpartition(".")
        module = net.get_submodule(owner)
        if name in prunable:
            pruned = "prunable"
        elif name in why:
            pruned = f"left whole: {why[name]}"
        elif isinstance(module, NORMS) and own == "weight":
            pruned = "left whole: normalisation"
        else:
            biases += parameter.numel()
            continue
        shown = owner if own == "weight" and owner else name
        shape = "x".join(map(str, parameter.shape))
        rows.append({"name": shown, "type": type(module).__name__, "shape": shape, "size": parameter.numel(), "pruned": pruned})
    return rows, biases


def density_in_words(supernet: Supernet, config: RunConfig) -> str:
    """What the density asked for means for this network, in one line."""
    density, units = supernet.extractor.target_density, supernet.units
    weights = sum(map(math.prod, units.weights.values()))
    total = sum(math.prod(shape) for shape in units.shapes.values())
    held = "" if total == weights else f" that hold {weights:,} weights"
    kind = UNITS[parse(config.unit)[0]]
    if density is None:
        return f"chosen by {supernet.extractor.name}, of {total:,} {kind}{held}"
    if measure := next((MEASURES[key] for key in config.target or () if key in MEASURES), None):
        return f"{density:g} of {measure}; there are {total:,} {kind}{held}"
    if not units.exact:
        return f"{density:g} of {total:,} {kind}{held}: about {round(density * total):,} are kept"
    kept = count(density, total)
    return f"{density:g} of {total:,} {kind}{held}: {kept:,} are kept, {total - kept:,} pruned"


def memory_of(supernet: Supernet, data: Data, recipe: Recipe, clock: Clock) -> dict[str, Any]:
    """Bytes that training needs at its start. Activations are measured in one forward pass; the others are counted."""
    network = [
        *supernet.net.parameters(),
        *supernet.net.buffers(),
        *(supernet.teacher.parameters() if supernet.teacher else ()),
    ]
    learned = sum(tensor.nbytes for tensor in supernet.learned().values())
    own = (supernet.relevance, supernet.scales, supernet.masks, supernet.gates, supernet.momentum)
    alone = supernet.learns == "relevance" and recipe.relevance_optimizer
    copies = (1 if recipe.momentum else 0) if (alone or recipe.optimizer) == "sgd" else 2
    found = {
        "parameters": sum(tensor.nbytes for tensor in network),
        "gradients": learned,
        "optimizer": copies * learned,
        **({"weight_statistics": 2 * learned} if recipe.weight_statistics else {}),
        "masks": sum(tensor.nbytes for tensors in own for tensor in tensors.values()),
        "activations": activations(supernet, data, recipe, clock) if recipe.epochs else 0,
        "data": data.bytes_in_memory,
    }
    return {**found, "total": sum(found.values()), "batch": min(recipe.batch_size, len(data.train))}


def activations(supernet: Supernet, data: Data, recipe: Recipe, clock: Clock) -> int:
    """Bytes that one training batch keeps for its backward pass, inputs included, measured in a forward pass."""
    batch = moved(data.first(recipe.batch_size), supernet.device)
    fixed = [*supernet.net.parameters(), *supernet.net.buffers(), *supernet.learned().values()]
    inputs = [tensor for _, tensor in tensors_in(batch)]  # may be views of the data in memory
    known = {tensor.untyped_storage().data_ptr() for tensor in (*fixed, *inputs)}
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    supernet.net.train()
    gpus = [supernet.device] if supernet.device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus), torch.enable_grad():
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = supernet.task.loss(supernet.sampled(clock), batch, recipe.label_smoothing)
        del loss
    return sum(tensor.nbytes for tensor in inputs) + sum(storages.values())
