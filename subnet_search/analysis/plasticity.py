"""Pruning plasticity: how well a network recovers when it is pruned during training.

Liu et al. 2021, "Sparse Training via Boosting Pruning Plasticity with Neuroregeneration", arXiv:2106.10404, section 3.
One dense run is pruned at several points and rates, over all layers by |w|, and each pruned network is trained for some more
epochs. With regeneration every layer also drops a fraction of its weights and grows as many where |gradient| is largest, in
the same step and at the same density (zero-cost neuroregeneration). Accuracy, or the leading metric of another task, is
measured on the validation split.

A branch resumes the dense run's checkpoint with an extractor that makes one change at that step, so its batches and learning
rates are those of the dense run. Weights that are pruned and grown in the same change start at zero and keep their momentum.
"""

import copy
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from subnet_search.core.errors import Interrupted, UserError, shown
from subnet_search.core.tensor_files import load_tensors, write_atomically
from subnet_search.data import Batches, Data, load
from subnet_search.evaluation.latency import on_threads
from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.passed import read_run
from subnet_search.extraction.provenance import identity_of
from subnet_search.extraction.run_folder import RunFolder, free_folder
from subnet_search.extraction.session import make_network
from subnet_search.extractors import Clock, Extractor, Paper, Paradigm
from subnet_search.extractors.author import Change, Network
from subnet_search.nets import prunable
from subnet_search.tasks import Classification, UserTask
from subnet_search.topology.regrow import regrow
from subnet_search.topology.scores import magnitude
from subnet_search.topology.select import count, keep_global
from subnet_search.topology.units import Units
from subnet_search.training import Supernet, train
from subnet_search.training.loop import evaluate


class Prune(Extractor):
    """Train all weights; at one step drop the smallest, and optionally regrow some. For this analysis only: not registered."""

    name = "plasticity"
    paper = Paper(
        "Liu, Chen, Chen, Atashgahi, Yin, Kou, Shen, Pechenizkiy, Wang & Mocanu",
        2021,
        "2106.10404",
        "Sparse Training via Boosting Pruning Plasticity with Neuroregeneration",
        "top k of |w| over all layers; then each layer swaps a fraction of |w| for as many by |dL/dw|",
    )
    paradigm = Paradigm("by magnitude, during training", "trained", "in one step", True)

    replaces_step = True  # the gradients must be of the weights before the optimizer's step

    at: int | None = None
    """The step of the change; None: never."""
    density: float = 1.0
    """Fraction of prunable weights kept."""
    regrow: float = 0.0
    """Fraction of each layer's kept weights to drop and regrow."""

    def step(self, net: Network, clock: Clock) -> Change | None:
        if clock.step != self.at:
            return None
        scores = magnitude(net.weights)
        kept = keep_global(scores, count(self.density, net.masks.numel))
        if not self.regrow:
            return Change(kept)
        masks = regrow(kept, scores, magnitude(net.gradients), self.regrow)
        return Change(masks, weights={name: weight * kept[name] for name, weight in net.weights.items()})


@dataclass(frozen=True)
class Branch:
    """One network that is pruned during training."""

    at: float  # when it is pruned, as a fraction of the run
    step: int  # the same in steps
    end: int  # the step at which it is evaluated
    rate: float  # fraction of all weights to prune
    regrow: float  # fraction of each layer's kept weights to regenerate; 0: none
    epochs: int  # from `step` to `end`


@dataclass(frozen=True)
class Plan:
    """The branches to run: all combinations of `at` and `rates`, without and (unless `regrow` is 0) with regeneration."""

    at: tuple[float, ...]  # when to prune, as fractions of the run, 0 to 1
    rates: tuple[float, ...]  # fractions of all weights to prune, between 0 and 1
    epochs: int  # to train after pruning
    regrow: float = 0.5  # fraction of each layer's kept weights to regenerate

    def branches(self, epochs: int, per_epoch: int) -> list[Branch]:
        """The branches of a run of `epochs`. Raises UserError for invalid values, and for branches beyond the run's end."""
        for what, values in (("a point of the run", self.at), ("regrow", (self.regrow,))):
            if bad := [value for value in values if not 0 <= value <= 1]:
                raise UserError(f"{what} is a fraction from 0 to 1, got {bad[0]:g}")
        if bad := [rate for rate in self.rates if not 0 < rate < 1]:
            raise UserError(f"a pruning rate is a fraction between 0 and 1, got {bad[0]:g}")
        if not 1 <= self.epochs <= epochs:
            raise UserError(f"cannot train for {self.epochs} epochs after pruning in a run of {epochs} epochs")
        total, more = epochs * per_epoch, self.epochs * per_epoch
        if late := [at for at in self.at if round(at * total) + more > total]:
            last = math.floor(1000 * (1 - more / total)) / 1000
            raise UserError(
                f"{self.epochs} epochs after {late[0]:g} of the run are beyond its end ({epochs} epochs): "
                f"the last point can be {last:g}"
            )
        points = [(at, round(at * total)) for at in dict.fromkeys(self.at)]
        return [
            Branch(at, step, step + more, rate, swapped, self.epochs)
            for at, step in points
            for rate in dict.fromkeys(self.rates)
            for swapped in dict.fromkeys((0.0, self.regrow))
        ]


