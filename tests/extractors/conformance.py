"""One suite for every extractor. A new file in `extractors/` is tested here without a word changed."""

import copy
import json
import random

import pytest
import torch
import yaml
from torch import nn
from toys import accuracy, conv_bn, mlp, pictures, planted, points, run_config

from subnet_search import Masks, Recipe, RunConfig, Subnetwork
from subnet_search.core.errors import Interrupted, UserError
from subnet_search.core.search_domains import domains
from subnet_search.core.tensor_files import load_tensors
from subnet_search.data import Data
from subnet_search.evaluation import quality
from subnet_search.evaluation.accuracy import logits
from subnet_search.extraction.config import DEFAULT_UNITS
from subnet_search.extraction.config_file import check
from subnet_search.extractors import create, extractor_names, get_extractor
from subnet_search.extractors.base import trains_weights
from subnet_search.extractors.describe import describe
from subnet_search.nets import make_dynamic, prunable
from subnet_search.search.studies.method_grid import WEIGHTS
from subnet_search.structure.units_of_network import units_of
from subnet_search.topology.select import count
from subnet_search.topology.units import parse
from subnet_search.training import Supernet, train
from subnet_search.training.loop import make_optimizer

every_extractor = pytest.mark.parametrize("name", extractor_names())


def first_unit(name):
    """What a method is tested with: single weights, or what it supports instead."""
    return DEFAULT_UNITS[get_extractor(name).paradigm.units[0]]


def config(name, epochs=2, recipe=None, seed=3, unit=None, **hyperparameters):
    unit = unit or first_unit(name)
    return check(
        RunConfig,
        {
            "extractor": {"name": name, **hyperparameters},
            "recipe": {"epochs": epochs, "batch_size": 32, "threads": 1, "device": "cpu", **(recipe or {})},
            "seed": seed,
            "unit": unit,
            "round_to": 1 if unit == "channel" else None,
        },
    )


def dense(name, net=None):
    """An MLP; for methods of channels, some of which look at its scales, with a batch norm behind the hidden layer.

    For dynamic methods a convolution of as many filters.
    """
    net = net or mlp()
    if get_extractor(name).dynamic:
        inputs, hidden, classes = net[0].in_features, net[0].out_features, net[2].out_features
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layers = nn.Conv1d(1, hidden, 3, padding=1), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Flatten()
            return nn.Sequential(nn.Unflatten(1, (1, inputs)), *layers, nn.Linear(inputs * hidden, classes))
    return nn.Sequential(net[0], nn.BatchNorm1d(net[0].out_features), *net[1:]) if first_unit(name) == "channel" else net


def begun(name, net, shape=(10,)):
    """The network as a run begins with it: a dynamic method's has gates."""
    return make_dynamic(copy.deepcopy(net), shape) if get_extractor(name).dynamic else net


def topology(units, subnet):
    """The units that live in a subnetwork."""
    return Masks({key: pooled > 0 for key, pooled in units.pool({n: mask.float() for n, mask in subnet.masks.items()}).items()})


def units_for(name):
    """A unit of each kind that a method supports."""
    units = [unit for unit in ("weight", "channel", "2:4", "block:2") if parse(unit)[0] in get_extractor(name).paradigm.units]
    return list(dict.fromkeys([first_unit(name), *units]))


def has_density(name):
    return "density" in get_extractor(name).model_fields


@every_extractor
def test_says_what_it_is(name):
    method = describe(name)
    assert method["summary"]
    assert method["paper"]
    assert method["formula"]
    assert all(method["paradigm"][key] for key in ("mask_from", "weights_from", "schedule"))
    assert method["units"]
    assert set(method["units"]) <= set(DEFAULT_UNITS)
    assert all(field["help"].endswith(".") for field in method["hyperparameters"])


@every_extractor
def test_states_its_published_training_settings(name):
    cls = get_extractor(name)
    assert "published" in vars(cls), "every method states its own settings, or that none apply"
    published = cls.published
    assert published.source.strip()
    assert "epochs" not in published.recipe  # a published length is stated, and never a default
    assert set(published.recipe) <= {
        *WEIGHTS,
        "batch_size",
        "relevance_optimizer",
        "relevance_lr",
        "relevance_decay",
        "scale_lr",
    }
    recipe = Recipe(**published.recipe).resolve({})
    assert {key: getattr(recipe, key) for key in published.recipe} == dict(published.recipe)
    assert Recipe().resolve(published.recipe).epochs == Recipe().epochs
    if published.source.startswith("none: "):
        assert not published.recipe
        assert published.epochs is None
    else:
        assert {"lr", "batch_size", "schedule"} & set(published.recipe)
        assert published.epochs is None or published.epochs > 0
        assert any(mark in published.source for mark in ("/", "section"))  # a file of a repository, or a part of a paper


@every_extractor
def test_configuration_round_trip(name):
    before = config(name).resolve()
    after = check(RunConfig, yaml.safe_load(yaml.safe_dump(before.dump())))
    assert after == before
    assert json.loads(json.dumps(before.dump())) == after.dump()


