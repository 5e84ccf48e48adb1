"""The last layer in closed form: against numpy, under a mask, and in runs and evaluations."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from toys import conv_bn, mlp, pictures, points, run_config

import subnet_search as ss
from subnet_search import UserError
from subnet_search.cli import main
from subnet_search.core.errors import RunError
from subnet_search.data import from_user
from subnet_search.tasks import create_task
from subnet_search.training.readout import HELD_OUT, NormalEquations, check_readout, solve_readout

NONE = {"epochs": 0, "threads": 1, "device": "cpu"}


def items(count=60, features=5, targets=2):
    rng = np.random.default_rng(0)
    return rng.normal(1.0, 2.0, (count, features)), rng.normal(3.0, 1.0, (count, targets))


def sums(x, y, batches=1):
    found = NormalEquations(x.shape[1], y.shape[1])
    for part, targets in zip(np.array_split(x, batches), np.array_split(y, batches), strict=True):
        found.add(torch.from_numpy(part), torch.from_numpy(targets))
    return found


def closed_form(x, y, penalty):
    """Of centred columns; numpy alone."""
    centred, left = x - x.mean(0), len(x) * penalty * np.eye(x.shape[1])
    weight = np.linalg.solve(centred.T @ centred + left, centred.T @ (y - y.mean(0)))
    return weight.T, y.mean(0) - x.mean(0) @ weight


def test_ridge_is_the_closed_form():
    x, y = items()
    weight, bias = sums(x, y).solve(0.3)
    expected = closed_form(x, y, 0.3)
    np.testing.assert_allclose(weight, expected[0], atol=1e-12)
    np.testing.assert_allclose(bias, expected[1], atol=1e-12)
    plain, zero = sums(x, y).solve(0.3, bias=False)
    np.testing.assert_allclose(plain, np.linalg.solve(x.T @ x + 60 * 0.3 * np.eye(5), x.T @ y).T, atol=1e-12)
    assert not zero.any()


def test_batches_one_after_another_are_as_good_as_one():
    x, y = items()
    at_once, streamed = sums(x, y), sums(x, y, batches=7)
    together = sums(x[:20], y[:20]) + sums(x[20:], y[20:])
    for found in (streamed, together):
        for one, other in zip(found.solve(1e-3), at_once.solve(1e-3), strict=True):
            torch.testing.assert_close(one, other, atol=1e-10, rtol=0)


def test_the_error_is_that_of_the_items():
    x, y = items()
    weight, bias = sums(x, y).solve(0.3)
    by_hand = np.square(x @ weight.numpy().T + bias.numpy() - y).sum(1).mean()
    assert sums(x, y).error(weight, bias) == pytest.approx(by_hand, rel=1e-10)


def test_each_output_is_solved_on_the_weights_that_it_keeps():
    x, y = items()
    mask = torch.tensor([[True, False, True, True, False], [False, False, False, False, False]])
    weight, bias = sums(x, y).solve(0.3, mask)
    kept = x[:, [0, 2, 3]]
    np.testing.assert_allclose(weight[0, [0, 2, 3]], closed_form(kept, y[:, :1], 0.3)[0][0], atol=1e-12)
    assert not weight[~mask].any()
    np.testing.assert_allclose(bias[1], y[:, 1].mean())  # without weights, the mean


def test_a_penalty_that_is_too_small_is_told():
    x = np.ones((10, 3))
    with pytest.raises(RunError, match="readout_penalty 1e-300 is too small"):
        sums(x, x).solve(1e-300, bias=False)


def linear(bias=True):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2, bias=bias))


def regression(count=200):
    """Values that a readout of `linear` gives, with a little noise."""
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(count, 4, generator=rng)
    y = linear()[:2](x) @ torch.randn(6, 2, generator=rng) + 5
    y = (y + 0.01 * torch.randn(count, 2, generator=rng)).detach()
    return from_user((x, y), labels=create_task("regression").kind_of_labels)


def test_the_penalty_is_chosen_on_held_out_training_items():
    data, task = regression(), create_task("regression")
    x, y = data.train.inputs, data.train.labels
    found = solve_readout(linear(), task, lambda: [(x, y)], ["2"])[0]
    assert (found.chosen, found.items) == (True, len(x))
    features = linear()[:2](x).detach().double().numpy()
    held = np.arange(len(x)) % HELD_OUT == HELD_OUT - 1
    fit, out = (sums(features[one], y[one].double().numpy()) for one in (~held, held))
    errors = {power: out.error(*fit.solve(10.0**power * fit.variance)) for power in range(-8, 2)}
    assert found.penalty == pytest.approx(10.0 ** min(errors, key=errors.get) * fit.variance)
    np.testing.assert_allclose(found.weight, closed_form(features, y.double().numpy(), found.penalty)[0], atol=1e-8)
    given = solve_readout(linear(), task, lambda: [(x, y)], ["2"], penalty=0.5)[0]
    assert (given.penalty, given.chosen) == (0.5, False)


def test_targets_of_classes_are_one_hot_minus_a_constant():
    data, net = points(), mlp()
    batches = [(data.train.inputs, data.train.labels)]
    (found,) = solve_readout(net, create_task("classification"), lambda: batches, ["2"], penalty=0.1)
    features = net[:2](data.train.inputs).detach().double().numpy()
    targets = np.eye(3)[data.train.labels] - 1 / 3
    weight, bias = closed_form(features, targets, 0.1)
    np.testing.assert_allclose(found.weight, weight, atol=1e-8)
    np.testing.assert_allclose(found.bias, bias, atol=1e-8)


def test_hidden_layers_are_solved_in_their_order_for_targets_of_inputs_and_labels():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    data, task = regression(), create_task("regression")
    x, y = data.train.inputs, data.train.labels
    assert check_readout(net, task, (x[:2], y[:2])) == ["4"]
    layers = check_readout(net, task, (x[:2], y[:2]), "forward_ridge")
    assert layers == ["0", "2", "4"]
    mask = torch.ones(5, 6, dtype=torch.bool)
    mask[:, 1] = False
    found = solve_readout(net, task, lambda: [(x, y)], layers, penalty=0.1, masks={"2": mask}, seed=3)

    rng, inputs, targets = torch.Generator().manual_seed(3), x.double().numpy(), y.double().numpy()
    centred = targets - targets.mean(0)
    for one, size in zip(found[:2], (6, 5), strict=True):
        q = torch.randn(inputs.shape[1], size, generator=rng, dtype=torch.float64).numpy()
        u = torch.randn(2, size, generator=rng, dtype=torch.float64).numpy()
        wanted = np.sign(inputs @ q) + np.sign(centred @ u)
        kept = [0, 2, 3, 4, 5] if size == 5 else range(inputs.shape[1])
        weight, bias = closed_form(inputs[:, kept], wanted, 0.1)
        np.testing.assert_allclose(one.weight[:, kept], weight, atol=1e-5)
        np.testing.assert_allclose(net.get_submodule(one.layer).weight.detach(), one.weight, atol=1e-6)
        inputs = np.maximum(inputs[:, kept] @ weight.T + bias, 0)
    assert not found[1].weight[:, 1].any()
    np.testing.assert_allclose(found[2].weight, closed_form(inputs, targets, 0.1)[0], atol=1e-4)


def test_forward_ridge_of_an_untrained_subnetwork(tmp_path):
    data = ss.load_data("digits") if hasattr(ss, "load_data") else "digits"
    accuracy = {}
    for readout in ("ridge", "forward_ridge"):
        recipe = ss.Recipe(**NONE, readout=readout)
        subnet = ss.extract("lenet_300_100", data, "random", density=0.5, recipe=recipe, progress=False)
        accuracy[readout] = subnet.metrics["val_accuracy"]
    assert subnet.metrics["readout"]["layers"] == ["1", "3", "5"]
    assert subnet.density == pytest.approx(0.5, abs=1e-3)
    assert accuracy["forward_ridge"] > accuracy["ridge"]
    path = tmp_path / "subnet.safetensors"
    subnet.save(path)
    assert ss.evaluate(ss.Subnetwork.load(path))["accuracy"] == accuracy["forward_ridge"]


def test_forward_ridge_leaves_layers_that_do_not_read_one_vector_an_item():
    found = check_readout(conv_bn(), create_task("classification"), pictures().first(), "forward_ridge")
    assert len(found) == 1


def test_a_run_without_training_has_a_readout(tmp_path):
    def never():
        raise AssertionError("test data was opened")

    data = regression()
    recipe = ss.Recipe(**NONE, readout="ridge")
    subnet = ss.extract(linear(), data, "random", density=1.0, task="regression", recipe=recipe, out=tmp_path / "run")
    assert subnet.metrics["readout"]["layer"] == "2"
    assert subnet.metrics["val_rmse"] < 0.02
    assert ss.evaluate(subnet, data=data)["rmse"] == pytest.approx(subnet.metrics["val_rmse"])
    again = ss.Subnetwork.load(tmp_path / "run/subnetwork.safetensors")
    assert again.sha256 == subnet.sha256
    fitted = ss.evaluate(subnet, data=replace(data, _test=never), readout="ridge")
    assert fitted["rmse"] == pytest.approx(subnet.metrics["val_rmse"])


@pytest.mark.parametrize("name", ["synflow", "gumbel", "edge_popup", "magnitude"])
def test_masks_density_and_the_other_weights_stay(name):
    epochs = 2 if name in ("gumbel", "edge_popup") else 0
    options = {"extractor": {"name": name, "density": 0.3}, "seed": 3}
    plain, solved = (
        run_config(
            ss.RunConfig(**options, recipe=ss.Recipe(**{**NONE, "epochs": epochs}, readout=readout)),
            module=mlp(),
            init="kaiming_normal",
            data=points(),
        )
        for readout in (None, "ridge")
    )
    assert all(torch.equal(plain.masks[key], solved.masks[key]) for key in plain.masks)
    before, after = (one.effective_weights() for one in (plain, solved))
    assert torch.equal(before["0.weight"], after["0.weight"])
    assert not after["2.weight"][~solved.masks["2.weight"]].any()
    assert not torch.equal(before["2.weight"], after["2.weight"])
    assert solved.metrics["val_accuracy"] > max(0.5, plain.metrics["val_accuracy"] - 0.1)


def test_several_densities_have_their_own_readouts(tmp_path):
    settings = ss.RunConfig(
        extractor={"name": "gumbel", "density": 0.5}, recipe=ss.Recipe(**{**NONE, "epochs": 1}, readout="ridge")
    )
    subnet = run_config(settings, tmp_path / "run", module=mlp(), data=points(), densities=(0.2,))
    [row] = subnet.metrics["curve"]
    small = ss.Subnetwork.load(row["subnetwork"])
    assert small.density == pytest.approx(0.2, abs=0.005)
    assert ss.evaluate(small, network=mlp(), data=points())["accuracy"] == pytest.approx(row["val_accuracy"])
    assert ss.evaluate(small, network=mlp(), data=points(), readout="ridge")["sha256"] == small.sha256


def test_untrained_batch_norm_gets_statistics_first():
    data = pictures()
    subnet = ss.extract(conv_bn(), data, "random", density=1.0, recipe=ss.Recipe(**NONE, readout="ridge", batch_size=108))
    images = (data.train.inputs.float() / 255 - data.mean.view(-1, 1, 1)) / data.std.view(-1, 1, 1)
    seen = subnet.network()[0](images)
    torch.testing.assert_close(subnet.state["1.running_mean"], seen.mean((0, 2, 3)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(subnet.state["1.running_var"], seen.var((0, 2, 3)), atol=1e-4, rtol=1e-4)


class Squashed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = mlp()

    def forward(self, x):
        return self.inner(x).log_softmax(1)


def test_what_has_no_readout_is_refused_before_training():
    def refused(match, net=None, task=None, data=None, weights="values", **recipe):
        settings = {"recipe": ss.Recipe(**{**NONE, "epochs": 5}, readout="ridge", **recipe), "weights": weights}
        settings |= {} if task is None else {"task": task}
        own = {"module": net} if net is not None else {}
        with pytest.raises(UserError, match=match):
            run_config(
                ss.RunConfig(extractor="random" if weights == "values" else "gumbel", **settings),
                data=data or points(),
                init="kaiming_normal",
                on_step=lambda clock: pytest.fail("trained"),
                **own,
                out=None,
            )

    refused("the outputs of Squashed are not those of its linear layer inner.2", Squashed())
    refused(r"unknown linear layer of Sequential '5' \(readout_layer\): valid: 0, 2", mlp(), readout_layer="5")
    refused("the outputs of Sequential are not those of its linear layer 0", mlp(), readout_layer="0")
    refused("no class weights", mlp(), task={"name": "classification", "class_weights": "balanced"})
    labels = (points().train.inputs > 0)[:, :3].long()
    refused(
        "for the tasks classification and regression, got multi_label",
        mlp(),
        task="multi_label",
        data=from_user((points().train.inputs, labels), labels=create_task("multi_label").kind_of_labels),
    )
    refused("Conv2d has no linear layer|has no linear layer", nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten()), data=pictures())
    with pytest.raises(UserError, match="set one of the two"):
        ss.Recipe(readout="ridge", store_relevance=True)
    with pytest.raises(UserError, match="5 training items are too few to choose the penalty: set readout_penalty"):
        solve_readout(mlp(), create_task("classification"), lambda: [points().train.first(5)], ["2"])


def test_a_seed_cannot_store_a_readout_unless_the_layer_is_dense(tmp_path):
    def made(**more):
        settings = ss.RunConfig(
            network="lenet_300_100",
            data={"name": "digits", "limit": 100},
            extractor="gumbel",
            weights="seed",
            recipe=ss.Recipe(**{**NONE, "epochs": 1}, readout="ridge"),
            **more,
        )
        return ss.run(settings, tmp_path / "run")

    with pytest.raises(UserError, match=r"readout changes 5, .*add 5 to dense_layers"):
        made()
    subnet = made(dense_layers=["5"])
    again = ss.Subnetwork.load(tmp_path / "run/subnetwork.safetensors")
    assert again.sha256 == subnet.sha256
    assert subnet.metrics["bytes"] < 60_000  # no weights but those of the last layer


def test_evaluate_solves_the_readout_of_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = {"name": "digits", "limit": 400}
    subnet = ss.extract("lenet_300_100", small, "random", density=0.3, recipe=ss.Recipe(**NONE), out="run")
    before = (tmp_path / "run/subnetwork.safetensors").read_bytes()
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "run/subnetwork.safetensors", "--split", "test", "--readout", "ridge"])
    assert ended.value.code == 0
    assert "readout" in (out := capsys.readouterr().out)
    assert "5 by ridge regression on 360 items" in out
    assert (tmp_path / "run/subnetwork.safetensors").read_bytes() == before
    with pytest.raises(SystemExit):
        main(["evaluate", "run/subnetwork.safetensors", "--readout", "ridge", "--readout-penalty", "1", "--json"])
    record = json.loads(capsys.readouterr().out)
    assert record["readout"] == {"kind": "ridge", "layer": "5", "penalty": 1, "chosen": False, "items": 360}
    assert record["accuracy"] > ss.evaluate(subnet)["accuracy"]
    for words, message in (
        (["--readout", "svm"], "readout must be ridge or forward_ridge, got 'svm'"),
        (["--readout", "ridge", "--readout-penalty", "0"], "readout_penalty must be above 0, got 0"),
    ):
        with pytest.raises(SystemExit):
            main(["evaluate", "run/subnetwork.safetensors", *words])
        assert message in capsys.readouterr().err


def test_test_items_are_never_fitted():
    """Data of one part are all of the test split, so no items are left to fit."""
    x, y = points().train.inputs, points().train.labels
    subnet = ss.extract(mlp(), (x, y), "random", density=0.5, recipe=ss.Recipe(**NONE))
    assert ss.evaluate(subnet, "test", data=(x, y))["items"] == len(x)
    with pytest.raises(UserError, match="all of it for testing: pass it in parts"):
        ss.evaluate(subnet, "test", data=(x, y), readout="ridge")
    parts = {"train": (x[:200], y[:200]), "test": (x[200:], y[200:])}
    assert ss.evaluate(subnet, "test", data=parts, readout="ridge")["readout"]["items"] == 180  # a tenth is validation
