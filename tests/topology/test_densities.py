"""One training, several densities: each subnetwork is what a run that asked for it would have found."""

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
import torch
from toys import accuracy, mlp, points, run_config

from subnet_search import Recipe, RunConfig, Subnetwork
from subnet_search.cli import main
from subnet_search.core.errors import Interrupted, UserError
from subnet_search.core.search_domains import Real
from subnet_search.data import Data
from subnet_search.extractors import Paper, Paradigm, RelevanceLearner, create
from subnet_search.extractors.author import Density
from subnet_search.topology.select import count

ASKED = (0.1, 0.5, 0.2)


def found(extractor, out=None, densities=ASKED, epochs=3, data=None, **more):
    recipe = Recipe(epochs=epochs, batch_size=32, threads=1, device="cpu")
    settings = RunConfig(extractor=extractor, recipe=recipe, seed=3)
    return run_config(settings, out, module=mlp(), data=data or points(400), densities=densities, **more)


def curve(subnet):
    return {row["asked"]: row for row in subnet.metrics["curve"]}


@pytest.mark.parametrize("name", ["gumbel", "supermask"])
def test_every_subnetwork_is_that_of_a_run_of_its_own(name):
    """Ranked in the end, relevance does not depend on the density: one run and many find the same bits."""
    rows = curve(found({"name": name}))
    assert list(rows) == [0.5, 0.2, 0.1]
    for density, row in rows.items():
        own = found({"name": name, "density": density}, densities=())
        assert row["sha256"] == own.sha256
        assert (row["val_accuracy"], row["density"]) == (own.metrics["val_accuracy"], own.density)


def test_the_runs_own_subnetwork_is_as_without():
    with_, without = found({"name": "edge_popup"}), found({"name": "edge_popup"}, densities=())
    assert with_.sha256 == without.sha256
    assert "curve" not in without.metrics
    same = ("val_accuracy", "kept", "steps", "passes", "collapsed")
    assert all(with_.metrics[key] == without.metrics[key] for key in same)


def test_files_hold_what_the_rows_say(tmp_path):
    data = points(400)
    subnet = found({"name": "edge_popup", "density": 0.3}, tmp_path, data=data)
    assert json.loads((tmp_path / "curve.json").read_text()) == subnet.metrics["curve"]
    assert {p.name for p in tmp_path.glob("subnetwork*")} == {
        "subnetwork.safetensors",
        *(f"subnetwork-{density}.safetensors" for density in ASKED),
    }
    for density, row in curve(subnet).items():
        one = Subnetwork.load(tmp_path / f"subnetwork-{density}.safetensors")
        assert (one.sha256, str(tmp_path / f"subnetwork-{density}.safetensors")) == (row["sha256"], row["subnetwork"])
        assert one.masks.kept == row["kept"] == count(density, one.masks.numel)
        assert one.origin.extractor["density"] == density
        assert one.metrics["val_accuracy"] == row["val_accuracy"]
        assert accuracy(one.on(mlp()), data.val) == pytest.approx(row["val_accuracy"])
    assert subnet.origin.extractor["density"] == 0.3


class Half(RelevanceLearner):
    """Gates that are neither 0 nor 1: they must reach every file once, and not pile up."""

    name = "half"
    paper = Paper("Nobody", 2020, "0000.00000", "A test", "w / 2")
    paradigm = Paradigm("learned", "initial", "fixed", False)
    rescale: Literal["none"] = "none"
    density: Annotated[Density, Real(0.1, 0.5)] = 0.4

    def initial(self, weight, rng):
        return weight.abs()

    def sample(self, net, clock):
        return {name: m / 2 for name, m in net.relevance.items()}

    def finish(self, net):
        return net.units.keep(net.relevance, self.density)

    def gates(self, net, masks):
        return {name: mask / 2 for name, mask in masks.items()}


def test_soft_gates_are_settled_once_in_each(tmp_path):
    subnet = found(Half(), tmp_path, epochs=0)
    before = mlp().state_dict()
    for one in (subnet, *(Subnetwork.load(tmp_path / f"subnetwork-{density}.safetensors") for density in ASKED)):
        assert all(torch.equal(w, before[name] / 2 * one.masks[name]) for name, w in one.weights.items())


