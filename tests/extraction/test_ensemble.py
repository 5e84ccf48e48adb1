"""Ensembles: what is stored, what is drawn, and how predictions are averaged."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from toys import conv_bn, mlp, pictures, points, run_config, supernet

import subnet_search as ss
from subnet_search import UserError
from subnet_search.artifact.subnetwork import Distribution
from subnet_search.cli import main
from subnet_search.core.errors import Interrupted
from subnet_search.data import in_order
from subnet_search.extraction.ensemble import Drawn, averaging
from subnet_search.nets import recompute_statistics
from subnet_search.search.spec.metrics import MEMBERS, measure
from subnet_search.tasks import create_task
from subnet_search.training import train
from subnet_search.training.weight_statistics import add_sample, mean_and_variance

FAST = {"threads": 1, "device": "cpu", "batch_size": 30}
TASK = create_task("classification")


def gumbel(density=None, **more):
    recipe = ss.Recipe(**FAST, epochs=2, store_relevance=True)
    return ss.extract(mlp(), points(), "gumbel", density=density, init="signed_constant", recipe=recipe, **more)


def weighted(net=None, data=None, **recipe):
    settings = {**FAST, "epochs": 6, "lr": 0.2, "weight_statistics": 0.5, **recipe}
    data = data or points()
    return ss.extract(net or mlp(), data, "random", density=0.4, init="kaiming_normal", recipe=ss.Recipe(**settings))


def drawn(subnet, data=None, seed=0):
    return Drawn.of(subnet, subnet.module, True, TASK, data or points(), seed)


# --- averages ---


def test_probabilities_are_averaged():
    logits = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log(), torch.tensor([[0.5, 0.5], [0.4, 0.6]]).log()
    expected = torch.tensor([[0.7, 0.3], [0.3, 0.7]])
    torch.testing.assert_close(TASK.averaged(logits).softmax(1).float(), expected)
    pixels = [one[..., None, None].expand(2, 2, 3, 4) for one in logits]
    segmented = create_task("segmentation").averaged(pixels)
    torch.testing.assert_close(segmented.softmax(1).float(), expected[..., None, None].expand(2, 2, 3, 4))
    labels = create_task("multi_label").averaged([torch.tensor([[0.9]]).logit(), torch.tensor([[0.1]]).logit()])
    assert float(labels.sigmoid()) == pytest.approx(0.5)
    values = create_task("regression").averaged([torch.tensor([1.0, 2]), torch.tensor([3.0, 6])])
    assert values.tolist() == [2, 4]


@pytest.mark.parametrize("count", [2, 7])
def test_identical_members_are_as_good_as_one(count):
    net, data = mlp(), points()
    batches = [data.val.first(999)]
    one, several = TASK.measure(net, batches), TASK.measure(averaging(TASK, [net] * count), batches)
    for name, value in one.items():
        assert several[name] == pytest.approx(value, abs=1e-12)


def test_without_variance_the_ensemble_is_the_mean():
    subnet = weighted()
    same = replace(subnet.distribution, variance={name: 0 * value for name, value in subnet.distribution.variance.items()})
    found = ss.evaluate(replace(subnet, distribution=same), data=points(), ensemble=3)["ensemble"]
    for name, value in found["metrics"].items():
        assert value == pytest.approx(found["mean_weights"][name], abs=1e-12)
    assert found["disagreement"] == 0
    assert found["each"]["accuracy"]["low"] == found["each"]["accuracy"]["high"] == found["metrics"]["accuracy"]


# --- topologies ---


def test_certain_relevance_gives_the_subnetwork():
    subnet = gumbel()
    sure = {name: 40 * mask.float() - 20 for name, mask in subnet.masks.items()}
    certain = replace(subnet, distribution=Distribution(sure))
    record = ss.evaluate(certain, data=points(), ensemble=2)
    assert record["ensemble"]["metrics"]["accuracy"] == record["accuracy"]
    assert record["ensemble"]["metrics"]["nll"] == pytest.approx(record["nll"], abs=1e-12)
    member = drawn(certain).draw(0)
    assert member.sha256 == subnet.sha256


def test_a_unit_is_kept_with_its_probability():
    subnet = gumbel()
    flat = {name: torch.full_like(value, float(np.log(0.8 / 0.2))) for name, value in subnet.distribution.relevance.items()}
    members = drawn(replace(subnet, distribution=Distribution(flat)))
    shares = [members.draw(index).density for index in range(20)]
    assert np.mean(shares) == pytest.approx(0.8, abs=0.01)
    assert len(set(shares)) > 1


@pytest.mark.parametrize(("unit", "density"), [("weight", 0.3), ("2:4", 0.5), ("channel", 0.5)])
def test_members_have_the_density_asked_for(unit, density):
    recipe = ss.Recipe(**FAST, epochs=1, store_relevance=True)
    options = {"unit": unit, "round_to": 1} if unit == "channel" else {"unit": unit}
    data = points(inputs=12)
    subnet = ss.extract(mlp(12), data, "gumbel", density=density, init="signed_constant", recipe=recipe, **options)
    found = ss.evaluate(subnet, data=data, ensemble=3)["ensemble"]["density"]
    assert found["low"] == pytest.approx(subnet.density, abs=0.02)
    assert found["high"] == pytest.approx(subnet.density, abs=0.02)
    members = [drawn(subnet, data).draw(index) for index in range(2)]
    assert not torch.equal(members[0].masks["0.weight"], members[1].masks["0.weight"])


@pytest.mark.parametrize("rescale", ["learned", "dynamic", "fan_in"])
def test_draws_depend_on_the_seed_alone(tmp_path, rescale):
    subnet = gumbel(density=0.3, rescale=rescale, out=tmp_path / "run")
    again = ss.Subnetwork.load(tmp_path / "run/subnetwork.safetensors")
    assert subnet.metrics["bytes"] > 4 * 416
    hashes = [drawn(one, seed=seed).draw(1).sha256 for one in (subnet, replace(again, module=mlp())) for seed in (0, 1)]
    assert hashes[0] == hashes[2] != hashes[1] == hashes[3]
    first = ss.evaluate(again, network=mlp(), data=points(), ensemble=2)
    assert first["ensemble"] == ss.evaluate(subnet, data=points(), ensemble=2)["ensemble"]
    member = drawn(subnet).draw(0)
    assert member.on(mlp())(torch.zeros(2, 10)).shape == (2, 3)
    assert not member.weights["0.weight"][~member.masks["0.weight"]].any()


def test_kept_weights_are_needed_in_full():
    """The weights of a module are not in the file, only those that are kept."""
    net = mlp()
    recipe = ss.Recipe(**FAST, epochs=1, store_relevance=True)
    subnet = ss.extract(net, points(), "gumbel", density=0.3, trained=False, recipe=recipe)
    assert ss.evaluate(subnet, data=points(), ensemble=2)["ensemble"]["members"] == 2
    with pytest.raises(UserError, match="the weights of this network are not those that the run started from"):
        ss.evaluate(subnet, network=mlp(seed=5), data=points(), ensemble=2)


# --- weights ---


def test_mean_and_variance_of_samples():
    values, sums = torch.randn(7, 5) * 1e-4 + 10, {}
    for value in values:
        add_sample(sums, {"w": value})
    mean, variance = mean_and_variance(sums)
    np.testing.assert_allclose(mean["w"], values.double().mean(0), rtol=1e-6)
    np.testing.assert_allclose(variance["w"], values.double().var(0, correction=0), rtol=1e-2)
    assert int(sums["count"]) == 7


def test_statistics_are_of_the_last_epochs():
    seen = []
    net = supernet({"name": "random", "density": 0.4}, mlp(), **FAST, epochs=6, lr=0.2, weight_statistics=0.5)
    train(net, points(), 0, on_epoch=lambda epoch: seen.append(net.weights["0.weight"].detach().clone()))
    mean, variance = mean_and_variance(net.weight_sums)
    assert int(net.weight_sums["count"]) == 3
    torch.testing.assert_close(mean["0.weight"], torch.stack(seen[3:]).mean(0))
    torch.testing.assert_close(variance["0.weight"], torch.stack(seen[3:]).var(0, correction=0))
    assert set(mean) == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_a_change_of_the_topology_starts_them_anew():
    """`redraw` changes until half of the run; its last change is after step 23 of 54, and 30 steps follow."""
    settings = {**FAST, "epochs": 6, "weight_statistics": 1.0, "statistics_every": 1}
    net = supernet("redraw", mlp(), **settings)
    changes = []
    train(net, points(), 0, on_step=lambda clock: changes.append({n: m.clone() for n, m in net.masks.items()}))
    last = max(i for i in range(1, 54) if any(not torch.equal(changes[i][n], changes[i - 1][n]) for n in changes[0]))
    assert int(net.weight_sums["count"]) == 54 - last
    mean, variance = mean_and_variance(net.weight_sums)
    assert not mean["0.weight"][~net.masks["0.weight"]].any()
    assert not variance["0.weight"][~net.masks["0.weight"]].any()


@pytest.mark.parametrize("stop", [8, 13, 17])
def test_a_resumed_run_has_the_same_statistics(tmp_path, stop):
    """18 steps, samples after 12 and 16: stopped before, between and after them."""
    net, steps = conv_bn(), []
    config = ss.RunConfig(
        extractor={"name": "random", "density": 0.4},
        recipe=ss.Recipe(**FAST, epochs=6, lr=0.2, weight_statistics=0.5, statistics_every=4),
    )

    def run(folder, **more):
        return run_config(config, tmp_path / folder, module=net, data=pictures(), init="kaiming_normal", **more)

    whole = run("whole")
    with pytest.raises(Interrupted):
        run("stopped", on_step=steps.append, should_stop=lambda: len(steps) == stop)
    resumed = run("stopped", resume=True)
    assert whole.distribution.samples == resumed.distribution.samples == 2
    for kind in ("mean", "variance"):
        one, other = (getattr(subnet.distribution, kind) for subnet in (whole, resumed))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_files_hold_them_for_kept_weights_alone(tmp_path):
    plain, subnet = (weighted(weight_statistics=share) for share in (None, 0.5))
    assert plain.sha256 == subnet.sha256  # the run itself is the same
    sizes = [one.save(tmp_path / f"{index}.safetensors") for index, one in enumerate((plain, subnet))]
    kept = sum(int(mask.sum()) for mask in subnet.masks.values()) + 35
    assert 8 * kept < sizes[1] - sizes[0] < 8 * kept + 1000
    again = ss.Subnetwork.load(tmp_path / "1.safetensors")
    assert again.distribution.samples == subnet.distribution.samples == 3
    assert all(torch.equal(again.distribution.mean[name], value) for name, value in subnet.distribution.mean.items())
    member, same = (drawn(replace(one, module=mlp())).draw(4) for one in (subnet, again))
    assert member.sha256 == same.sha256
    assert not member.weights["0.weight"][~member.masks["0.weight"]].any()
    spread = (member.weights["0.weight"] - subnet.distribution.mean["0.weight"]).square().sum()
    assert float(spread / subnet.distribution.variance["0.weight"].sum()) == pytest.approx(1, abs=0.5)


def test_batch_norm_has_the_statistics_of_each_member():
    data = pictures()
    subnet = weighted(conv_bn(), data, batch_size=36, epochs=6)
    members = drawn(subnet, data)
    nets = [members.network(members.draw(index)) for index in range(2)]
    assert not torch.equal(nets[0][1].running_mean, nets[1][1].running_mean)
    images = (data.train.inputs.float() / 255 - data.mean.view(-1, 1, 1)) / data.std.view(-1, 1, 1)
    torch.testing.assert_close(nets[0][1].running_mean, nets[0][0](images).mean((0, 2, 3)), atol=1e-4, rtol=1e-4)
    assert nets[0][1].momentum == 0.1
    found = ss.evaluate(subnet, data=data, ensemble=2)["ensemble"]
    again = TASK.measure(members.network(subnet), in_order(data.val, data.mean, data.std))
    assert found["recomputed"]["nll"] == again["nll"] != found["single"]["nll"]
    assert not nets[0].training


def test_only_batch_norm_is_in_training_mode_and_none_means_no_pass():
    recompute_statistics(mlp(), lambda: pytest.fail("called"))
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.9))
    x = torch.randn(40, 3)
    recompute_statistics(net, lambda: [net(part) for part in x.split(20)])
    torch.testing.assert_close(net[0].running_mean, x.mean(0))
    torch.testing.assert_close(net[0].running_var, torch.stack([part.var(0) for part in x.split(20)]).mean(0))


# --- the record, studies, and what is refused ---


def test_costs_are_those_of_all_members(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = ss.Recipe(threads=1, device="cpu", epochs=2, store_relevance=True)
    ss.extract("lenet_300_100", {"name": "digits", "limit": 300}, "gumbel", density=0.2, recipe=recipe, out="run")
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "run/subnetwork.safetensors", "--ensemble", "3", "--seed", "4", "--json"])
    assert ended.value.code == 0
    found = json.loads(capsys.readouterr().out)["ensemble"]
    assert (found["drawn"], found["members"], found["seed"], found["mean_weights"]) == ("topologies", 3, 4, None)
    assert (found["macs"], found["bytes"]) == (3 * found["single_macs"], 3 * found["single_bytes"])
    assert found["each"]["accuracy"]["low"] <= found["each"]["accuracy"]["mean"] <= found["each"]["accuracy"]["high"]
    assert 0 < found["disagreement"] < 1
    with pytest.raises(SystemExit):
        main(["evaluate", "run/subnetwork.safetensors", "--ensemble", "3"])
    out = capsys.readouterr().out
    assert "Ensemble of 3 networks with drawn topologies (seed 0)" in out
    assert "members disagree on" in out


def test_a_task_without_classes_is_led_by_its_own_metric():
    x = torch.randn(200, 4)
    recipe = ss.Recipe(**FAST, epochs=4, lr=0.05, weight_statistics=0.5)
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
    subnet = ss.extract(net, (x, x[:, :1]), "random", density=0.5, task="regression", init="kaiming_normal", recipe=recipe)
    found = ss.evaluate(subnet, data=(x, x[:, :1]), ensemble=3)["ensemble"]
    assert next(iter(found["metrics"])) == "rmse"
    assert found["disagreement"] is None


def test_what_no_ensemble_can_be_drawn_from():
    plain = ss.extract(mlp(), points(), "random", density=0.5, init="kaiming_normal", recipe=ss.Recipe(**FAST, epochs=1))
    with pytest.raises(UserError, match=r"neither relevance nor weight statistics .*: run it again with recipe"):
        ss.evaluate(plain, data=points(), ensemble=3)
    subnet = weighted()
    for count in (0, 1, 5000):
        with pytest.raises(UserError, match=f"2 to 1000 members, got {count}"):
            ss.evaluate(subnet, data=points(), ensemble=count)
    with pytest.raises(UserError, match="leave readout out"):
        ss.evaluate(subnet, data=points(), ensemble=3, readout="ridge")
    x, y = points().train.inputs, points().train.labels
    with pytest.raises(UserError, match="all of it for testing: pass it in parts"):
        ss.evaluate(subnet, "test", data=(x, y), ensemble=2)


@pytest.mark.parametrize(
    ("extractor", "recipe", "message"),
    [
        ("rigl", {"store_relevance": True}, r"rigl ends without probabilities .* \(gumbel and supermask have them\)"),
        ("concrete", {"store_relevance": True}, "concrete ends without probabilities"),
        ("edge_popup", {"store_relevance": True}, "edge_popup ends without probabilities"),
        ("gumbel", {"weight_statistics": 0.5}, "gumbel ends without training the weights of one topology"),
        ("sr_ste", {"weight_statistics": 0.5}, "sr_ste ends without training the weights of one topology"),
        ("random", {"weight_statistics": 0.1}, "are 1 sample: at least 2 are needed"),
        ("random", {"weight_statistics": 0.5, "statistics_every": 50}, "are 0 samples"),
    ],
)
def test_what_a_run_cannot_store_is_refused_before_training(extractor, recipe, message):
    settings = ss.RunConfig(extractor=extractor, recipe=ss.Recipe(**FAST, epochs=5, **recipe))
    with pytest.raises(UserError, match=message):
        run_config(
            settings, module=mlp(12), data=points(inputs=12), init="kaiming_normal", on_step=lambda _: pytest.fail("trained")
        )


def test_early_stopping_and_statistics_exclude_each_other():
    with pytest.raises(UserError, match="patience returns to an earlier epoch: set one"):
        ss.Recipe(patience=2, weight_statistics=0.5)


def test_a_topology_that_changes_to_the_end_leaves_no_statistics(caplog):
    settings = {"name": "set", "density": 0.3, "every": 6, "until": 1.0}
    recipe = ss.Recipe(**FAST, epochs=4, weight_statistics=0.5)
    subnet = run_config(ss.RunConfig(extractor=settings, recipe=recipe), module=mlp(), data=points(), init="kaiming_normal")
    assert subnet.distribution is None
    assert "since the last change of the topology; let set end earlier" in caplog.text


def test_a_study_can_optimise_the_ensemble(tmp_path):
    subnet = gumbel(density=0.3)
    value = measure(["ensemble_accuracy"], subnet, points(), mlp())["ensemble_accuracy"]
    assert value == ss.evaluate(subnet, data=points(), ensemble=MEMBERS)["ensemble"]["metrics"]["accuracy"]
    run = {"network": "lenet_300_100", "data": {"name": "digits", "limit": 200}, "recipe": {"epochs": 1, "threads": 1}}
    spec = {"name": "ensembles", "run": {**run, "extractor": "gumbel"}, "objective": "ensemble_accuracy", "trials": 1}
    spec["space"] = {"extractor.density": {"float": [0.2, 0.5]}}
    storage = f"sqlite:///{tmp_path}/s.db"
    with pytest.raises(UserError, match=r"ensemble_accuracy needs runs that store .*: set recipe\.store_relevance or"):
        ss.run_study(spec, storage=storage)
    spec["run"]["recipe"]["store_relevance"] = True
    study = ss.run_study(spec, storage=storage)
    assert 0 <= study.best_value <= 1