def plasticity(
    config: RunConfig | Mapping[str, Any] | str | Path,
    epochs: int,
    *,
    at: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
    rate: Sequence[float] = (0.2, 0.5, 0.8),
    regrow: float = 0.5,
    network: Any = None,
    data: Any = None,
    task: Any = None,
    out: str | Path | None = None,
    on_step: Callable[[int, int], None] | None = None,
    on_branch: Callable[[dict[str, Any]], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[dict[str, Any]]:
    """Measure the accuracy recovered after pruning during training: a record of every branch.

    One dense run is pruned by magnitude at several points and rates, with and without regrowing weights, and each branch is
    trained further.

    config      the run: a YAML file, its values, or a configuration; its extractor and that one's published settings are not
                used, and early stopping is off, since every branch is compared with the dense run at the same step
    epochs      of training after pruning
    at          when to prune, as fractions of the run, 0 to 1
    rate        fractions of all weights to prune, between 0 and 1
    regrow      weights to regrow, as a fraction of each layer's kept weights; 0: no branches with regrowth
    network, data, task
                in place of those of the configuration: names, or objects as for `extract`; a module keeps its weights
    out         folder for config.yaml and plasticity.json; a call that was stopped, or that adds branches to the same
                configuration, continues from these files. Default: runs/plasticity, runs/plasticity-2, ...
    on_step     called with the number of steps done and of all steps
    on_branch   called with every new record
    should_stop when it returns True, the run writes a checkpoint and raises Interrupted

    Records: `at`, `step`, `rate`, `regrow`, `epochs`, `density`; validation accuracies `accuracy_before` pruning,
    `accuracy_pruned` right after it, `accuracy_after` the epochs, `accuracy_won_back` (after - pruned; pruned - after for a
    metric to be minimized), and `accuracy_unpruned` of the dense run at the same step with the `accuracy_difference`
    (after - unpruned). For another task, keys begin with its leading metric in place of accuracy.

    Raises UserError when the run is too short for the plan, and for a folder of another configuration.
    """
    config, passed = read_run(config, network, data, task)
    for what, values in (("at", at), ("rate", rate)):
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise UserError(f"{what} takes a list of numbers, got {shown(values)}")
    plan, module, data = Plan(tuple(at), tuple(rate), epochs, regrow), passed.network, passed.data
    recipe = config.recipe.resolve({}).model_copy(update={"patience": None, "explored": False})
    config = config.model_copy(update={"network": config.network.resolve(1.0), "recipe": recipe})
    given = {"network": module is not None, "data": data is not None and data.spec is None}
    given["task"] = isinstance(config.task, UserTask) and not config.task.by_name
    out = free_folder("plasticity") if out is None else Path(out)
    folder = RunFolder(out)
    folder.check_free()
    data = data or load(config.data, config.task.kind_of_labels)
    with on_threads(recipe.threads):
        init = str(config.network.init)
        net, _ = make_network(config, module, init, data, config.task.fitted(data, "cpu"))
        per_epoch = Batches(data.train, None, None, recipe.batch_size, config.seed).steps_per_epoch
        branches = plan.branches(recipe.epochs, per_epoch)
        keys = ("network", "data", *([] if config.task == Classification() else ["task"]), "recipe", "seed")
        wanted = {k: None if given.get(k) else config.dump()[k] for k in keys}
        identity = identity_of(module, net, init, data)
        with folder.locked():
            name = folder.prepare(wanted, True, identity)
            experiment = _Experiment(config, net, data.to(recipe.device), out, name, on_step, should_stop)
            return experiment.run(branches, on_branch or (lambda record: None))


class _Experiment:
    """The dense run and its branches in a folder, with the results so far."""

    def __init__(
        self,
        config: RunConfig,
        net: nn.Module,
        data: Data,
        folder: Path,
        name: str | None,
        on_step: Callable[[int, int], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        self.config, self.net, self.data, self.folder = config, net, data, folder
        self.name, self.on_step, self.should_stop = name, on_step, should_stop
        self.done, self.to_do = 0, 0  # steps of this call
        results = _load_results(folder / "plasticity.json")
        self.unpruned: dict[int, float] = {int(step): quality for step, quality in results["unpruned"].items()}
        self.records: list[dict[str, Any]] = results["branches"]

    def run(self, branches: list[Branch], on_branch: Callable[[dict[str, Any]], None]) -> list[dict[str, Any]]:
        missing = [branch for branch in branches if self._record(branch) is None]
        self.to_do = sum(branch.end - branch.step for branch in missing)
        self._train_dense(missing)
        for branch in missing:
            self.records.append(self._train_branch(branch))
            self._write()
            on_branch(self.records[-1])
        shutil.rmtree(self.folder / "checkpoint", ignore_errors=True)
        return [record for branch in branches if (record := self._record(branch))]

    def _train_dense(self, branches: list[Branch]) -> None:
        """Train the dense run; record its quality where branches start and end, and keep checkpoints where they start."""
        points = {branch.step for branch in branches if branch.step and not self._file(branch.step).is_file()}
        stops = points | {step for branch in branches for step in (branch.step, branch.end) if step not in self.unpruned}
        path, supernet = self._file("dense"), self._supernet(Prune())
        done = load_tensors(path, "checkpoint")[1]["progress"]["step"] if path.is_file() else 0
        if any(0 < stop <= done for stop in stops):  # the checkpoint is after a needed step: start again
            path.unlink()
            done = 0
        self.to_do += max(stops, default=done) - done
        for stop in sorted(stops):
            if stop:
                self._train(supernet, path, stop)
            self.unpruned[stop] = self._quality(supernet)
            if stop in points:
                _copy(path, self._file(stop))
            self._write()

    def _train_branch(self, branch: Branch) -> dict[str, Any]:
        path = self._file("branch")
        path.unlink(missing_ok=True)
        if branch.step:
            _copy(self._file(branch.step), path)
        prune = Prune(at=branch.step, density=round(1 - branch.rate, 12), regrow=branch.regrow)
        supernet = self._supernet(prune, checkpoint_every=max(1, self.config.recipe.epochs))
        pruned = []

        def measure_pruned(clock: Clock) -> None:
            if clock.step == branch.step:
                pruned.append(self._quality(supernet))

        self._train(supernet, path, branch.end, measure_pruned)
        after, unpruned = self._quality(supernet), self.unpruned[branch.end]
        task = self.config.task
        better = 1.0 if task.directions[task.leading] == "maximize" else -1.0
        found = {
            "before": self.unpruned[branch.step],
            "pruned": pruned[0],
            "after": after,
            "won_back": better * (after - pruned[0]),
            "unpruned": unpruned,
            "difference": after - unpruned,
        }
        named = {f"{task.leading}_{key}": value for key, value in found.items()}
        return {**asdict(branch), "density": supernet.masks.density, **named}

    def _train(
        self, supernet: Supernet, checkpoint: Path, stop: int, after_step: Callable[[Clock], None] | None = None
    ) -> None:
        """Train from the checkpoint to step `stop`. Raises Interrupted when `should_stop` returns True before."""
        reached = 0

        def count_step(clock: Clock) -> None:
            nonlocal reached
            reached, self.done = clock.step + 1, self.done + 1
            if after_step:
                after_step(clock)
            if self.on_step:
                self.on_step(self.done, self.to_do)

        def stopping() -> bool:
            return reached == stop or (self.should_stop is not None and self.should_stop())

        try:
            seed = self.config.seed
            train(
                supernet,
                self.data,
                seed,
                checkpoint=checkpoint,
                name=self.name,
                resume=True,
                on_step=count_step,
                should_stop=stopping,
            )
        except Interrupted:
            if reached != stop:
                raise

    def _supernet(self, extractor: Extractor, **recipe: Any) -> Supernet:
        settings = self.config.recipe.model_copy(update=recipe)
        task = self.config.task.fitted(self.data, settings.device)
        units = Units({name: weight.shape for name, weight in prunable(self.net, self.config.dense_layers).items()})
        return Supernet(copy.deepcopy(self.net), extractor, settings, self.config.seed, units, task)

    def _quality(self, supernet: Supernet) -> float:
        """The task's leading metric on the validation split."""
        return float(evaluate(supernet, self.data, self.data.val)[self.config.task.leading])

    def _record(self, branch: Branch) -> dict[str, Any] | None:
        return next((record for record in self.records if asdict(branch).items() <= record.items()), None)

    def _file(self, name: str | int) -> Path:
        return self.folder / "checkpoint" / (f"{name}.safetensors" if isinstance(name, str) else f"step-{name}.safetensors")

    def _write(self) -> None:
        content = {"unpruned": self.unpruned, "branches": self.records}
        write_atomically(self.folder / "plasticity.json", json.dumps(content, indent=2).encode())


def _load_results(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {"unpruned": {}, "branches": []}
    try:
        results: dict[str, Any] = json.loads(path.read_text())
        return {"unpruned": results["unpruned"], "branches": results["branches"]}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}; remove it to start again") from error


def _copy(source: Path, target: Path) -> None:
    temporary = target.with_suffix(".tmp")
    shutil.copyfile(source, temporary)
    os.replace(temporary, target)