def watched(opened):
    given = points(400)
    return Data(given.name, given.train, given.val, given.classes, _test=lambda: opened.append(1) or given.val)


def test_the_test_split_is_opened_once_and_last():
    opened, seen = [], []
    subnet = found("gumbel", data=watched(opened), on_epoch=lambda epoch: seen.append(list(opened)))
    assert seen == [[], [], []]
    assert opened == [1]
    assert all(row["test_accuracy"] == pytest.approx(row["val_accuracy"]) for row in curve(subnet).values())


def test_killed_after_training_and_resumed(tmp_path):
    def kill():
        raise Interrupted("killed")

    given, whole, steps = points(400), found("gumbel", tmp_path / "whole"), []
    broken = Data(given.name, given.train, given.val, given.classes, _test=kill)
    with pytest.raises(Interrupted):
        found("gumbel", tmp_path / "part", data=broken)
    assert not (tmp_path / "part" / "curve.json").exists()
    resumed = found("gumbel", tmp_path / "part", resume=True, on_step=steps.append)
    assert steps == []
    assert [row["sha256"] for row in resumed.metrics["curve"]] == [row["sha256"] for row in whole.metrics["curve"]]
    assert resumed.sha256 == whole.sha256


def test_a_finished_run_is_only_looked_at(tmp_path):
    first, steps = found("gumbel", tmp_path), []
    for densities in (ASKED, (0.2,), ()):
        again = found("gumbel", tmp_path, densities=densities, resume=True, on_step=steps.append)
        assert again.summary() == first.summary()
    assert steps == []
    with pytest.raises(UserError, match=r"is finished and has no density 0.3: choose another folder"):
        found("gumbel", tmp_path, densities=(0.2, 0.3), resume=True)


@pytest.mark.parametrize(
    ("extractor", "densities", "message"),
    [
        (
            "random",
            (0.5,),
            r"random cannot give several .* subnet-search compare, or use one of .*edge_popup, gumbel, .*supermask",
        ),
        (create("redraw"), (0.5,), "redraw cannot give several densities"),
        ("gumbel", (0.5, 1.5), r"densities are fractions, from 0 to 1: 1\.5 % is 0\.015"),
        ("gumbel", (0,), "density: input should be greater than 0, got 0"),
        ("edge_popup", (0.5, 0.001), r"density 0\.001 keeps 1 of 416 weights, fewer than the network's 2 layers"),
    ],
)
def test_mistakes_are_found_before_training(tmp_path, extractor, densities, message):
    with pytest.raises(UserError, match=message):
        found(extractor, tmp_path / "run", densities, on_step=pytest.fail)
    assert not (tmp_path / "run").exists()


def test_methods_that_train_weights_afterwards_cannot():
    class Afterwards(Half):
        paradigm = Paradigm("learned", "trained", "fixed", True)

    with pytest.raises(UserError, match="Afterwards cannot give several densities from one run"):
        found(Afterwards())


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs a command in an empty folder: its standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        with pytest.raises(SystemExit) as end:
            main(list(words))
        done = capsys.readouterr()
        assert end.value.code == 0, done.err
        return done

    return run


FAST = ["extract", "-s", "recipe.epochs=2", "-s", "recipe.threads=1", "-s", "network=lenet_300_100", "--densities", "0.5,0.2"]


def test_on_the_command_line(command):
    pytest.importorskip("plotly")
    done = command(*FAST, "--json")
    rows = json.loads(done.out)["curve"]
    assert [row["subnetwork"] for row in rows] == [f"runs/extract/subnetwork-{density}.safetensors" for density in (0.5, 0.2)]
    assert all(0 < row["test_accuracy"] < 1 for row in rows)
    assert done.err.endswith("plot: runs/extract/curve.html\n")
    assert "gumbel, lenet_300_100, digits" in Path("runs/extract/curve.html").read_text()


def test_without_plotly_all_but_the_plot_is_there(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    done = command(*FAST)
    assert re.search(r"0\.2 .* % .* 10,040 .* subnetwork-0\.2\.safetensors", done.out)
    assert done.err.endswith("no plot: plots need plotly: pip install 'subnet-search[plots]'\n")
    assert Path("runs/extract/curve.json").exists()
    assert not Path("runs/extract/curve.html").exists()
