"""What a study can optimise: each measure beside what the run says, and before training beside after it."""

import math
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from toys import mlp, points

import subnet_search as ss
from subnet_search.core import timing
from subnet_search.core.errors import Interrupted, RunError, UserError
from subnet_search.data import from_user, load
from subnet_search.deploy.export import export
from subnet_search.deploy.exported_network import read_artifact
from subnet_search.evaluation.latency import latency
from subnet_search.evaluation.robustness import noise_curve
from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.config_file import check
from subnet_search.extraction.evaluate import evaluate
from subnet_search.extraction.extract import run
from subnet_search.extractors import extractor_names, get_extractor
from subnet_search.extractors.base import layer_field, only_begins
from subnet_search.nets import build, gated_layers
from subnet_search.search.spec.metrics import (
    at_epoch,
    before_training,
    check_isometry,
    measure,
    measures_of,
    of_topology,
    parse_constraint,
)
from subnet_search.search.studies.launcher import run_study
from subnet_search.tasks import Classification, task_of

DATA = load({"name": "digits", "limit": 200})
TOPOLOGY = ("density", "parameters", "flops", "flops_ratio")
OWN = "test_measures:factory"  # a network of the user's own


def factory(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, num_classes))


def config(extractor, network="small_conv", **recipe):
    """54 steps, enough for every method's rounds."""
    recipe = {"epochs": 3, "batch_size": 10, "threads": 1, "device": "cpu", **recipe}
    values = {"network": network, "data": {"name": "digits", "limit": 200}, "extractor": extractor, "recipe": recipe}
    return check(RunConfig, values).resolve()


def finished(extractor, network="small_conv", **more):
    return run(config(extractor, network), data=DATA, **more)


@pytest.fixture(scope="module")
def gumbel():
    return finished({"name": "gumbel", "density": 0.25})


class Slow(nn.Module):
    """A pass takes 0.3 s by a clock of its own, and says how it was called."""

    def __init__(self, seconds=0.3):
        super().__init__()
        self.weight, self.seconds, self.now, self.calls = nn.Parameter(torch.zeros(2)), seconds, 0.0, []

    def forward(self, x: Tensor) -> Tensor:
        self.now += self.seconds
        self.calls.append((tuple(x.shape), self.training, torch.is_inference_mode_enabled(), torch.get_num_threads()))
        return x


@pytest.mark.parametrize(("seconds", "passes", "timed"), [(0.3, 4, 2), (5.0, 2, 1), (0.001, 55, 50)])
def test_latency_ends_in_time(monkeypatch, seconds, passes, timed):
    net = Slow(seconds)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: net.now)
    found = latency(net.train(), (1, 4, 4), batch=3, threads=2)
    assert net.calls == [((3, 1, 4, 4), False, True, 2)] * passes
    assert (found.low, found.median, found.high) == pytest.approx((1000 * seconds,) * 3)
    assert found.count == timed
    assert net.training
    assert torch.get_num_threads() == 1


def test_latency_leaves_the_first_passes_out(monkeypatch):
    net = Slow()
    pace = iter([9.0] * 5 + [0.001, 0.002, 0.003, 0.004, 0.005])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: net.now)
    net.register_forward_pre_hook(lambda *_: setattr(net, "seconds", next(pace)))
    found = latency(net, (2,), seconds=100, passes=5)
    assert (found.low, found.median, found.high, found.count) == (pytest.approx(2), pytest.approx(3), pytest.approx(4), 5)


def test_latency_of_a_real_network():
    small, large = (nn.Sequential(nn.Flatten(), nn.Linear(64, n), nn.Linear(n, 10)) for n in (8, 20000))
    fast, slow = latency(small, (1, 8, 8)), latency(large, (1, 8, 8), batch=16)
    assert 0 < fast.low <= fast.median <= fast.high
    assert fast.count == 50
    assert fast.median < slow.median  # 32 million multiplications against 600


