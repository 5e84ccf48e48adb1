"""What must hold of every training of a method, tried on runs of a fraction of a second."""

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from subnet_search.artifact import Subnetwork
from subnet_search.core.errors import Interrupted, UserError
from subnet_search.core.search_domains import domains
from subnet_search.core.tensor_files import load_tensors
from subnet_search.data import Data, in_order
from subnet_search.extractors import Clock, create
from subnet_search.extractors.base import Change, trains_weights
from subnet_search.nets import prunable
from subnet_search.structure.units_of_network import units_of
from subnet_search.tasks import Classification
from subnet_search.testing.method import Failed, Method, conv_and_pictures, topology
from subnet_search.testing.toys import accuracy, planted, points
from subnet_search.topology.masks import Masks
from subnet_search.topology.select import count
from subnet_search.training import Epoch, Recipe, Supernet, train


def meets_its_density(method: Method) -> None:
    """Keeps exactly the density that it is asked for."""
    units = units_of(method.unit, method.network(), (10,), round_to=1)
    for density in method.with_density(0.05, 0.1, 0.37, 0.5, 1.0):
        subnet = method.train(method.config(density=density))
        found = topology(units, subnet)
        wanted, cost = count(density, found.numel), units.cost(found)
        if found.kept != wanted if units.exact else abs(cost - density) > units.coarseness / 2 + 1e-9:
            raise Failed(
                f"asked for {density:g} it keeps {cost:.4g} of the units ({found.kept} of {found.numel}): choose with "
                "net.units.keep(scores, self.density), also at the last change"
            )