BOUNDS = [
    (name, key, value)
    for name in extractor_names()
    for key, domain in domains(get_extractor(name)).items()
    for value in domain.bounds()
]


@pytest.mark.parametrize(("name", "key", "value"), BOUNDS)
def test_every_bound_of_every_domain_runs(name, key, value):
    subnet = run_config(config(name, epochs=4, **{key: value}), module=dense(name), data=points(400))
    assert 0 < subnet.density <= 1
    assert all(w.isfinite().all() for w in subnet.effective_weights().values())


@every_extractor
@pytest.mark.parametrize("density", [0.05, 0.1, 0.37, 0.5, 1.0])
def test_density_is_met_exactly(name, density):
    if not has_density(name):
        assert not has_density(name)  # density is this method's outcome, not its setting
        return
    unit, net = first_unit(name), dense(name)
    density = min(density, 0.5) if unit == "2:4" else density
    subnet = run_config(config(name, epochs=2, density=density), module=net, data=points(400))
    units = units_of(unit, net, (10,), round_to=1)
    found = topology(units, subnet)
    if units.exact:
        assert found.kept == count(density, found.numel)
    else:
        assert abs(units.cost(found) - density) <= units.coarseness / 2 + 1e-9


@every_extractor
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_dead_weights_are_zero_and_so_is_their_optimizer_state(name, optimizer, monkeypatch):
    extractor = create(name)
    recipe = Recipe(epochs=2, batch_size=32, optimizer=optimizer, lr=0.05, weight_decay=1e-2, threads=1, device="cpu")
    net = begun(name, dense(name))
    before = {key: weight.detach().clone() for key, weight in prunable(net).items()}
    supernet = Supernet(net, extractor, recipe.resolve({}), 0, units_of(first_unit(name), net, (10,), round_to=1))
    optimizers = []
    monkeypatch.setattr(
        "subnet_search.training.loop.make_optimizer", lambda *a: optimizers.append(make_optimizer(*a)) or optimizers[-1]
    )
    apply, checked = supernet.apply, []
    # A change may hand in new weights; nothing else moves them while only relevance is learned.
    monkeypatch.setattr(supernet, "apply", lambda change: (before.update(change.weights or {}), apply(change)))

    def check_step(clock):
        checked.append(clock.step)
        if supernet.learns == "relevance":
            assert all(torch.equal(weight, before[key]) for key, weight in prunable(net).items()), "weights moved"
        if supernet.learns != "weights":
            return
        for key, weight in prunable(net).items():
            dead = supernet.gates[key] == 0
            assert not weight[dead].any()
            for value in optimizers[-1].state.get(weight, {}).values():
                if isinstance(value, torch.Tensor) and value.shape == weight.shape:
                    assert not value[dead].any()

    train(supernet, points(400), 0, on_step=check_step)
    assert len(checked) == 22


@every_extractor
def test_killed_and_resumed_is_bit_identical(name, tmp_path):
    """At three random steps, with batch norm, dropout, augmentation and early stopping under way."""
    data = pictures()
    settings = config(name, epochs=4, recipe={"augment": ["crop", "flip"], "patience": 2, "lr": 0.05})
    whole = run_config(settings, tmp_path / "whole", module=conv_bn_from(0), data=data)
    steps = whole.metrics["steps"]
    history = metrics(tmp_path / "whole")
    for stop in random.Random(name).sample(range(1, steps), 3):
        folder, seen = tmp_path / str(stop), []
        with pytest.raises(Interrupted, match=f"step {stop} of"):
            run_config(
                settings,
                folder,
                module=conv_bn_from(0),
                data=data,
                on_step=seen.append,
                should_stop=lambda seen=seen, stop=stop: len(seen) == stop,
            )
        resumed = run_config(settings, folder, resume=True, module=conv_bn_from(0), data=data)
        assert resumed.sha256 == whole.sha256
        assert resumed.masks.same(whole.masks)
        assert metrics(folder) == history


STRUCTURED = [
    (name, unit)
    for name in extractor_names()
    for unit in ("channel", "2:4", "block:2")
    if parse(unit)[0] in get_extractor(name).paradigm.units
]