def test_every_measure_of_a_run(gumbel):
    def never():
        raise AssertionError("test data was opened")

    names = [name for name in measures_of(Classification()) if name not in ("functional_distance", "ensemble_accuracy")]
    values = measure(names, gumbel, replace(DATA, _test=never))
    assert list(values) == names
    judged = evaluate(gumbel, data=DATA, noise=True)
    assert values["val_accuracy"] == judged["accuracy"] == gumbel.metrics["val_accuracy"]
    assert values["val_nll"] == pytest.approx(judged["nll"])
    assert values["val_ece"] == pytest.approx(judged["ece"])
    rows = judged["noise"]
    assert rows[0]["level"] == 0
    assert values["robustness"] == pytest.approx(sum(row["accuracy"] for row in rows[1:]) / len(rows[1:]))
    assert values["isometry"] == evaluate(gumbel, data=DATA, isometry=True)["isometry"] > 0
    assert values["density"] == gumbel.density
    assert values["parameters"] == gumbel.masks.kept
    # Outputs a weight takes part in: 4 * 4 positions of the first convolution, 2 * 2 of the second, 1 of linear layers.
    positions = dict(zip(gumbel.masks, (16, 4, 1, 1), strict=True))
    assert values["flops"] == sum(int(mask.sum()) * positions[name] for name, mask in gumbel.masks.items())
    dense = sum(mask.numel() * positions[name] for name, mask in gumbel.masks.items())
    assert values["flops_ratio"] == pytest.approx(values["flops"] / dense)
    assert values["seconds"] == gumbel.metrics["seconds"]
    assert 0 < values["latency"] < 1000


def test_bytes_are_those_of_the_file_and_no_others(gumbel, tmp_path):
    stored = {weights: gumbel.save(tmp_path / f"{weights}.safetensors", weights) for weights in ("values", "seed")}
    for weights, size in stored.items():
        assert abs(measure(["bytes"], gumbel, DATA, weights=weights)["bytes"] - size) < 40
    assert stored["seed"] < 0.5 * stored["values"]
    elsewhere = replace(gumbel, metrics={**gumbel.metrics, "seconds": 123.456789, "subnetwork": "/a/longer/path"})
    assert measure(["bytes"], gumbel, DATA) == measure(["bytes"], elsewhere, DATA)


def test_same_values_on_any_number_of_threads(gumbel):
    here = measure(["robustness", "bytes"], gumbel, DATA)
    torch.set_num_threads(2)
    try:
        assert measure(["robustness", "bytes"], gumbel, DATA) == here
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_no_number_is_named(gumbel, value):
    broken = replace(gumbel, metrics={**gumbel.metrics, "val_nll": value})
    assert measure(["val_accuracy"], broken, DATA)
    with pytest.raises(RunError, match=f"^val_nll of this subnetwork is {value}"):
        measure(["val_accuracy", "val_nll"], broken, DATA)


def test_the_distance_to_the_dense_network(tmp_path):
    whole = finished({"name": "magnitude", "density": 1.0})
    torch.save(whole.state_dict(), tmp_path / "dense.pt")
    start = {"name": "small_conv", "state": str(tmp_path / "dense.pt")}
    subnet = run(config({"name": "magnitude", "density": 0.05}, start, epochs=0), data=DATA)
    found = measure(["functional_distance"], subnet, DATA)["functional_distance"]
    forward = [net.eval() for net in (subnet.network(), whole.network())]
    rows = noise_curve(*forward, DATA.val, torch.tensor(subnet.origin.mean), torch.tensor(subnet.origin.std))
    assert found == pytest.approx(sum(row["distance"] for row in rows[1:]) / 7)
    less = run(config({"name": "magnitude", "density": 0.9}, start, epochs=0), data=DATA)
    assert 0 < measure(["functional_distance"], less, DATA)["functional_distance"] < found
    own = run(config({"name": "magnitude", "density": 0.05, "start": 0}, epochs=0), module=whole.network(), data=DATA)
    assert measure(["functional_distance"], own, DATA, whole.network())["functional_distance"] == pytest.approx(found)
    with pytest.raises(UserError, match=r"start from trained weights, network\.state"):
        measure(["functional_distance"], whole, DATA)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"objective": "functional_distance"}, "start from trained weights, network.state"),
        ({"constraints": {"functional_distance": "<= 0.1"}}, "start from trained weights"),
        ({"objective": "prune_potential"}, "it compares several densities, and a trial has one"),
        ({"objective": "val_top5_accuracy"}, "val_top5_accuracy needs more than 5 classes, and given data has 3"),
    ],
)
def test_metrics_that_no_trial_can_have_are_refused_before_the_first(tmp_path, more, message):
    run = {"network": "lenet_300_100", "data": {"name": "digits", "limit": 200}, "extractor": "magnitude"}
    given = {"network": mlp(), "data": points(60)} if "top5" in str(more) else {}
    spec = {"name": "refused", "run": {} if given else run, "space": {"extractor.density": {"float": [0.1, 0.5]}}, **more}
    with pytest.raises(UserError, match=message):
        run_study({**spec, "trials": 1}, storage=f"sqlite:///{tmp_path}/s.db", **given)


