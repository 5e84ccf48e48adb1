"""A topology change comes beside the optimizer's step: what it sees, what it costs, and how often it comes."""

import logging

import pytest
import torch
from pydantic import ConfigDict
from torch import nn
from toys import mlp, points, run_config, supernet

import subnet_search as ss
from subnet_search import Masks, Recipe, RunConfig
from subnet_search.core.errors import UserError
from subnet_search.data import Batches
from subnet_search.extraction.config_file import check
from subnet_search.extractors import Clock, Extractor, create
from subnet_search.extractors.base import Change, raised_intervals
from subnet_search.topology.rescale import dynamic, fan_in
from subnet_search.topology.units import Units
from subnet_search.training import Supernet, train
from subnet_search.training import loop as loop_module
from subnet_search.training.loop import Run

MOVING = ["set", "mest", "granet", "gmp", "ac_dc", "cht", "magnitude", "lottery", "soft_filter_pruning", "iterand", "rigl"]


def optimizer_steps(name, **settings):
    """How often the optimizer of a run of 60 steps steps, and the changes that are made after its first step."""
    channel = {"unit": "channel", "round_to": 1} if create(name).paradigm.units == ("channel",) else {}
    config = check(RunConfig, {"extractor": {"name": name, **settings}, **channel})
    calls = {"steps": 0, "changes": 0}
    original, made = torch.optim.SGD.step, Run.make

    def counted(self, *args, **kwargs):
        calls["steps"] += 1
        return original(self, *args, **kwargs)

    def make(self, change):
        calls["changes"] += self.progress.step > 0
        return made(self, change)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", counted)
        patch.setattr(Run, "make", make)
        recipe = Recipe(epochs=4, batch_size=20, lr=0.05, threads=1, device="cpu")
        run_config(config.model_copy(update={"recipe": recipe}), module=mlp(), data=points(340))
    return calls


@pytest.mark.parametrize("name", MOVING)
def test_a_change_costs_no_step_of_the_optimizer(name):
    every = {} if name in ("magnitude", "lottery") else {"every": 2}
    calls = optimizer_steps(name, **every)
    assert calls["changes"] > 0
    assert calls["steps"] == 60 - (calls["changes"] if name == "rigl" else 0)  # RigL's take the place of a step