@pytest.mark.parametrize(("name", "unit"), STRUCTURED)
def test_every_unit_it_supports(name, unit, tmp_path):
    """Whole units live or die, half of them; what was measured is the artifact; interrupted and resumed is the same."""
    data, net, seen = pictures(), conv_bn_from(0), []
    half = {"density": 0.5} if has_density(name) else {}
    settings = config(name, epochs=4, unit=unit, recipe={"lr": 0.05}, **half)
    subnet = run_config(settings, tmp_path / "whole", module=net, data=data, on_step=seen.append)
    units = units_of(unit, net, data.shape)
    found = units.pool({key: mask.float() for key, mask in subnet.masks.items()})
    if unit == "2:4":
        assert all(mask.equal(units.keep(found, subnet.masks.density)[key]) for key, mask in subnet.masks.items())
    else:
        assert all(share in (0, 1) for pooled in found.values() for share in pooled.reshape(-1).tolist())
    if half:
        assert abs(units.cost(topology(units, subnet)) - 0.5) <= units.coarseness
    said = logits(subnet.on(net).eval(), data.val, data.mean, data.std)
    assert quality(said, data.val.labels).nll == pytest.approx(subnet.metrics["val_nll"], rel=1e-5)
    stop, again = random.Random(f"{name} {unit}").randrange(1, len(seen)), []
    with pytest.raises(Interrupted, match=f"step {stop} of"):
        run_config(
            settings,
            tmp_path / "part",
            module=conv_bn_from(0),
            data=data,
            on_step=again.append,
            should_stop=lambda: len(again) == stop,
        )
    resumed = run_config(settings, tmp_path / "part", resume=True, module=conv_bn_from(0), data=data)
    assert resumed.sha256 == subnet.sha256
    assert resumed.masks.same(subnet.masks)


STORED = [(name, unit, weights) for name in extractor_names() for unit in units_for(name) for weights in ("values", "seed")]


@pytest.mark.parametrize(("name", "unit", "weights"), STORED)
def test_what_cannot_be_stored_is_refused_before_training(name, unit, weights, tmp_path):
    """Whatever the method, the unit and what the file is to hold of the weights: a finished run is in its file as asked."""
    half = {"density": 0.5} if has_density(name) else {}
    settings = config(name, epochs=4, unit=unit, **half).model_copy(update={"weights": weights})
    net, data = (dense(name), points()) if first_unit(name) == unit else (conv_bn_from(0), pictures())
    steps, refused = [], None
    try:
        run_config(settings, tmp_path / "run", module=net, init="kaiming_normal", data=data, on_step=steps.append)
    except UserError as error:
        refused = str(error)
    if weights == "seed" and (trains_weights(get_extractor(name)) or get_extractor(name).changes_weights):
        assert "weights='values'" in refused
        assert not steps
        assert not (tmp_path / "run").exists()
    else:
        assert refused is None
        assert load_tensors(tmp_path / "run" / "subnetwork.safetensors", "file")[1]["weights"] == weights
        assert Subnetwork.load(tmp_path / "run" / "subnetwork.safetensors").density <= 1


@every_extractor
def test_saved_and_loaded_gives_the_same_logits(name, tmp_path):
    data = pictures()
    net = conv_bn_from(1)
    subnet = run_config(config(name, epochs=4), module=net, data=data)
    subnet.save(tmp_path / "a.safetensors")
    loaded = Subnetwork.load(tmp_path / "a.safetensors")
    assert loaded.sha256 == subnet.sha256
    x = torch.randn(5, 1, 8, 8)
    assert torch.equal(loaded.on(net).eval()(x), subnet.on(net).eval()(x))


@every_extractor
def test_validation_is_that_of_the_artifact(name):
    """What was measured is the `finish` topology, never a sample: the file's network gives the same accuracy."""
    data = points()
    net = dense(name)
    subnet = run_config(config(name), module=net, data=data)
    measured = accuracy(subnet.on(net), data.val.inputs, data.val.labels)
    assert measured == pytest.approx(subnet.metrics["val_accuracy"])


@every_extractor
def test_the_seed_decides_everything(name):
    data = points(400)
    first, again, other = (run_config(config(name, seed=seed), module=dense(name), data=data) for seed in (1, 1, 2))
    assert first.sha256 == again.sha256
    assert first.sha256 != other.sha256


@every_extractor
def test_test_data_is_opened_by_the_last_line_only(name):
    opened = []
    given = points(400)
    watched = Data(given.name, given.train, given.val, given.classes, _test=lambda: opened.append(1) or given.val)
    seen = []
    subnet = run_config(config(name), module=dense(name), data=watched, on_epoch=lambda epoch: seen.append(list(opened)))
    assert seen == [[], []]
    assert opened == [1]
    assert subnet.metrics["test_accuracy"] == pytest.approx(subnet.metrics["val_accuracy"])


@every_extractor
def test_planted_subnetwork_beats_random_masks(name):
    net, data = planted()
    net = dense(name, net)
    method = config(name, epochs=30, **({"density": 0.5} if has_density(name) else {}))
    found = run_config(method, module=net, data=data)
    rng = torch.Generator().manual_seed(0)
    luck = []
    start = begun(name, net, data.shape)
    for _ in range(20):
        masks = Masks({key: torch.rand(w.shape, generator=rng) < found.density for key, w in prunable(start).items()})
        drawn = Subnetwork.of(start, masks, {}, found.origin, {})
        luck.append(accuracy(drawn.on(net), data.val.inputs, data.val.labels))
    assert found.metrics["val_accuracy"] > max(luck)


def conv_bn_from(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return conv_bn()


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
