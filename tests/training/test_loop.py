"""The supernet and the loop: changes of topology, schedules, early stopping, failures."""

import math
import shutil

import pytest
import torch
from torch import nn
from toys import conv_bn, mlp, pictures, points, run_config, supernet

from subnet_search import Masks, Recipe, RunConfig, extract
from subnet_search.core.errors import Interrupted, RunError, UserError
from subnet_search.data import Batches
from subnet_search.extractors import Clock, create
from subnet_search.extractors.base import Change
from subnet_search.training import train
from subnet_search.training.loop import Run, make_optimizer


def eight_weights():
    """One linear layer of eight weights, 1 to 8, with a mask that keeps the even ones."""
    net = nn.Sequential(nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.arange(1.0, 9.0).view(2, 4))
    net = supernet({"name": "redraw"}, net, optimizer="sgd", lr=1.0)
    run = under_way(net)
    keep = torch.tensor([[False, True, False, True], [False, True, False, True]])
    run.make(Change(Masks({"0.weight": keep})))
    return net, run


def under_way(net):
    data = points(40, inputs=4, classes=2)
    return Run(net, data, Batches(data.train, None, None, 20, 0), 0, None)


def test_a_change_zeroes_dropped_weights_and_grows_from_zero():
    net, run = eight_weights()
    assert net.weights["0.weight"].tolist() == [[0, 2, 0, 4], [0, 6, 0, 8]]
    net.net[0].weight.grad = torch.ones(2, 4)
    net.mask_gradients()
    run.optimizer.step()  # momentum 1 where alive; weights go down by 1
    assert net.weights["0.weight"].tolist() == [[0, 1, 0, 3], [0, 5, 0, 7]]
    # Drop weights 2 and 8 (positions 1 and 7), grow the first and the fifth (positions 0 and 4).
    keep = torch.tensor([[True, False, False, True], [True, True, False, False]])
    run.make(Change(Masks({"0.weight": keep})))
    assert net.weights["0.weight"].tolist() == [[0, 0, 0, 3], [0, 5, 0, 0]]
    momentum = run.optimizer.state[net.net[0].weight]["momentum_buffer"]
    assert momentum.tolist() == [[0, 0, 0, 1], [0, 1, 0, 0]]  # kept state stays, grown state is fresh


def test_density_after_every_change():
    net = supernet({"name": "redraw", "density": 0.3, "every": 2}, epochs=3, batch_size=20)
    kept = set()
    train(net, points(120), 0, on_step=lambda clock: kept.add(net.masks.kept))
    assert kept == {math.floor(0.3 * net.masks.numel + 0.5)}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [1, 1, 1]), ("linear", [1, 0.5, 0]), ("cosine", [1, 0.5, 0]), ("step", [1, 0.1, 0.01])],
)
def test_learning_rate_schedules(schedule, expected):
    recipe = Recipe(schedule=schedule)
    assert [recipe.rate(progress) for progress in (0, 0.5, 1)] == pytest.approx(expected)


def test_relevance_and_scales_have_rates_of_their_own():
    net = supernet("gumbel", relevance_lr=7.0, scale_lr=0.25, weight_decay=0.1)
    relevance, scales = make_optimizer(net, net.recipe).param_groups
    assert (relevance["lr"], relevance["weight_decay"], len(relevance["params"])) == (7.0, 0.1, 2)
    assert (scales["lr"], scales["weight_decay"], len(scales["params"])) == (0.25, 0.0, 2)


def test_published_settings_fill_what_is_left_open():
    assert Recipe().resolve({"lr": 50.0}).lr == 50.0
    assert Recipe(lr=0.1).resolve({"lr": 50.0}).lr == 0.1


def test_early_stopping_goes_back_to_the_best_epoch():
    net = supernet("random", epochs=40, batch_size=30, lr=1.0, patience=2)
    outcome = train(net, points(200), 0)
    best = max(outcome.history, key=lambda epoch: epoch.metrics["val_accuracy"])  # the first of equals
    assert len(outcome.history) == best.epoch + 2 < 40
    assert outcome.epoch == best.epoch
    assert outcome.val["accuracy"] == best.metrics["val_accuracy"]


def test_nothing_is_trained_in_no_epochs():
    subnet = run_config(RunConfig(extractor="random", recipe=Recipe(epochs=0)), module=mlp(), data=points())
    assert subnet.metrics["steps"] == 0
    assert 0 <= subnet.metrics["val_accuracy"] <= 1


def test_a_loss_that_is_no_number_names_its_step():
    net = supernet("random", epochs=3, batch_size=30, lr=1e30)
    with pytest.raises(RunError, match=r"the loss is (nan|inf) at step [2-9]: try a lower learning rate"):
        train(net, points(120), 0)


