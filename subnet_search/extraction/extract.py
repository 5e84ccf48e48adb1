"""The main job: a subnetwork out of a network. `extract(...)` from Python, `run(config)` from a configuration."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from subnet_search.artifact import Subnetwork
from subnet_search.core.errors import UserError
from subnet_search.data import Data, DataSpec, from_user
from subnet_search.evaluation.latency import on_threads
from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.config_file import check
from subnet_search.extraction.run_folder import RunFolder
from subnet_search.extraction.session import RunSession
from subnet_search.extractors import Clock, Extractor
from subnet_search.nets import NetworkSpec
from subnet_search.topology.masks import Masks
from subnet_search.training import Epoch, Recipe


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
    folder = RunFolder(Path(out) if out is not None else None, leased, save)
    folder.check_free()
    with on_threads(config.recipe.threads):
        session = RunSession(config, folder, module=module, init=init, data=data, densities=densities)
        return session.run(resume, on_begin, on_step, on_epoch, should_stop)