def is_decided_by_the_seed(method: Method) -> None:
    """Gives the same bits with the same seed, and others with another seed."""
    found: list[str] = []
    for seed in (1, 1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(len(found))  # which must not matter
            found.append(method.train(method.config(seed=seed)).sha256)
    first, again, other = found
    if first != again:
        raise Failed(
            "two runs with the same seed differ: take random numbers from clock.uniform or clock.generator, keep no state in "
            "the class or module"
        )
    if first == other:
        raise Failed("runs with two different seeds are the same: something besides the clock decides the order of images")


def leaves_test_data_alone(method: Method) -> None:
    """Reads test data once, after training, and is measured with the subnetwork that it gives."""
    opened: list[int] = []
    seen: list[int] = []
    given = points(400)

    def test() -> Any:
        opened.append(1)
        return given.val

    def on_epoch(epoch: Epoch) -> None:
        seen.append(len(opened))

    watched = Data(given.name, given.train, given.val, given.classes, _test=test)
    net = method.network()
    subnet = method.train(method.config(), module=net, data=watched, on_epoch=on_epoch)
    if seen != [0, 0] or len(opened) != 1:
        raise Failed(f"test data were read {len(opened)} times, {seen[-1]} of them while it trained: use the probe's data only")
    measured = accuracy(subnet.on(net), given.val)
    for split in ("val", "test"):
        if abs((said := subnet.metrics[f"{split}_accuracy"]) - measured) > 1e-6:
            raise Failed(
                f"the {split} accuracy is {said:.4g}, and that of the subnetwork {measured:.4g}: finish must give the topology "
                "that was evaluated, without chance"
            )


def keeps_dead_weights_at_zero(method: Method) -> None:
    """Keeps dead weights and their optimizer state at zero, and moves no weights while relevance alone is learned."""
    for optimizer in ("sgd", "adam", "adamw"):
        recipe = Recipe(epochs=2, batch_size=32, optimizer=optimizer, lr=0.05, weight_decay=1e-2, threads=1, device="cpu")
        net = method.begun(method.network(), points(400))
        units = units_of(method.unit, net, (10,), round_to=1)
        supernet = _Watched(net, create(method.name), recipe.resolve({}), 0, units)
        handle = register_optimizer_step_pre_hook(supernet.check_state)
        try:
            train(supernet, points(400), 0, on_step=supernet.check_weights)
        finally:
            handle.remove()


class _Watched(Supernet):
    """A supernet that is looked at in every step."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.before = {name: weight.detach().clone() for name, weight in self.weights.items()}

    def apply(self, change: Change) -> None:
        self.before.update(change.weights or {})  # a change may hand in new weights
        super().apply(change)

    def check_state(self, optimizer: Optimizer, *_: object) -> None:
        """Before each of the optimizer's steps: its state, as the last change left it."""
        for name, weight in self.weights.items() if self.learns == "weights" else ():
            for key, value in optimizer.state.get(weight, {}).items():
                if isinstance(value, torch.Tensor) and value.shape == weight.shape and value[self.gates[name] == 0].any():
                    raise Failed(
                        f"{key} of dead weights of {name} is not zero: change the topology by Change(masks), never in place"
                    )

    def check_weights(self, clock: Clock) -> None:
        for name, weight in self.weights.items():
            if self.learns == "relevance" and not torch.equal(weight, self.before[name]):
                raise Failed(f"weights of {name} moved while relevance alone is learned: change them by Change(weights=...)")
            if self.learns == "weights" and weight[self.gates[name] == 0].any():
                raise Failed(f"dead weights of {name} are not zero: change weights by Change(weights=...), never in place")


def goes_on_after_a_stop(method: Method) -> None:
    """Gives the same bits when it is interrupted at random steps and resumed, and has them in its file."""
    recipe = {"augment": ["crop", "flip"], "patience": 2, "lr": 0.05}
    _compare_with_interrupted(method, method.config(epochs=4, recipe=recipe), method.folder / "resumed", stops=3)


def supports_its_units(method: Method) -> None:
    """Keeps or drops whole units, of every kind that it declares."""
    for unit in method.units:
        if unit != "weight":
            with method.explained(f"with unit {unit}", "mend it, or leave the unit out of paradigm.units"):
                _check_unit(method, unit)


def _check_unit(method: Method, unit: str) -> None:
    net, data = conv_and_pictures()
    config = method.config(epochs=4, unit=unit, recipe={"lr": 0.05}, **method.half)
    subnet = _compare_with_interrupted(method, config, method.folder / f"unit {unit}", stops=1)
    units = units_of(unit, net, data.shape)
    found = units.pool({name: mask.float() for name, mask in subnet.masks.items()})
    if unit == "2:4":
        whole = all(mask.equal(units.keep(found, subnet.masks.density)[name]) for name, mask in subnet.masks.items())
    else:
        whole = all(bool(((pooled == 0) | (pooled == 1)).all()) for pooled in found.values())
    if not whole:
        raise Failed(f"with unit {unit} a unit lives in part: choose with net.units.keep, of scores of units (net.units.pool)")
    cost = units.cost(topology(units, subnet))
    if method.half and abs(cost - 0.5) > units.coarseness:
        raise Failed(f"with unit {unit} asked for 0.5 it keeps {cost:.4g}: choose with net.units.keep(scores, self.density)")
    with torch.no_grad():
        said = Classification().measure(subnet.on(net).eval(), in_order(data.val, data.mean, data.std))["nll"]
    if abs(said - subnet.metrics["val_nll"]) > 1e-5 * abs(said):
        raise Failed(f"with unit {unit} the file's network has another validation loss than was measured")


def _compare_with_interrupted(method: Method, config: Any, folder: Path, stops: int) -> Subnetwork:
    """A whole run, after one that was stopped at random steps and resumed each time was found to be the same."""
    net, data = conv_and_pictures()
    whole = method.train(config, out=folder / "whole", module=net, data=data)
    loaded, x = Subnetwork.load(folder / "whole" / "subnetwork.safetensors"), data.val.first(len(data.val))[0]
    if loaded.sha256 != whole.sha256 or not torch.equal(loaded.on(net).eval()(x.float()), whole.on(net).eval()(x.float())):
        raise Failed(f"with unit {config.unit} its file holds another network: finish and gates must say all that it is")
    steps = whole.metrics["steps"]
    chosen = sorted(random.Random(f"{method.name} {config.unit}").sample(range(1, steps), stops))
    for before, stop in pairwise([0, *chosen]):
        seen: list[Clock] = []
        try:
            method.train(
                config,
                out=folder / "part",
                resume=before > 0,
                module=conv_and_pictures()[0],
                data=data,
                on_step=seen.append,
                should_stop=lambda seen=seen, left=stop - before: len(seen) == left,
            )
        except Interrupted as stopped:
            if f"step {stop} of" not in str(stopped):
                raise Failed(f"told to stop after step {stop}: {stopped}") from stopped
        else:
            raise Failed(f"told to stop after step {stop}, it went on to the end")
        if not before and config.unit == method.unit:  # it leaves state wherever this one kept its own outside of the network
            method.train(config.model_copy(update={"seed": config.seed + 1}), module=conv_and_pictures()[0], data=data)
    resumed = method.train(config, out=folder / "part", resume=True, module=conv_and_pictures()[0], data=data)
    if (
        resumed.sha256 != whole.sha256
        or not resumed.masks.same(whole.masks)
        or _metrics(folder / "part") != _metrics(folder / "whole")
    ):
        raise Failed(
            f"with unit {config.unit}, stopped after steps {', '.join(map(str, chosen))} of {steps} and resumed, it is another "
            "subnetwork: keep what later steps need in Change(memory=...), none of it in the extractor"
        )
    return whole


def _metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def is_stored_as_asked(method: Method) -> None:
    """Is stored with its weights, or with their seed; where no seed makes them, that is refused before training."""
    for unit in method.units:
        for weights in ("values", "seed") if unit == method.unit else ("seed",):  # a unit's other check stores values
            config = method.config(epochs=4, unit=unit, **method.half).model_copy(update={"weights": weights})
            net, data = (method.network(), points()) if unit == method.unit else conv_and_pictures()
            out, steps, refused = method.folder / f"stored {unit} {weights}", list[Clock](), ""
            try:
                method.train(config, out=out, module=net, init="kaiming_normal", data=data, on_step=steps.append)
            except UserError as error:
                refused = str(error)
            if weights == "seed" and (trains_weights(method.cls) or method.cls.changes_weights):
                if "weights='values'" not in refused or steps or out.exists():
                    raise Failed(f"with unit {unit}, weights=seed was not refused before training: {refused or 'it ran'}")
                continue
            if refused:
                raise Failed(f"with unit {unit} and weights={weights} it is refused: {refused}")
            if load_tensors(out / "subnetwork.safetensors", "file")[1]["weights"] != weights:
                raise Failed(
                    f"with unit {unit} its file does not hold weights={weights}: declare changes_weights = True where weights "
                    "that are not trained end as others than they began"
                )
            Subnetwork.load(out / "subnetwork.safetensors")


def runs_at_every_bound(method: Method) -> None:
    """Runs at both ends of the domain of each hyperparameter, and with each choice."""
    for key, domain in domains(method.cls).items():
        for value in domain.bounds():
            if value == method.cls.model_fields[key].default:
                continue  # as in the other checks
            with method.explained(f"with {key}={value}", f"mend it, or narrow the domain of {key}"):
                subnet = method.train(method.config(epochs=4, **dict[str, Any]({key: value})))
                if not 0 < subnet.density <= 1:
                    raise Failed(f"with {key}={value} the density is {subnet.density}: narrow the domain of {key}")
                if not all(bool(weight.isfinite().all()) for weight in subnet.effective_weights().values()):
                    raise Failed(f"with {key}={value} weights are not finite: mend it, or narrow the domain of {key}")


def finds_a_planted_subnetwork(method: Method) -> None:
    """Does better than 20 random topologies on data that a subnetwork of the untrained weights labels."""
    net, data = planted()
    start = method.network(net)
    found = method.train(method.config(epochs=12, **method.half), module=start, data=data)
    rng = torch.Generator().manual_seed(0)
    begun, luck = method.begun(start, data), []
    for _ in range(20):
        masks = Masks({name: torch.rand(w.shape, generator=rng) < found.density for name, w in prunable(begun).items()})
        drawn = Subnetwork.of(begun, masks, {}, found.origin, {})
        luck.append(accuracy(drawn.on(start), data.val))
    if found.metrics["val_accuracy"] <= max(luck):
        raise Failed(
            f"after 12 epochs its validation accuracy is {found.metrics['val_accuracy']:.3f}, and a random topology's "
            f"{max(luck):.3f}: it does not learn, is the sign of its scores right?"
        )