def test_unknown_measures_are_told_the_nearest(gumbel):
    with pytest.raises(UserError, match="unknown measure 'latncy': did you mean 'latency'"):
        measure(["latncy"], gumbel, DATA)


def test_a_network_of_the_users_own():
    settings = config({"name": "random", "density": 0.5}, OWN)
    subnet = run(settings, data=DATA)
    with pytest.raises(UserError, match="pass it"):
        measure(["robustness"], subnet, DATA)
    net = build(settings.network, DATA.shape, DATA.classes, 0)
    assert measure(["robustness", "val_accuracy"], subnet, DATA, net)["robustness"] > 0.1
    assert before_training(settings, DATA) == measure(TOPOLOGY, subnet, DATA)


def test_epochs_say_what_the_run_says():
    epochs = []
    subnet = finished({"name": "rigl", "density": 0.2}, on_epoch=epochs.append)
    assert len(epochs) == 3
    assert at_epoch(epochs[-1]) == measure(at_epoch(epochs[-1]), subnet, DATA)
    available = {name for name, kind in measures_of(Classification()).items() if kind.available == "epoch"}
    assert set(at_epoch(epochs[0])) == available


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in extractor_names() if "weight" in get_extractor(name).paradigm.units])
def test_what_is_certain_before_training_is_so_after(name):
    method = get_extractor(name)
    shared = layer_field(method)
    settings = [{}, {"density": 0.2}]
    if shared:
        settings += [{"density": 0.2, shared: "erk"}, {"density": 0.2, shared: {"0": 3, "2": 2, "5": 1, "7": 5}}]
    for extra in settings if "density" in method.model_fields else [{}]:
        before = before_training(config({"name": name, **extra}), DATA)
        after = measure(TOPOLOGY, finished({"name": name, **extra}), DATA)
        assert {key: after[key] for key in before if "flops" not in key} == {
            key: value for key, value in before.items() if "flops" not in key
        }
        if extra:
            assert "parameters" in before
        if len(extra) == 2:
            assert before["flops"] == pytest.approx(after["flops"], abs=2 * 16)  # a weight of a layer has 16 positions at most
            assert before["flops_ratio"] == pytest.approx(after["flops_ratio"], rel=1e-3)


@pytest.mark.parametrize("name", ["random", "rigl", "set", "mest", "edge_popup", "biprop", "iterand"])
def test_flops_are_certain_where_layers_have_their_shares(name):
    before = before_training(config({"name": name, "density": 0.3}), DATA)
    assert before == measure(TOPOLOGY, finished({"name": name, "density": 0.3}), DATA)


def test_flops_are_not_certain_where_weights_compete():
    for extractor in ({"name": "snip", "density": 0.1}, {"name": "granet"}, {"name": "gumbel", "density": 0.2}):
        assert set(before_training(config(extractor), DATA)) == {"density", "parameters"}
    assert before_training(config({"name": "gumbel"}), DATA) == {}
    dense = before_training(config({"name": "snip", "density": 1.0}), DATA)
    assert (dense["density"], dense["flops_ratio"]) == (1.0, 1.0)


def test_what_cannot_be_is_told_before_training():
    with pytest.raises(UserError, match="fewer than the network's 4 layers"):
        before_training(config({"name": "random", "density": 1e-5}), DATA)
    with pytest.raises(UserError, match="does not accept inputs of shape"):
        before_training(config({"name": "random", "density": 0.5}, OWN), points(40, 7))


def test_the_topology_is_told_once_it_is_certain(tmp_path):
    assert {name for name in extractor_names() if only_begins(get_extractor(name))} == {
        "random",
        "snip",
        "snip_iterative",
        "grasp",
        "synflow",
        "shuffled",
    }
    settings, told = config({"name": "snip", "density": 0.1}), []
    with pytest.raises(Interrupted):
        run(settings, tmp_path, data=DATA, on_begin=told.append, should_stop=lambda: True)
    subnet = run(settings, tmp_path, data=DATA, resume=True, on_begin=told.append)
    assert len(told) == 2
    assert all(masks.same(subnet.masks) for masks in told)
    assert of_topology(settings, DATA, told[0]) == measure(TOPOLOGY, subnet, DATA)
    finished({"name": "rigl", "density": 0.1}, on_begin=told.append)
    assert len(told) == 2