class Watching(Extractor):
    """Keeps half of eight weights, and notes what it is shown. Not registered: no method."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name = "watching"
    paper, paradigm = create("random").paper, create("random").paradigm

    def begin(self, net, clock, probe):
        return Change(Masks({"0.weight": torch.tensor([[True, True, False, False], [True, False, True, False]])}))

    def step(self, net, clock):
        self.seen.append((clock.step, net.weights["0.weight"].clone(), net.gradients["0.weight"].clone()))


def test_random_numbers_for_a_mask_are_floats():
    clock, mask = Clock(3, 10, 0), torch.tensor([True, False, True])
    assert clock.uniform("grow", mask).equal(clock.uniform("grow", torch.zeros(3)))


class Replacing(Watching):
    replaces_step = True


def watched(cls):
    """What an extractor saw in two steps of SGD with rate 0.5 on eight weights, and the gradients worked out by hand."""
    net = nn.Sequential(nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, -2, 3, -4], [-1, 2, -3, 4]]))
    seen = []
    whole = Supernet(net, cls(seen=seen), Recipe(lr=0.5, momentum=0, epochs=1, batch_size=18).resolve({}), 0)
    data = points(40, inputs=4, classes=2)  # 36 to train with: two batches
    batches = Batches(data.train, None, None, 18, 0)
    mask, weight = torch.tensor([[1.0, 1, 0, 0], [1, 0, 1, 0]]), None
    expected = []
    for step in range(2):
        start = torch.tensor([[1.0, -2, 0, 0], [-1, 0, -3, 0]]) if weight is None else weight
        inputs, labels = batches.batch(step)
        # Cross-entropy: the gradient is (softmax - one-hot)^T x / batch, of dead weights too.
        error = (inputs @ start.T).softmax(1) - nn.functional.one_hot(labels, 2)
        gradient = error.T @ inputs / 18
        weight = (start - 0.5 * gradient) * mask
        expected.append((start, weight, gradient))
    train(whole, data, 0)
    return seen, expected, whole.weights["0.weight"].detach()


def test_a_change_sees_the_weights_after_the_step_and_the_dense_gradients_of_its_batch():
    seen, expected, final = watched(Watching)
    assert [step for step, *_ in seen] == [0, 1, 2]  # once before training, then after every step
    assert not seen[0][2].any()
    for (_, weight, gradient), (_, after, dense) in zip(seen[1:], expected, strict=True):
        torch.testing.assert_close(weight, after)
        torch.testing.assert_close(gradient, dense)
        assert gradient[weight == 0].any()
    torch.testing.assert_close(final, expected[-1][1])


def test_a_change_that_replaces_the_step_sees_the_weights_before_it():
    seen, expected, final = watched(Replacing)
    assert [step for step, *_ in seen] == [0, 1]
    for (_, weight, gradient), (before, _, dense) in zip(seen, expected, strict=True):
        torch.testing.assert_close(weight, before)
        torch.testing.assert_close(gradient, dense)
    torch.testing.assert_close(final, expected[-1][1])  # it changed nothing, so the optimizer stepped


@pytest.mark.parametrize(
    "recipe",
    [
        {"optimizer": "sgd", "nesterov": True},
        {"optimizer": "sgd", "momentum": 0.0},
        {"optimizer": "adam", "lr": 0.01},
        {"optimizer": "adamw", "lr": 0.01},
    ],
    ids=str,
)
def test_zeroing_after_the_step_gives_the_bits_of_gradients_masked_before(recipe, monkeypatch):
    found = []
    for asked in (False, True):
        net = supernet({"name": "random", "density": 0.3}, **{"epochs": 3, "batch_size": 20, "weight_decay": 1e-2, **recipe})
        if asked:  # a step that never changes anything, but might
            monkeypatch.setattr(type(net.extractor), "step", lambda self, net, clock: None)
        train(net, points(), 0)
        found.append({name: tensor.clone() for name, tensor in net.state().items()})
    assert all(torch.equal(found[0][name], value) for name, value in found[1].items())


@pytest.mark.parametrize(
    ("every", "total", "steps"),
    [
        (0.02, 60, 10),  # 1.2 steps: raised to min(10, 60 // 4)
        (0.02, 30, 7),  # 30 // 4
        (0.02, 500, 10),  # as asked
        (0.02, 1000, 20),
        (0.02, 3, 1),
        (1, 60, 1),  # whole numbers of steps stay as given
        (4, 60, 4),
    ],
)
def test_intervals_that_are_short_fractions_are_raised(every, total, steps):
    clock, method = Clock(0, total, 0), create({"name": "set", "every": every})
    assert clock.interval(every) == steps
    raised = not isinstance(every, int) and steps > max(1, round(every * total))
    assert raised_intervals(method, clock) == ({"set.every": steps} if raised else {})


@pytest.mark.parametrize("name", ["set", "rigl", "granet", "mest", "gmp", "cht", "ac_dc", "iterand", "fbs", "early_bird"])
def test_every_interval_between_changes_is_marked(name):
    assert list(raised_intervals(create({"name": name, "every": 0.001}), Clock(0, 100, 0))) == [f"{name}.every"]


def test_a_raised_interval_is_recorded_and_warned_of_once(caplog):
    loop_module._warn_once.cache_clear()
    settings = RunConfig(extractor={"name": "set"}, recipe=Recipe(epochs=4, batch_size=20, threads=1, device="cpu"))
    with caplog.at_level(logging.WARNING):
        records = [run_config(settings, module=mlp(), data=points(340)).summary() for _ in range(2)]
    assert [record["raised_intervals"] for record in records] == [{"set.every": 10}] * 2
    assert [text for text in caplog.messages if "set.every" in text] == [
        "set.every is raised to 10 steps, the minimum in a run of 60 steps"
    ]
    settings = settings.model_copy(update={"extractor": create({"name": "set", "every": 2})})
    assert run_config(settings, module=mlp(), data=points(340)).summary()["raised_intervals"] == {}


@pytest.mark.parametrize(
    ("settings", "total", "message"),
    [
        ({"name": "rigl", "every": 1}, 100, "rigl.every: an interval of 1 step leaves no training step .* at least 2"),
        ({"name": "set", "every": 0}, 100, "set.every: an interval of 0 steps leaves no training step .* at least 1"),
        ({"name": "rigl"}, 5, "rigl.every: an interval of 1 step leaves no training step .* train for longer"),
    ],
)
def test_a_length_that_leaves_no_step_between_changes_is_refused(settings, total, message):
    with pytest.raises(UserError, match=message):
        create(settings).check(Units({"a": (8, 8)}), Clock(0, total, 0))


def test_units_that_do_not_survive_begin_at_zero_with_fresh_state():
    """Of 1 to 4, all alive: 1 and 2 stay alive, but 2 does not survive; 4 goes."""
    net = nn.Sequential(nn.Linear(4, 1, bias=False))
    whole = supernet("random", net)
    data = points(40, inputs=4, classes=2)
    run = Run(whole, data, Batches(data.train, None, None, 20, 0), 0, None)
    net[0].weight.grad = torch.zeros(1, 4)
    run.optimizer.step()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 2, 3, 4]]))
    state = run.optimizer.state[net[0].weight]
    state["momentum_buffer"] = torch.tensor([[5.0, 6, 7, 8]])
    masks, survivors = torch.tensor([[True, True, True, False]]), torch.tensor([[True, False, True, False]])
    run.make(Change(Masks({"0.weight": masks}), survivors=Masks({"0.weight": survivors})))
    assert net[0].weight.tolist() == [[1, 0, 3, 0]]
    assert state["momentum_buffer"].tolist() == [[5, 0, 7, 0]]
    assert whole.masks["0.weight"].equal(masks)
    with pytest.raises(UserError, match=r"random must return a Change .*, got Masks: .* Change\(masks\)"):
        run.make(whole.masks)


# --- rescaling ---


@pytest.mark.parametrize("factor", [dynamic, fan_in])
def test_factors_are_differentiated(factor):
    """Through w * z * f(z), as torch differentiates it, on eight weights."""
    weight, gradient = torch.tensor([[1.0, -2, 3, -4], [5, -6, 7, -8]]), torch.tensor([[1.0, 2, 0, -1], [0, 1, 1, 3]])
    found = []
    for product in (ss.topology.rescale.masked_weight, lambda w, z, f: w * z * f):
        z = torch.tensor([[1.0, 1, 0, 1], [0, 1, 0, 0]], requires_grad=True)
        (product(weight, z, factor(z)) * gradient).sum().backward()
        found.append(z.grad)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("name", "constant"),
    [
        ("gumbel", False),
        ("supermask", False),
        ("gem_miner", False),
        ("concrete", False),
        ("edge_popup", True),
        ("iterand", True),
    ],
)
def test_which_learners_differentiate_the_dynamic_factor(name, constant):
    """Where every sample keeps the same number of weights, numel / nnz is a constant and has no gradient."""
    net = supernet({"name": name, "rescale": "dynamic", "density": 0.5})
    gates = {key: torch.full_like(weight, 0.5, requires_grad=True) for key, weight in net.weights.items()}
    factor = net._factor("0.weight", gates["0.weight"])
    assert float(factor.detach()) == 2
    assert factor.requires_grad is not constant


# --- what it is worth ---


def digits(extractor, epochs):
    recipe = {"epochs": epochs, "lr": 0.03, "nesterov": True, "schedule": "cosine", "weight_decay": 0.0}
    settings = {"network": "small_conv", "data": "digits", "extractor": {"density": 0.1, **extractor}}
    runs = [{**settings, "recipe": {**recipe, "threads": 1, "device": "cpu"}, "seed": seed} for seed in range(3)]
    return sum(ss.run(check(RunConfig, run)).metrics["test_accuracy"] for run in runs) / 3


@pytest.mark.long
def test_set_is_above_static_random_after_200_steps():
    """The order that was published; while changes took the steps' place it was 61 % against 78 %."""
    assert digits({"name": "set"}, 20) > max(digits({"name": "random", "allocation": how}, 20) for how in ("er", "erk"))


def test_gradual_pruning_learns_in_80_steps():
    """27 % while changes took the steps' place."""
    assert digits({"name": "gmp"}, 8) > 0.6
