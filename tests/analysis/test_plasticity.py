"""Pruning plasticity: a branch is what one whole run would have been, and nothing is run twice."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml
from toys import mlp, points, supernet

from subnet_search import Masks, Recipe, RunConfig
from subnet_search.analysis.plasticity import Plan, Prune, plasticity
from subnet_search.cli import main
from subnet_search.core.errors import Interrupted, UserError
from subnet_search.extractors import Clock
from subnet_search.training import train

FAST = {"epochs": 8, "batch_size": 45, "threads": 1, "device": "cpu", "lr": 0.05, "schedule": "cosine"}  # 8 x 6 steps
PLAN = Plan(at=(0.25, 0.5), rates=(0.5, 0.9), epochs=2, regrow=0.4)


def config(extractor="gumbel", **recipe):
    return RunConfig(extractor=extractor, recipe=Recipe(**FAST, **recipe), seed=5)


def measured(out, plan=PLAN, settings=None, **more):
    times = {"at": plan.at, "rate": plan.rates, "regrow": plan.regrow}
    return plasticity(settings or config(), plan.epochs, **times, out=out, network=mlp(), data=points(300), **more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return measured(tmp_path_factory.mktemp("whole"))


# --- the change ---


def change(regrow, weights, gradients):
    """What `Prune` does to one linear layer at half density, and the weights that it leaves."""
    weights, gradients = ({"w": torch.tensor(values).view(2, 4)} for values in (weights, gradients))
    net = SimpleNamespace(weights=weights, masks=Masks.ones(weights), gradients=gradients)
    prune = Prune(at=3, density=0.5, regrow=regrow)
    assert prune.step(net, Clock(2, 10, 0)) is None
    assert prune.step(net, Clock(4, 10, 0)) is None
    found = prune.step(net, Clock(3, 10, 0))
    after = (found.weights or weights)["w"] * found.masks["w"]
    return found.masks["w"].int().view(-1).tolist(), after.view(-1).tolist()


WEIGHTS = [1.0, -2.0, 3.0, -4.0, 5.0, -6.0, 7.0, -8.0]
GRADIENTS = [0.9, 0.0, 0.0, 0.0, -0.8, 0.1, 0.0, 0.0]


def test_pruning_keeps_the_largest():
    assert change(0.0, WEIGHTS, GRADIENTS) == ([0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 5, -6, 7, -8])


def test_regeneration_swaps_the_smallest_for_the_largest_gradients():
    # Pruned: 1 -2 3 -4. Of the four that are left half are swapped: 5 and -6 go; of the six dead ones the first and the
    # fifth have the largest gradients. The first was pruned, so it begins at zero; the fifth was never away.
    assert change(0.5, WEIGHTS, GRADIENTS) == ([1, 0, 0, 0, 1, 0, 1, 1], [0, 0, 0, 0, 5, 0, 7, -8])


def test_density_is_counted_over_all_layers():
    layers = {"a": torch.tensor([[9.0, 8.0]]), "b": torch.tensor([[7.0, 0.1, 0.2, 0.3]])}
    net = SimpleNamespace(weights=layers, masks=Masks.ones(layers), gradients=layers)
    masks = Prune(at=0, density=0.5).step(net, Clock(0, 10, 0)).masks
    assert (masks["a"].tolist(), masks["b"].tolist()) == ([[True, True]], [[True, False, False, False]])


# --- branches ---


def test_the_records_say_what_was_asked(whole):
    assert [(r["at"], r["step"], r["end"], r["rate"], r["regrow"]) for r in whole] == [
        (0.25, 12, 24, 0.5, 0.0),
        (0.25, 12, 24, 0.5, 0.4),
        (0.25, 12, 24, 0.9, 0.0),
        (0.25, 12, 24, 0.9, 0.4),
        (0.5, 24, 36, 0.5, 0.0),
        (0.5, 24, 36, 0.5, 0.4),
        (0.5, 24, 36, 0.9, 0.0),
        (0.5, 24, 36, 0.9, 0.4),
    ]
    assert [r["density"] for r in whole] == pytest.approx([0.5, 0.5, 0.1, 0.1] * 2, abs=2e-3)
    for r in whole:
        assert r["accuracy_won_back"] == r["accuracy_after"] - r["accuracy_pruned"]
        assert r["accuracy_difference"] == r["accuracy_after"] - r["accuracy_unpruned"]


@pytest.mark.parametrize("index", [2, 5])
def test_a_branch_is_what_a_whole_run_would_have_been(whole, index):
    """A run from its first step on, with the same change, goes through the same accuracies."""
    record, seen = whole[index], []
    prune = Prune(at=record["step"], density=round(1 - record["rate"], 12), regrow=record["regrow"])
    train(supernet(prune, mlp(), seed=5, **FAST), points(300), 5, on_epoch=seen.append)
    assert seen[record["step"] // 6 - 1].metrics["val_accuracy"] == record["accuracy_before"]
    assert seen[record["end"] // 6 - 1].metrics["val_accuracy"] == record["accuracy_after"]
    assert seen[record["end"] // 6 - 1].density == record["density"]


def test_the_unpruned_network_is_the_dense_run(whole):
    seen = []
    train(supernet(Prune(), mlp(), seed=5, **FAST), points(300), 5, on_epoch=seen.append)
    for record in whole:
        assert record["accuracy_before"] == seen[record["step"] // 6 - 1].metrics["val_accuracy"]
        assert record["accuracy_unpruned"] == seen[record["end"] // 6 - 1].metrics["val_accuracy"]


def test_right_after_pruning_nothing_was_trained(whole):
    net = supernet(Prune(at=24, density=0.1), mlp(), seed=5, **FAST)
    right = []

    def look(clock):
        if clock.step == 24:
            with torch.no_grad():
                data = points(300).val
                right.append((net.net.eval()(data.inputs).argmax(1) == data.labels).double().mean().item())

    train(net, points(300), 5, on_step=look)
    assert right == [whole[6]["accuracy_pruned"]]


def test_points_between_epochs_and_at_the_ends(tmp_path):
    records = measured(tmp_path, Plan((0.0, 0.3, 0.75), (0.8,), 2, regrow=0.0))
    assert [(r["step"], r["end"]) for r in records] == [(0, 12), (14, 26), (36, 48)]
    net = mlp()
    data = points(300).val
    with torch.no_grad():
        untrained = (net.eval()(data.inputs).argmax(1) == data.labels).double().mean().item()
    assert records[0]["accuracy_before"] == untrained
    assert all(r["regrow"] == 0 for r in records)


# --- what decides the result ---


def test_the_extractor_and_what_comes_with_it_do_not_count(tmp_path, whole):
    assert measured(tmp_path, settings=config("random", patience=1)) == whole
    settings = RunConfig(extractor="gumbel", recipe=Recipe(epochs=2, threads=1, device="cpu"))
    measured(tmp_path / "open", Plan((0.0,), (0.5,), 1), settings)
    written = yaml.safe_load((tmp_path / "open" / "config.yaml").read_text())
    assert written["recipe"]["lr"] == 0.1  # the recipe's default, not gumbel's 50
    assert written.keys() == {"network", "data", "recipe", "seed"}


# --- again ---


def test_stopped_and_continued(tmp_path, whole):
    """At a few steps of the dense run, at a point, and in branches."""
    for stop in (3, 12, 40, 70):
        folder, seen = tmp_path / str(stop), []
        with pytest.raises(Interrupted):
            measured(folder, on_step=lambda *_, seen=seen: seen.append(1), should_stop=lambda seen=seen, n=stop: len(seen) >= n)
        if stop == 70:
            assert len(json.loads((folder / "plasticity.json").read_text())["branches"]) == 2
        again = []
        assert measured(folder, on_step=lambda *_, again=again: again.append(1)) == whole
        assert len(again) < 36 + 8 * 12
        assert {path.name for path in folder.iterdir()} == {"config.yaml", "identity.json", "plasticity.json"}


def test_a_point_that_the_dense_run_is_past(tmp_path, whole):
    """Stopped in a branch of a late point, then asked for an earlier one too: the dense run begins again."""
    late, seen = Plan((0.5,), PLAN.rates, PLAN.epochs, PLAN.regrow), []
    with pytest.raises(Interrupted):
        measured(tmp_path, late, on_step=lambda *_: seen.append(1), should_stop=lambda: len(seen) == 40)
    assert measured(tmp_path) == whole


def test_only_what_is_new_is_run(tmp_path, whole):
    fewer, steps = Plan((0.5,), (0.9,), 2, regrow=0.0), []
    assert measured(tmp_path, fewer, on_step=lambda done, total: steps.append((done, total))) == [whole[6]]
    assert steps[-1] == (36 + 12, 36 + 12)  # the dense run to the branch's end, and the branch
    new = []
    assert measured(tmp_path, on_branch=new.append) == whole
    assert len(new) == 7
    assert measured(tmp_path, on_branch=new.append, on_step=pytest.fail) == whole
    assert len(new) == 7


def test_another_configuration_is_refused(tmp_path):
    plan = Plan((0.5,), (0.5,), 1, regrow=0.0)
    measured(tmp_path, plan)
    with pytest.raises(UserError, match=r"cannot resume .*: recipe\.momentum was 0\.9, now 0\.5"):
        measured(tmp_path, plan, config(momentum=0.5))
    (tmp_path / "plasticity.json").write_text("{")
    with pytest.raises(UserError, match=r"plasticity\.json is damaged"):
        measured(tmp_path, plan)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (
            Plan((0.5, 0.9), (0.5,), 2),
            r"2 epochs after 0\.9 of the run are beyond its end \(8 epochs\): the last point can be 0\.75",
        ),
        (Plan((0.5,), (0.5,), 9), "cannot train for 9 epochs after pruning in a run of 8"),
        (Plan((1.5,), (0.5,), 1), r"a point of the run is a fraction from 0 to 1, got 1\.5"),
        (Plan((0.5,), (1.0,), 1), "a pruning rate is a fraction between 0 and 1, got 1"),
        (Plan((0.5,), (0.5,), 1, regrow=2), "regrow is a fraction from 0 to 1, got 2"),
    ],
)
def test_mistakes_are_found_before_training(tmp_path, plan, message):
    with pytest.raises(UserError, match=message):
        measured(tmp_path / "run", plan, on_step=pytest.fail)
    assert not (tmp_path / "run").exists()


# --- the command ---


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs the command in an empty folder: its exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    text = "{network: lenet_300_100, extractor: gumbel, recipe: {epochs: 2, threads: 1, batch_size: 500}}"
    (tmp_path / "a.yaml").write_text(text)

    def run(*words):
        with pytest.raises(SystemExit) as end:
            main(["plasticity", "a.yaml", "--at", "0.5", "--rate", "0.5,0.9", *words])
        return (end.value.code, *capsys.readouterr())

    return run


def test_the_table_the_records_and_the_plot(command, tmp_path, monkeypatch):
    code, out, err = command("--epochs", "1")
    assert code == 0, err
    assert "runs/plasticity/plasticity.json" in out
    assert err.count("at 0.5, 90 % pruned, regrown: ") == 1
    monkeypatch.setitem(sys.modules, "plotly", None)
    code, out, err = command("--epochs", "1", "--out", "runs/plasticity", "--json", "--plot")
    assert (code, err) == (0, "no plot: plots need plotly: pip install 'subnet-search[plots]'\n")
    assert [(r["rate"], r["regrow"]) for r in json.loads(out)] == [(0.5, 0.0), (0.5, 0.5), (0.9, 0.0), (0.9, 0.5)]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("plotly")
    assert command("--epochs", "1", "--out", "runs/plasticity", "--plot")[0] == 0
    assert "1 epoch later, minus the unpruned network" in (tmp_path / "runs/plasticity/plasticity.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs", "2"], "error: 2 epochs after 0.5 of the run are beyond its end (2 epochs): the last point can be 0\n"),
        (["--epochs", "1", "--rate", "half"], "error: --rate takes numbers separated by commas, got 'half'\n"),
    ],
)
def test_mistakes_are_one_line(command, tmp_path, words, message):
    assert command(*words) == (2, "", message)
    assert not (tmp_path / "runs").exists()