def test_a_search_can_stop_a_run_by_its_topology(tmp_path):
    """As a trial is pruned whose constraint cannot be kept: nothing is trained."""

    def refuse(masks):
        raise RunError("too many")

    steps = []
    with pytest.raises(RunError, match="too many"):
        finished({"name": "synflow", "density": 0.1}, on_begin=refuse, on_step=steps.append)
    assert steps == []


CONSTRAINTS = [
    ("flops", "<= 3e5", 3e5, 0.0),
    ("flops", "<=300000", 300001, 1.0),
    ("latency", " < 2.5 ", 2.0, -0.5),
    ("val_accuracy", ">= 0.9", 0.8, 0.1),
    ("val_accuracy", ">0.5", 0.75, -0.25),
    ("parameters", "<= 1000", 1001, 1.0),
    ("density", "<= 0.1", 0.2, 0.0999),  # one part in a thousand less than 0.1
]


@pytest.mark.parametrize(("name", "text", "value", "violation"), CONSTRAINTS)
def test_constraints(name, text, value, violation):
    assert parse_constraint(name, text).violation(value) == pytest.approx(violation)


def test_constraints_at_their_bound():
    assert parse_constraint("seconds", "< 2").violation(2) > 0
    assert parse_constraint("seconds", "> 2").violation(2) > 0
    assert parse_constraint("seconds", ">= 2").violation(2) == 0
    # 0.1 of a ResNet-20's 268,048 weights is 26,804.8: the 26,805 that are kept are no reason not to train it.
    asked = before_training(config({"name": "rigl", "density": 0.1}, "resnet20"), DATA)
    assert asked["density"] > 0.1
    assert parse_constraint("density", "<= 0.1").violation(asked["density"]) <= 0
    assert str(parse_constraint("density", "<=0.1")) == "density <= 0.1"


@pytest.mark.parametrize("text", [0.1, "0.1", "== 0.1", "=< 0.1", "<= a lot", "<= nan", "< inf", "<= 10 %", "", None, ["<= 1"]])
def test_what_is_no_constraint(text):
    told = 'a constraint is one of <=, <, >=, > and a number, as in density: "<= 0.1"; got density: '
    with pytest.raises(UserError, match=re.escape(told + repr(text))):
        parse_constraint("density", text)


def test_isometry_needs_float_inputs():
    tokens = task_of("language_modeling")
    assert "isometry" not in measures_of(tokens)
    with pytest.raises(UserError, match="isometry needs float inputs and a built-in task, got language_modeling"):
        parse_constraint("isometry", ">= 0.1", tokens)


def test_token_ids_are_refused_before_a_trial_trains():
    net, tokens = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(12, 2)), torch.randint(0, 5, (60, 4))
    with pytest.raises(UserError, match="isometry needs float inputs"):
        check_isometry(config("snip"), from_user((tokens, tokens[:, 0] % 2)), net)
    check_isometry(config("snip"), DATA)


def test_constraints_on_nothing_known():
    with pytest.raises(UserError, match="unknown measure 'flop': did you mean 'flops'"):
        parse_constraint("flop", "<= 1")


def size(net):
    return sum(parameter.numel() for parameter in net.parameters())


def test_evaluate_times_what_is_in_the_file_beside_the_dense_network(tmp_path, monkeypatch):
    timed = []

    def faster_without(nets, shape, **_):
        timed.append({name: size(net) for name, net in nets.items()})
        return [{"batch": 1, "faster": timed[-1]["exported"] < timed[-1]["dense"]}]

    monkeypatch.setattr("subnet_search.extraction.evaluate.measured", faster_without)
    settings = {**config({"name": "random", "density": 0.5}).given(), "unit": "channel"}
    channels, weights = run(check(RunConfig, settings), data=DATA), finished({"name": "random", "density": 0.5})
    whole = size(weights.network())
    export(channels, "compact", tmp_path / "small.safetensors", seconds=0.01)
    compact = read_artifact(tmp_path / "small.safetensors")
    for subnet, compacted in ((channels, True), (weights, False), (compact, False)):
        record = evaluate(subnet, data=DATA, latency=True)
        assert "latency" not in evaluate(subnet, data=DATA)
        assert timed[-1]["dense"] == whole
        assert timed[-1]["exported"] == (whole if subnet is weights else size(compact.network()))
        assert (record["compacted"], record["faster"]) == (compacted, subnet is not weights)
        assert (record["advice"] is None) == record["faster"]
    assert timed[0] == timed[2]
    assert "use unit=channel and --to compact" in evaluate(weights, data=DATA, latency=True)["advice"]