@pytest.mark.parametrize(
    "setting", [{"precision": "bf16"}, {"channels_last": True}, {"label_smoothing": 0.1}, {"nesterov": True}]
)
@pytest.mark.parametrize("name", ["gumbel", "random"])
def test_settings_train(name, setting):
    net = supernet(name, conv_bn(), epochs=2, batch_size=32, **setting)
    outcome = train(net, pictures(), 0)
    plain = train(supernet(name, conv_bn(), epochs=2, batch_size=32), pictures(), 0)
    assert all(math.isfinite(epoch.train_loss) for epoch in outcome.history)
    assert outcome.history[0].train_loss != plain.history[0].train_loss


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_compiled_is_the_same_method():
    plain, compiled = (supernet("gumbel", epochs=2, batch_size=64, compile=compile) for compile in (False, True))
    outcomes = [train(net, points(), 0) for net in (plain, compiled)]
    losses = [[epoch.train_loss for epoch in outcome.history] for outcome in outcomes]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_who_looks_at_features_sees_them_in_a_compiled_network():
    net = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))
    found = [
        extract(net, points(), "apoz", unit="channel", round_to=1, density=0.5, recipe=recipe)
        for recipe in (Recipe(epochs=2, threads=1, device="cpu", compile=compile) for compile in (False, True))
    ]
    assert found[0].masks.same(found[1].masks)


def test_evaluation_uses_the_finish_topology_and_training_a_sample():
    net = supernet("gumbel")
    x = torch.randn(4, 10)
    first, second = net.evaluator()(x), net.evaluator()(x)
    assert torch.equal(first, second)
    assert not torch.equal(net.forward(x, Clock(0, 10, 0)), net.forward(x, Clock(1, 10, 0)))
    assert torch.equal(net.forward(x, Clock(1, 10, 0)), net.forward(x, Clock(1, 10, 0)))


@pytest.mark.parametrize("rescale", ["none", "learned", "dynamic", "fan_in"])
def test_every_rescaling_reaches_the_artifact(rescale):
    module = mlp()
    data = points()
    config = RunConfig(extractor={"name": "gumbel", "rescale": rescale, "density": 0.3}, recipe=Recipe(epochs=2, lr=5.0))
    subnet = run_config(config, module=module, data=data)
    assert bool(subnet.scales) == (rescale != "none")
    outputs = subnet.on(module)(data.val.inputs).argmax(1)
    assert (outputs == data.val.labels).float().mean().item() == pytest.approx(subnet.metrics["val_accuracy"])


def test_the_users_generator_and_network_are_left_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    module, before = mlp(), mlp()
    torch.manual_seed(1)
    run_config(RunConfig(extractor="random", recipe=Recipe(epochs=1)), module=module, data=points())
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), before.parameters(), strict=True))


def test_resume_refuses_another_configuration(tmp_path):
    def run(resume=False, **recipe):
        settings = RunConfig(extractor="random", recipe=Recipe(epochs=3, batch_size=30, **recipe))
        seen = []
        return run_config(
            settings,
            tmp_path,
            resume=resume,
            module=mlp(),
            data=points(),
            on_step=seen.append,
            should_stop=lambda: len(seen) == 4,
        )

    with pytest.raises(Interrupted):
        run()
    with pytest.raises(UserError, match="already has a run"):
        run()
    with pytest.raises(UserError, match=r"cannot resume .*: recipe.lr was 0.1, now 0.2"):
        run(resume=True, lr=0.2)


def test_a_damaged_checkpoint_is_refused_and_kept(tmp_path):
    settings = RunConfig(extractor="random", recipe=Recipe(epochs=3, batch_size=30))
    seen = []
    with pytest.raises(Interrupted):
        run_config(settings, tmp_path, module=mlp(), data=points(), on_step=seen.append, should_stop=lambda: len(seen) == 4)
    checkpoint = tmp_path / "checkpoint" / "state.safetensors"
    content = bytearray(checkpoint.read_bytes())
    content[-5] ^= 1
    checkpoint.write_bytes(content)
    with pytest.raises(UserError, match=r"state\.safetensors is damaged"):
        run_config(settings, tmp_path, resume=True, module=mlp(), data=points())
    assert checkpoint.read_bytes() == bytes(content)


def test_a_finished_run_is_not_run_again(tmp_path):
    settings = RunConfig(extractor="random", recipe=Recipe(epochs=1))
    first = run_config(settings, tmp_path, module=mlp(), data=points())
    steps = []
    again = run_config(settings, tmp_path, resume=True, module=mlp(), data=points(), on_step=steps.append)
    assert again.summary() == first.summary()
    assert steps == []


def test_a_mistake_leaves_no_folder_behind(tmp_path):
    settings = RunConfig(network="lenet5", extractor=create("random"))
    with pytest.raises(UserError, match="lenet5 needs images"):
        run_config(settings, tmp_path / "run", data=points())
    assert not (tmp_path / "run").exists()
