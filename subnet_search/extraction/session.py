"""A run from its checks to its files. All checks come first, before anything is trained or written."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from subnet_search.artifact import Subnetwork
from subnet_search.artifact.input_spec import check_rows
from subnet_search.artifact.subnetwork import state_in
from subnet_search.core.errors import UserError, invalid
from subnet_search.core.nested import map_tensors, moved
from subnet_search.data import Data, in_order, load
from subnet_search.deploy.formats import check_exportable
from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.ensemble import check_stored
from subnet_search.extraction.provenance import identity_of, origin_of
from subnet_search.extraction.refit import check_refit
from subnet_search.extraction.result import subnetworks
from subnet_search.extraction.run_folder import RunFolder
from subnet_search.extraction.teacher import check_distance, teacher_of
from subnet_search.extractors import Clock, Extractor, RelevanceLearner, extractor_names, get_extractor
from subnet_search.extractors.base import trains_weights
from subnet_search.nets import (
    NetworkSpec,
    build,
    check_batch_norm,
    check_types,
    head_of,
    initialise,
    make_dynamic,
    own_copy,
    replace_head,
)
from subnet_search.structure.units_of_network import units_of
from subnet_search.tasks import Classification, Task, UserTask, check_metrics, inputs_sent, without_labels
from subnet_search.topology.masks import Masks
from subnet_search.topology.select import NotANumber
from subnet_search.training import Epoch, Supernet, train
from subnet_search.training.distributed import local_first, rank_and_world
from subnet_search.training.loop import measured

log = logging.getLogger(__name__)
EXAMPLES = 8  # inputs to store, for checking exports
TRIED, FEW = 500, 20  # validation items on which a module is tried; of fewer, accuracy says nothing


class RunSession:
    """The objects of a run: configuration, data, network, units, supernet and run folder.

    config      a resolved configuration
    module      the caller's network; None: the configuration's
    init        initialisation of `module`; new_head: whether its last layer is replaced
    data        the caller's data; None: the configuration's
    densities   also make a subnetwork at each of these from the learned relevance
    teacher     the caller's teacher for `recipe.distill`
    exports     formats that the result will be exported to

    Raises UserError for an invalid run, before anything is trained or written.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        *,
        module: nn.Module | None = None,
        init: str = "keep",
        new_head: bool | str = False,
        data: Data | None = None,
        densities: Sequence[float] = (),
        teacher: nn.Module | None = None,
        exports: Sequence[str] = (),
    ) -> None:
        self.config, self.folder = config, folder
        own_task = isinstance(config.task, UserTask) and not config.task.by_name
        own = {"network": module is not None, "data": data is not None and data.spec is None, "task": own_task}
        self.passed_in = [key for key, given in own.items() if given]  # by the caller: not in the configuration
        self.data = data or local_first(lambda: load(config.data, config.task.kind_of_labels))
        task = config.task.fitted(self.data, "cpu")
        new_head = new_head or config.network.new_head
        if module is not None and new_head:
            module, head = own_copy(module), head_of(module, new_head)
            replace_head(module, head, task.outputs(self.data), config.seed)
        self.module = module
        net, spec = make_network(config, module, init, self.data, task)
        name, outputs = spec.name if spec else type(net).__name__, task.outputs(self.data)
        sent = inputs_sent(net, task, self.data.first(EXAMPLES), name, outputs)
        self.examples = without_labels(net, sent, isinstance(task, UserTask))
        check_rows(self.examples, name)
        check_metrics(net, task, self.data.first())
        example = map_tensors(lambda tensor: tensor[:2], self.examples)
        self.origin = origin_of(config, net, spec, init, self.data, outputs, self.examples)
        teacher = teacher_of(config, net, self.origin.init, teacher)
        check_distance(config, task, net, teacher, example)
        check_stored(config.recipe, type(config.extractor))
        if folder.keeps_subnetwork:
            check_storable(config, self.origin.init)
        images = getattr(config.extractor, "images", None)  # batch size for gradients before training
        if config.recipe.epochs or images:
            smallest = min(config.recipe.batch_size, len(self.data.train), images or len(self.data.train))
            check_batch_norm(net, map_tensors(lambda tensor: tensor[:1], example), smallest // rank_and_world()[1])
        units = units_of(
            config.unit,
            net,
            self.data.shape,
            measure=next(iter(config.target or ["units"])),
            round_to=config.round_to,
            example=example,
            every=self.origin.every_output,
            dense_layers=config.dense_layers,
        )
        check_refit(config, net, self.data, units.weights)
        if self.origin.init == "keep" and not trains_weights(type(config.extractor)) and not config.network.pretrained:
            log.warning(
                "%s trains no weights, and this network keeps its own: if they are untrained, set the initialisation "
                "(init: signed_constant or kaiming_normal)",
                config.extractor.name,
            )
        if module is not None and self.origin.init == "keep" and config.network.trained is None and not new_head:
            _warn_if_trained(net, task, self.data)
        self.identity = identity_of(module, net, self.origin.init, self.data)  # before it is moved to a device or trained
        task = config.task.fitted(self.data, config.recipe.device)
        self.supernet = Supernet(net, config.extractor, config.recipe, config.seed, units, task, teacher)
        self.example = moved(example, self.supernet.device)
        self.learners = at_densities(self.supernet, densities)
        self.exports = tuple(exports)

    def run(
        self,
        resume: bool = False,
        on_unpruned: Callable[[dict[str, Any]], None] | None = None,
        on_begin: Callable[[Masks], None] | None = None,
        on_step: Callable[[Clock], None] | None = None,
        on_epoch: Callable[[Epoch], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Subnetwork:
        """Train and write the result; if the run in the folder is finished, return its result."""
        folder, config = self.folder, self.config
        with folder.locked():
            plain = {**config.dump(), **dict.fromkeys(self.passed_in)}
            name = folder.prepare(plain, resume, self.identity)
            if resume and (done := folder.finished(config.weights, self.learners)):
                return done
            with folder.removed_on_user_error():
                self.check_exports()
                folder.save_examples(self.examples)
                dense = own_copy(self.supernet.net) if self.starts_trained else None
                unpruned = self.unpruned()
                if on_unpruned and unpruned:
                    on_unpruned(unpruned)
                outcome = train(
                    self.supernet,
                    self.data,
                    config.seed,
                    checkpoint=folder.checkpoint,
                    name=name,
                    resume=resume,
                    on_begin=on_begin,
                    on_step=on_step,
                    on_epoch=folder.log_epochs(on_epoch),
                    should_stop=should_stop,
                )
            methods = [config.extractor, *self.learners.values()]
            found = subnetworks(self.supernet, self.data, outcome, self.origin, methods, self.example, dense)
            own = {"examples": self.examples, "module": self.module}
            subnet, *others = (replace(one, metrics={**one.metrics, **unpruned}, **own) for one in found)
            return folder.save(subnet, dict(zip(self.learners, others, strict=True)), config.weights)

    def check_exports(self) -> None:
        """Raise UserError for a format that the result of this run cannot be exported to."""
        density, units = self.supernet.extractor.target_density, self.supernet.units
        for to in self.exports:
            try:
                check_exportable(self.supernet.net, units, density, self.origin, self.examples, to)
            except UserError as error:
                advice = str(error).replace("--to ", "--export ")  # the option of `extract`
                raise UserError(f"the result of this run cannot be exported to {to}: {advice}") from error

    @property
    def starts_trained(self) -> bool:
        """Whether all weights of the network are trained before the run."""
        network = self.config.network
        trained = network.pretrained if self.module is None else bool(network.trained)
        return trained and not network.new_head

    def unpruned(self) -> dict[str, Any]:
        """The leading metric of the network on the validation split before training, if all its weights are trained."""
        net, task = self.supernet.net, self.supernet.task
        if not self.starts_trained:
            return {}
        data = self.data.to(self.supernet.device)
        return {f"unpruned_val_{task.leading}": measured(task, net.eval(), data, data.val)[task.leading]}


@torch.no_grad()
def _warn_if_trained(net: nn.Module, task: Task, data: Data) -> None:
    """Warn when the accuracy of a classifier on some validation items is far above that of always predicting one class.

    That is half of the way from there to 1, or three times as high and above 0.3.
    """
    if not (isinstance(task, Classification) and isinstance(data.val.labels, Tensor)):
        return
    some, was_training = data.val.take(torch.arange(len(data.val)) < TRIED), net.training
    accuracy = task.measure(net.eval(), in_order(some, data.mean, data.std))["accuracy"]
    net.train(was_training)
    assert isinstance(some.labels, Tensor)
    one_class = int(some.labels.bincount().max()) / len(some)
    if len(some) >= FEW and accuracy > min((1 + one_class) / 2, max(0.3, 3 * one_class)):
        log.warning(
            "the network seems to be trained (accuracy %.2f): pass trained=True, or trained=False if it is not", accuracy
        )


def check_storable(config: RunConfig, init: str) -> None:
    """Raise UserError for `weights: seed` if a seed cannot generate the weights. init: the initialisation."""
    if config.weights != "seed":
        return
    method = type(config.extractor)
    if init == "keep":
        raise UserError("the weights of this network were not generated from a seed: save them with weights='values'")
    if (config.recipe.epochs and trains_weights(method)) or method.changes_weights:
        how = "trains" if trains_weights(method) else "changes"
        raise UserError(f"{config.extractor.name} {how} weights, so a seed cannot generate them: use weights='values'")


def check_fractions(densities: Sequence[float]) -> None:
    """Raise UserError for a density above 1, as for one in percent."""
    if above := next((density for density in densities if density > 1), None):
        raise UserError(f"densities are fractions, from 0 to 1: {above:g} % is {above / 100:g}")


def at_densities(supernet: Supernet, densities: Sequence[float]) -> dict[float, Extractor]:
    """The supernet's method at each of the densities, all selected by one learned relevance.

    Raises UserError for a method that does not support this, and for an invalid density.
    """
    method = supernet.extractor
    if densities and not _chooses_in_the_end(type(method)):
        able = ", ".join(name for name in extractor_names() if _chooses_in_the_end(get_extractor(name)))
        raise UserError(
            f"{method.name} cannot give several densities from one run: run each density, for example with subnet-search "
            f"compare, or use one of {able}"
        )
    check_fractions(densities)
    found: dict[float, Extractor] = {}
    for density in sorted(set(densities), reverse=True):
        try:
            found[density] = type(method).model_validate({**method.model_dump(), "density": density})
        except ValidationError as error:
            raise invalid(error) from error
        with torch.no_grad():
            try:
                found[density].finish(supernet)  # raises if too few weights are left
            except NotANumber as error:
                raise UserError(f"{method.name}: {error} before training: are the weights finite?") from error
    return found


def _chooses_in_the_end(method: type[Extractor]) -> bool:
    """Whether the method selects weights by density from learned relevance at the end of the run."""
    return issubclass(method, RelevanceLearner) and method.has_density() and not method.paradigm.trains_after


def make_network(
    config: RunConfig, module: nn.Module | None, init: str, data: Data, task: Task
) -> tuple[nn.Module, NetworkSpec | None]:
    """The initialised network of a resolved configuration and its spec; or a copy of `module` and None."""
    if torch.is_inference_mode_enabled():
        raise UserError("training is not possible inside torch.inference_mode(): call this outside of it")
    outputs = task.outputs(data)
    if module is None:
        state = state_in(Path(config.network.state).expanduser()) if config.network.state else None
        net, spec = build(config.network, data.shape, outputs, config.seed, state), config.network
    else:
        net, spec = own_copy(module), None
    name = spec.name if spec else type(net).__name__
    check_types(net, name, data.first(1))
    net = net if all(parameter.device.type == "cpu" for parameter in net.parameters()) else net.cpu()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # lazy layers draw their weights here
        sent = inputs_sent(net, task, data.first(), name, outputs)
    if module is not None:
        initialise(net, init, config.seed, config.extractor.target_density if init == "scaled" else None)
    if config.extractor.dynamic:
        _add_gates(net, config, sent)
    return net, spec


def _add_gates(net: nn.Module, config: RunConfig, sent: Any) -> None:
    """Add the gates of a dynamic method in place. sent: inputs, as the task passes them.

    Raises UserError for a network that cannot have them, and for settings of the recipe that are not for such networks.
    """
    recipe, method = config.recipe, config.extractor.name
    if recipe.compile:
        raise UserError(f"recipe.compile: a network whose inputs choose their filters is not compiled ({method})")
    if recipe.weight_statistics or recipe.readout:
        raise UserError(f"weight_statistics and readout are not for networks whose inputs choose filters ({method})")
    one = isinstance(sent, Tensor) and sent.is_floating_point()
    make_dynamic(net, tuple(sent.shape[1:]) if one else (), config.seed)