def test_evaluate_measures_milliseconds_at_three_batch_sizes(gumbel):
    rows = evaluate(gumbel, data=DATA, latency=True)["latency"]
    assert [(row["batch"], row["threads"]) for row in rows] == [(1, 1), (16, 1), (256, 1)]
    for row in rows:
        assert all(0 < row[name]["low"] <= row[name]["median"] <= row[name]["high"] < 1000 for name in ("dense", "exported"))
        assert row["speedup"] == row["dense"]["median"] / row["exported"]["median"]


def test_evaluate_takes_the_dense_network_that_is_handed_in(monkeypatch):
    nets = {}
    monkeypatch.setattr(
        "subnet_search.extraction.evaluate.measured", lambda found, shape, **_: nets.update(found) or [{"faster": True}]
    )
    settings = config({"name": "random", "density": 0.5}, OWN)
    subnet, own = run(settings, data=DATA), factory(10)
    evaluate(subnet, network=own, data=DATA, latency=True)
    assert nets["dense"] is own
    evaluate(subnet, network=OWN, data=DATA, latency=True)
    assert size(nets["dense"]) == size(own)


def test_evaluate_times_a_network_with_gates_beside_one_without(monkeypatch):
    nets = {}
    monkeypatch.setattr(
        "subnet_search.extraction.evaluate.measured", lambda found, shape, **_: nets.update(found) or [{"faster": False}]
    )
    record = evaluate(finished({"name": "fbs"}), data=DATA, latency=True)
    assert [len(gated_layers(nets[name])) for name in ("dense", "exported")] == [0, 2]
    assert "filters that an input does not choose" in record["advice"]


def test_latency_is_that_of_the_network_without_the_channels_that_are_gone(monkeypatch):
    timed = []
    monkeypatch.setattr(
        "subnet_search.search.spec.metrics.latency", lambda net, *_, **__: timed.append(net) or SimpleNamespace(median=1.0)
    )
    settings = {**config({"name": "random", "density": 0.5}).given(), "unit": "channel"}
    subnet = run(check(RunConfig, settings), data=DATA)
    assert measure(["latency"], subnet, DATA) == {"latency": 1.0}
    assert size(timed[0]) < 0.5 * size(subnet.network())


@pytest.mark.long
def test_a_study_searches_what_restores_isometry(tmp_path, monkeypatch):
    """Two linear layers: their mean singular value is 1 with orthogonal weights, and they are no more than pruned without."""
    monkeypatch.chdir(tmp_path)
    settings = {"extractor": {"name": "l1_filters", "density": 0.5, "start": 0}, "unit": "channel", "round_to": 1}
    settings["recipe"] = {"epochs": 1, "lr": 1e-6, "threads": 1, "device": "cpu"}
    space = {"extractor.isometry": {"choice": ["none", "orthogonal"]}}
    spec = {"name": "restored", "run": settings, "space": space, "objective": "isometry", "trials": 2}
    spec["enqueue"] = [{"extractor.isometry": how} for how in ("none", "orthogonal")]
    net = nn.Sequential(nn.Linear(6, 8), nn.Identity(), nn.Linear(8, 3))
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.weight.mul_(0.1)
    study = ss.run_study(spec, network=net, data=points(60, 6), progress=False)
    assert study.best_params == {"extractor.isometry": "orthogonal"}
    assert study.best_value == pytest.approx(1, abs=1e-4)
    assert max(trial.value for trial in study.trials) > 10 * min(trial.value for trial in study.trials)
    tokens = torch.randint(0, 5, (60, 4))
    own = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises((UserError, RunError), match="isometry needs float inputs"):
        ss.run_study({**spec, "name": "ids"}, network=own, data=(tokens, tokens[:, 0] % 2), progress=False)
    assert not list(tmp_path.rglob("metrics.jsonl"))[2:]  # nothing was trained for it
