"""Find a subnetwork: `extract(...)` with Python objects, `run(config)` with a configuration."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from subnet_search.artifact import Subnetwork
from subnet_search.core.errors import UserError, shown, unknown
from subnet_search.data import Data, DataSpec
from subnet_search.data.given import batch_size_of
from subnet_search.evaluation.latency import on_threads
from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.config_file import DEFAULTS, check
from subnet_search.extraction.progress import RunProgress, both
from subnet_search.extraction.run_folder import RunFolder
from subnet_search.extraction.session import RunSession
from subnet_search.extraction.teacher import with_teacher
from subnet_search.extractors import Clock, Extractor, get_extractor, is_extractor
from subnet_search.nets import NetworkSpec
from subnet_search.tasks import load_data
from subnet_search.topology.masks import Masks
from subnet_search.training import Epoch, Recipe
from subnet_search.training.processors import warn_if_busy


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
    task: Any = None,
    teacher: nn.Module | None = None,
    round_to: int | None = None,
    dense_layers: Sequence[str] = (),
    trained: bool | None = None,
    new_head: bool | str = False,
    out: str | Path | None = None,
    resume: bool = False,
    on_epoch: Callable[[Epoch], None] | None = None,
    progress: bool | None = None,
    **hyperparameters: Any,
) -> Subnetwork:
    """Find a subnetwork of a network.

    network          a torch module (copied, never changed), or a name such as "conv2" or "torchvision:resnet18"
    data             a name, a pair (inputs, labels) of tensors, a mapping of tensors, a Dataset, a DataLoader, or the result
                     of `load_data`; or parts of these, (train, val, test) or {"train": ..., "val": ..., "test": ...}
    extractor        name of a method, with its hyperparameters as keyword arguments, or an Extractor object
    recipe           training settings; the default of each is the method's published setting, and that of the batch size
                     a DataLoader's
    seed             seed of all random numbers: the same arguments give a bit-identical subnetwork on one machine
    init             initialisation: "signed_constant", "kaiming_normal", ...; default: keep the weights of a module
    unit             what is pruned together: "weight", "channel", "2:4", "block:16"; default: the method's first unit
    target           the density as a fraction of units, parameters or FLOPs: {"flops": 0.5}
    task             classification (default), multi_label, regression, segmentation or language_modeling;
                     {"name": ..., setting: value}; or an object of your own with the methods loss(network, batch) and
                     metrics(network, batch), see `tasks.UserTask`
    teacher          a trained module that takes the same inputs, whose outputs the network is trained on as well, with the
                     settings of `recipe.distill`
    round_to         keep channels in multiples of this; default: 16, and less for small groups
    dense_layers     layers that are not pruned and that the density does not count, as names or patterns: ["fc", "layer1.*"]
    trained          whether the weights of `network` are trained, which decides when methods prune and at which learning rate;
                     default: with `network.state` or weights of a library, they are
    new_head         replace the last layer of a trained network by one of as many outputs as the data needs: True, or its name
    out              run folder for checkpoints, metrics and the result; default: nothing is written
    resume           continue from the checkpoint in `out`, or start if there is none
    on_epoch         called after each epoch with its metrics; an exception that it raises ends the run
    progress         show progress on standard error: True or False; default: in a terminal or a notebook

    Raises UserError (a ValueError) for invalid arguments, RunError when the run fails.
    """
    if hyperparameters and not isinstance(extractor, str):
        raise UserError("hyperparameters cannot be changed on an Extractor object; pass the method's name instead")
    if isinstance(extractor, str) and is_extractor(extractor):
        known = [*get_extractor(extractor).model_fields, *inspect.signature(extract).parameters]
        for key in hyperparameters:
            if key not in known:
                raise unknown(f"argument of extract with {extractor}", key, set(known) - {"hyperparameters", "extractor"})
    method = {"name": extractor, **hyperparameters} if isinstance(extractor, str) else extractor
    settings: dict[str, Any] = {"extractor": method, "recipe": recipe or Recipe(), "seed": seed}
    options = {"unit": unit, "target": target, "task": task, "round_to": round_to, "dense_layers": list(dense_layers) or None}
    settings |= {key: value for key, value in options.items() if value is not None}
    size = batch_size_of(data)
    if size and "batch_size" not in settings["recipe"].model_fields_set:
        settings["recipe"] = settings["recipe"].model_copy(update={"batch_size": size})
    if not isinstance(network, nn.Module | NetworkSpec | str | Mapping):
        got = f"{shown(network)}: call it" if callable(network) else type(network).__name__
        raise UserError(f"network is a torch.nn.Module or a name, got {got}")
    module = network if isinstance(network, nn.Module) else None
    more: dict[str, Any] = {} if trained is None else {"trained": trained}
    if not isinstance(network, nn.Module):
        spec: Any = network.model_dump(exclude_unset=True) if isinstance(network, NetworkSpec) else network
        spec = {"name": spec} if isinstance(spec, str) else spec
        more |= {**({"init": init} if init else {}), **({"new_head": new_head} if new_head else {})}
        settings["network"] = {**spec, **more}
    elif more:
        settings["network"] = {"name": DEFAULTS["network"], **more}
    named = isinstance(data, str | DataSpec) or (isinstance(data, dict) and "name" in data)
    if named:
        settings["data"] = data
    config = check(RunConfig, settings)
    given = None if named else load_data(data, config.task)
    return run(
        config,
        out,
        resume=resume,
        module=module,
        init=init or "keep",
        new_head=new_head,
        data=given,
        teacher=teacher,
        on_epoch=on_epoch,
        progress=progress,
    )


def run(
    config: RunConfig,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    module: nn.Module | None = None,
    init: str = "keep",
    new_head: bool | str = False,
    data: Data | None = None,
    densities: Sequence[float] = (),
    teacher: nn.Module | None = None,
    exports: Sequence[str] = (),
    save: bool = True,
    leased: bool = False,
    on_unpruned: Callable[[dict[str, Any]], None] | None = None,
    progress: bool | None = None,
    on_begin: Callable[[Masks], None] | None = None,
    on_step: Callable[[Clock], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Subnetwork:
    """Run a configuration, with its network and data or with the given ones.

    module      the network, in place of that of the configuration
    init        initialisation of `module`; new_head: whether its last layer is replaced
    out         run folder: config.yaml, metrics.jsonl, checkpoint/, and at the end summary.json and subnetwork.safetensors.
                A folder belongs to one configuration, network and data, and one process at a time
    densities   also make a subnetwork at each of these from the learned relevance: rows under `curve` in the record, and
                curve.json and subnetwork-DENSITY.safetensors in the folder
    exports     formats that the result will be exported to: raises UserError before training if one cannot be written
    save        False: write masks.safetensors in place of subnetwork.safetensors
    leased      the caller holds a lease on the folder, so continue even if another process has its lock
    on_unpruned called with the metric of a network with trained weights, before it is pruned
    on_begin    called with the initial masks; on_step after each step; on_epoch after each epoch
    should_stop when it returns True, the run writes a checkpoint and raises Interrupted

    Other arguments and errors as for `extract`.
    """
    chosen, config = config.recipe.threads, config.resolve()
    if chosen is None and config.recipe.device == "cpu":
        warn_if_busy(config.recipe.threads or 1)
    config = config if teacher is None else with_teacher(config, teacher)
    folder = RunFolder(Path(out) if out is not None else None, leased, save)
    folder.check_free()
    with on_threads(config.recipe.threads), RunProgress(progress, config.task.leading) as shown:
        session = RunSession(
            config,
            folder,
            module=module,
            init=init,
            new_head=new_head,
            data=data,
            densities=densities,
            teacher=teacher,
            exports=exports,
        )
        before = both(on_unpruned, shown.on_unpruned)
        return session.run(resume, before, on_begin, both(on_step, shown.on_step), both(on_epoch, shown.on_epoch), should_stop)
