"""The main job: a subnetwork out of a network. `extract(...)` from Python, `run(config)` from a configuration."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from subnet_search.artifact import Subnetwork
from subnet_search.artifact.subnetwork import INPUTS, save_examples, state_in
from subnet_search.core.errors import UserError, invalid
from subnet_search.data import Data, DataSpec, from_user, load
from subnet_search.evaluation.latency import on_threads
from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.config_file import check
from subnet_search.extraction.provenance import identity_of, origin_of
from subnet_search.extraction.result import subnetworks
from subnet_search.extraction.run_folder import (
    CHECKPOINT,
    check_free,
    claim,
    finished,
    held,
    log_epochs,
    no_trace_of_mistakes,
    save_curve,
    save_run,
    with_metrics,
)
from subnet_search.extraction.run_folder import free_folder as free_folder
from subnet_search.extraction.run_folder import last_folder as last_folder
from subnet_search.extractors import Clock, Extractor, RelevanceLearner, extractor_names, get_extractor
from subnet_search.extractors.base import trains_weights
from subnet_search.nets import NetworkSpec, build, check_batch_norm, check_output, initialise, make_dynamic, own_copy
from subnet_search.structure.units_of_network import units_of
from subnet_search.topology.masks import Masks
from subnet_search.topology.select import NotANumber
from subnet_search.training import Epoch, Recipe, Supernet, train
from subnet_search.training.distributed import one_goes_ahead, rank_and_world


def extract(
    network: nn.Module | NetworkSpec | str | dict[str, Any],
    data: Any,
    extractor: str | Extractor = "gumbel",
    *,
    recipe: Recipe | None = None,
    seed: int = 0,
    init: str | None = None,
    unit: str | None = None,
    target: dict[str, float] | None = None,
    round_to: int | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    **hyperparameters: Any,
) -> Subnetwork:
    """Find a subnetwork of any network, on any classification data.

    network          a torch module (copied, never changed), or a name such as "conv2" or "torchvision:resnet18"
    data             a name, a pair (inputs, labels) of tensors, a Dataset, a DataLoader, or what `load_data` returned
    extractor        a method's name, with its hyperparameters as keyword arguments, or an extractor
    recipe           how to train; what it leaves open takes the method's published settings
    seed             decides every draw: the same arguments give the same subnetwork, bit for bit, on one machine
    init             how weights begin: "signed_constant", "kaiming_normal", ... Default: a module keeps the weights it has
    unit             what is kept or dropped as one: "weight", "channel", "2:4", "block:16"; default: the method's first
    target           the density as a fraction of units, parameters or FLOPs: {"flops": 0.5}
    round_to         channels are kept in multiples of this; default 16, and less in small groups
    out, resume      a run folder for checkpoints, metrics and the result; go on from the checkpoint in it

    Raises UserError (a ValueError) when something asked for cannot be, RunError when the run cannot go on.
    """
    if hyperparameters and not isinstance(extractor, str):
        raise UserError("hyperparameters are part of an extractor that is already made; give its name instead")
    method = {"name": extractor, **hyperparameters} if isinstance(extractor, str) else extractor
    settings: dict[str, Any] = {"extractor": method, "recipe": recipe or Recipe(), "seed": seed}
    settings |= {key: given for key, given in (("unit", unit), ("target", target), ("round_to", round_to)) if given is not None}
    module = network if isinstance(network, nn.Module) else None
    if not isinstance(network, nn.Module):
        spec: Any = network.model_dump(exclude_unset=True) if isinstance(network, NetworkSpec) else network
        spec = {"name": spec} if isinstance(spec, str) else spec
        settings["network"] = {**spec, "init": init} if init else spec
    named = isinstance(data, str | dict | DataSpec)
    if named:
        settings["data"] = data
    config = check(RunConfig, settings)
    return run(config, out, resume=resume, module=module, init=init or "keep", data=None if named else from_user(data))


def run(
    config: RunConfig,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    module: nn.Module | None = None,
    init: str = "keep",
    data: Data | None = None,
    densities: Sequence[float] = (),
    save: bool = True,
    leased: bool = False,
    on_begin: Callable[[Masks], None] | None = None,
    on_step: Callable[[Clock], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Subnetwork:
    """Run a configuration, with the network and data it names or with those handed in.

    With a folder `out`, that holds config.yaml, metrics.jsonl, checkpoint/, and in the end summary.json and
    subnetwork.safetensors (masks.safetensors alone when `save` is false). See `extract` for the rest.
    `densities` gives a subnetwork at each of them too, by the one relevance that was learned: rows in the record under
    `curve`, and in the folder curve.json and subnetwork-DENSITY.safetensors.
    A folder is of one run: of one configuration, network and data, and in one process at a time. `leased`: whoever else has
    the folder has lost it to the caller.
    """
    config = config.resolve()
    folder = Path(out) if out is not None else None
    if not leased:
        check_free(folder)
    handed_in = (module is not None, data is not None and data.spec is None)
    data = data or one_goes_ahead(lambda: load(config.data))
    with on_threads(config.recipe.threads):
        net, spec = make_network(config, module, init, data)
        origin = origin_of(config, spec, init, data)
        if folder and save:
            check_storable(config, origin.init)
        images = getattr(config.extractor, "images", None)  # in a batch to look at gradients
        if config.recipe.epochs or images:
            smallest = min(config.recipe.batch_size, len(data.train), images or len(data.train))
            check_batch_norm(net, data.shape, smallest // rank_and_world()[1])
        units = units_of(
            config.unit,
            net,
            data.shape,
            measure=next(iter(config.target or ["units"])),
            round_to=config.round_to,
            example=data.examples(),
        )
        identity = identity_of(module, net, origin.init, data)  # before anything is moved or trained
        supernet = Supernet(net, config.extractor, config.recipe, config.seed, units)
        learners = at_densities(supernet, densities)
        # Only now: a mistake in what was asked for leaves no folder behind.
        with held(folder, leased):
            run_name = claim(folder, _without(config, handed_in), resume, identity) if folder else None
            if folder and resume and (done := finished(folder, config.weights, learners)):
                return done
            writes = folder if rank_and_world()[0] == 0 else None
            with no_trace_of_mistakes(folder):
                examples = data.examples(EXAMPLES).cpu()
                if writes and save:
                    save_examples(writes / INPUTS, examples)
                outcome = train(
                    supernet,
                    data,
                    config.seed,
                    checkpoint=folder / CHECKPOINT if folder else None,
                    name=run_name,
                    resume=resume,
                    on_begin=on_begin,
                    on_step=on_step,
                    on_epoch=log_epochs(folder, on_epoch),
                    should_stop=should_stop,
                )
            found = subnetworks(supernet, data, outcome, origin, [config.extractor, *learners.values()])
            subnet, *others = (replace(one, examples=examples) for one in found)
            if others:
                subnet = with_metrics(subnet, {"curve": save_curve(dict(zip(learners, others, strict=True)), writes, config)})
            return save_run(subnet, writes, config, save) if writes else subnet


def check_storable(config: RunConfig, init: str) -> None:
    """Raise UserError for a file that is to hold nothing but the seed of its weights, when no seed will make them.

    init   how the weights begin
    """
    if config.weights != "seed":
        return
    method = type(config.extractor)
    if init == "keep":
        raise UserError("the weights of this network were not made from a seed: save them with weights='values'")
    if (config.recipe.epochs and trains_weights(method)) or method.changes_weights:
        how = "trains" if trains_weights(method) else "changes"
        raise UserError(f"{config.extractor.name} {how} weights, so no seed makes them: save them with weights='values'")


EXAMPLES = 8  # inputs of a run that are kept


def at_densities(supernet: Supernet, densities: Sequence[float]) -> dict[float, Extractor]:
    """The supernet's method at each of the densities, which can choose by relevance that it learned at its own.

    Raises UserError, before anything is trained, for a method that cannot, and for a density that it cannot have.
    """
    method = supernet.extractor
    if densities and not _chooses_in_the_end(type(method)):
        able = ", ".join(name for name in extractor_names() if _chooses_in_the_end(get_extractor(name)))
        raise UserError(
            f"{method.name} has no learned relevance to choose other densities by when it ends, so each needs a run of its "
            f"own: subnet-search compare; several densities from one run: {able}"
        )
    found: dict[float, Extractor] = {}
    for density in sorted(set(densities), reverse=True):
        try:
            found[density] = type(method).model_validate({**method.model_dump(), "density": density})
        except ValidationError as error:
            raise invalid(error) from error
        with torch.no_grad():
            try:
                found[density].finish(supernet)  # one that leaves too few weights is found now
            except NotANumber as error:
                raise UserError(f"{method.name}: {error} before training: are the weights finite?") from error
    return found


def _chooses_in_the_end(method: type[Extractor]) -> bool:
    """Whether relevance is what the method has learned when it ends, and a density decides how much of it is kept."""
    return issubclass(method, RelevanceLearner) and "density" in method.model_fields and not method.paradigm.trains_after


def make_network(config: RunConfig, module: nn.Module | None, init: str, data: Data) -> tuple[nn.Module, NetworkSpec | None]:
    """The network that a resolved configuration names, with its first weights; or a copy of a module, and no spec."""
    if torch.is_inference_mode_enabled():
        raise UserError("nothing can be trained in torch.inference_mode(): call this outside of it")
    if module is None:
        state = state_in(Path(config.network.state).expanduser()) if config.network.state else None
        net = build(config.network, data.shape, data.classes, config.seed, state)
        check_output(net, data.shape, data.classes, config.network.name, data.examples())
        return _gated(net, config, data), config.network
    net = own_copy(module)
    check_output(net, data.shape, data.classes, example=data.examples())
    density = getattr(config.extractor, "density", None)
    initialise(net, init, config.seed, density if init == "scaled" else None)
    return _gated(net, config, data), None


def _gated(net: nn.Module, config: RunConfig, data: Data) -> nn.Module:
    return make_dynamic(net, data.shape, config.seed) if config.extractor.dynamic else net


def _without(config: RunConfig, handed_in: tuple[bool, bool]) -> dict[str, Any]:
    """The configuration as plain values, without the network and data that are not to be had from a file."""
    missing = [key for key, given in zip(("network", "data"), handed_in, strict=True) if given]
    return {**config.dump(), **dict.fromkeys(missing)}
