"""A network, data and a task that are Python objects: in studies, comparisons, sanity checks and plasticity."""

import copy
import json
import traceback

import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import subnet_search as ss
from subnet_search.cli import main
from subnet_search.core.errors import Interrupted, UserError
from subnet_search.search.storage.records import PASSED

RUN = {"extractor": {"name": "snip", "density": 0.3}, "recipe": {"epochs": 1, "batch_size": 32, "threads": 1, "device": "cpu"}}
SPEC = {"name": "own", "run": RUN, "space": {"recipe.lr": {"float": [0.001, 0.1], "log": True}}, "trials": 2}
MODULE = """
import torch
from torch import nn

def make(num_classes=None):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 2))

def data():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 20, generator=g), torch.randint(0, 2, (200,), generator=g)
    x[:, 0] += 2.0 * y
    return x, y
"""


class Margin:
    leading, directions = "margin", {"margin": "maximize"}

    def loss(self, network, batch):
        inputs, labels = batch
        return nn.functional.multi_margin_loss(network(inputs), labels)

    def metrics(self, network, batch):
        return {"margin": -self.loss(network, batch)}


@pytest.fixture(autouse=True)
def in_a_folder_with_a_module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("SUBNET_SEARCH_STORAGE", raising=False)
    (tmp_path / "own_of_tests.py").write_text(MODULE)


@pytest.fixture
def net():
    import own_of_tests

    return own_of_tests.make()


@pytest.fixture
def xy():
    import own_of_tests

    return own_of_tests.data()


def hashes(study):
    return [trial.user_attrs["sha256"] for trial in study.trials]


def said(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    return ended.value.code, out, err


# Studies


def test_objects_are_searched_continued_and_trained_again(net, xy):
    before = copy.deepcopy(net.state_dict())
    study = ss.run_study(SPEC, network=net, data=xy)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert study.user_attrs[PASSED].keys() == {"network", "weights", "data"}
    found = hashes(study)
    more = ss.run_study(SPEC, network=copy.deepcopy(net), data=xy, trials=3)
    assert hashes(more)[:2] == found
    assert hashes(ss.load_study("own")) == hashes(more)
    again = ss.retrain_trial(more.trials[2], study=more, network=net, data=xy)
    assert again.same
    with pytest.raises(UserError, match=r"^give a trial of the study, such as study\.best_trial, got 3$"):
        ss.retrain_trial(3)
    assert isinstance(again.subnetwork.on(net), nn.Module)


def test_an_interrupted_trial_of_a_lazy_network_continues_to_the_same_bits(xy):
    lazy = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 2))
    run = {**RUN, "recipe": {**RUN["recipe"], "epochs": 3}}
    whole = ss.run_study({**SPEC, "run": run, "name": "whole", "trials": 1}, network=lazy, data=xy)
    seen = []
    with pytest.raises(Interrupted):
        ss.run_study({**SPEC, "run": run}, network=lazy, data=xy, on_epoch=lambda *_: seen.append(1), should_stop=lambda: seen)
    study = ss.run_study({**SPEC, "run": run}, network=lazy, data=xy, trials=1)
    assert len(study.trials[0].user_attrs["interruptions"]) == 1
    assert hashes(study) == hashes(whole)


def test_names_and_objects_give_the_same_trials(net, xy):
    named = ss.run_study({**SPEC, "name": "named"}, network="own_of_tests:make", data="own_of_tests:data")
    assert hashes(named) == hashes(ss.run_study(SPEC, network=net, data=xy))
    assert PASSED not in named.user_attrs


def test_a_file_and_a_loader(net, xy, tmp_path):
    run = {"network": {"name": "lenet5", "init": "signed_constant"}, "extractor": "snip", "recipe": {"epochs": 1, "threads": 1}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**SPEC, "run": run}))
    study = ss.run_study(tmp_path / "study.yaml", network=net, data=DataLoader(TensorDataset(*xy), batch_size=50), trials=1)
    config = study.trials[0].user_attrs["config"]
    assert config["network"] == {
        "name": "python_object:Sequential",
        "init": "signed_constant",
        "init_density": None,
        "options": {},
        "state": None,
        "state_sha256": None,
        "partial": False,
        "trained": None,
        "new_head": False,
    }
    assert config["recipe"]["batch_size"] == 50
    assert config["data"]["name"] == "python_object:data"


def test_measures_constraints_and_initialisations_of_a_module(net, xy):
    space = {"extractor.density": {"float": [0.1, 0.9]}, "network.init": {"choice": ["keep", "signed_constant"]}}
    more = {"objective": ["val_accuracy", "latency"], "constraints": {"parameters": "<= 300", "flops_ratio": "<= 0.95"}}
    run = {**RUN, "extractor": {"name": "random", "allocation": "erk"}}
    study = ss.run_study({**SPEC, "run": run, "space": space, "trials": 4, **more}, network=net, data=xy)
    assert {trial.state.name for trial in study.trials} <= {"COMPLETE", "PRUNED"}
    assert {trial.params["network.init"] for trial in study.trials} == {"keep", "signed_constant"}
    layers = {"extractor.density": 0.3, "density_per_layer": True}
    study = ss.run_study({**SPEC, "name": "layers", "run": run, "space": layers, "trials": 1}, network=net, data=xy)
    assert {"density_per_layer.0", "density_per_layer.2"} <= study.trials[0].params.keys()


def test_a_task_object(net, xy):
    spec = {**SPEC, "constraints": {"val_margin": ">= -1"}}
    study = ss.run_study(spec, network=net, data=xy, task=Margin())
    assert study.metric_names == ["val_margin"]
    assert study.user_attrs[PASSED]["task"].endswith(":Margin")
    found = hashes(study)
    assert hashes(ss.run_study(spec, network=net, data=xy, task=Margin(), trials=3))[:2] == found
    with pytest.raises(UserError, match=r"^the network and the data and the task of the study 'own' were passed from Python"):
        ss.run_study(SPEC, network=net, data=xy)


def test_another_network_or_other_data_is_refused(net, xy, capsys):
    study = ss.run_study(SPEC, network=net, data=xy, trials=1)
    heavier = copy.deepcopy(net)
    heavier[0].weight.data += 1
    wider = nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 2))
    for network, data, what in (
        (heavier, xy, "weights of the network"),
        (wider, xy, "network"),
        (net, (xy[0] + 1, xy[1]), "data"),
    ):
        with pytest.raises(UserError, match=f"^the {what} of the study 'own' changed: pass the same, or choose another name$"):
            ss.run_study(SPEC, network=network, data=data)
        with pytest.raises(UserError, match=f"^the {what} of the study 'own' changed"):
            ss.retrain_trial(study.trials[0], study=study, network=network, data=data)
    with pytest.raises(UserError, match=r"run\.data\.name was python_object:data, now digits|were passed from Python"):
        ss.run_study(SPEC, network=net)
    for words in (("run", "own"), ("worker", "own"), ("extract", "own", "--best")):
        code, _, err = said(capsys, "study", *words)
        assert (code, err.count("\n")) == (2, 1)
        assert err.startswith(
            "error: the network and the data of the study 'own' were passed from Python: pass them again, as in"
        )
    assert said(capsys, "study", "show", "own")[0] == 0
    assert len(ss.load_study("own").trials) == 1


@pytest.mark.parametrize(
    ("more", "given", "message"),
    [
        (
            {},
            {"workers": 2},
            r"network is a Python object, which only this process has: run it with workers=1, or give an import",
        ),
        ({"workers": 3}, {}, "network is a Python object, which only this process has"),
        (
            {},
            {"network": nn.Linear},
            r"network must be a torch\.nn\.Module or the name of one, got .*: pass an instance, Linear",
        ),
        ({}, {"network": 3}, r"network must be a torch\.nn\.Module or the name of one, got 3$"),
        ({}, {"data": 3}, "data"),
        ({}, {"task": 3}, "has no method loss"),
        ({"space": {"data.limit": {"int": [50, 90]}}}, {}, r"the data was passed as a Python object, so data\.limit cannot"),
        ({"space": {"network": {"choice": ["conv2", "lenet5"]}}}, {}, "the network was passed as a Python object, so network"),
        ({"run": 3}, {}, "run: give keys and values, got 3"),
        ({"nam": 3}, {}, "unknown key 'nam': did you mean 'name'"),
        ({"n_trials": 3}, {}, "unknown key 'n_trials': write trials"),
        ({"study_name": "a"}, {}, "unknown key 'study_name': write name"),
        ({"direction": "maximize"}, {}, "unknown key 'direction': each metric has its own direction"),
    ],
)
def test_mistakes_are_one_line_before_training(net, xy, more, given, message, tmp_path):
    with pytest.raises(UserError, match=message) as refused:
        ss.run_study({**SPEC, **more}, **{"network": net, "data": xy, **given})
    assert "\n" not in str(refused.value)
    assert "validation error" not in "".join(traceback.format_exception(refused.value))  # pydantic's
    assert list(tmp_path.rglob("metrics.jsonl")) == []


def test_load_study_says_what_is_there(net, xy):
    with pytest.raises(UserError, match=r"no studies yet: runs/studies\.db does not exist"):
        ss.load_study("own")
    ss.run_study(SPEC, network=net, data=xy, trials=1, storage="sqlite:///a.db")
    with pytest.raises(UserError, match=r"unknown study 'onw' .in sqlite:///.*: did you mean 'own'"):
        ss.load_study("onw", "sqlite:///a.db")
    assert ss.load_study("own", "sqlite:///a.db").best_trial.number == 0


# Analyses


def test_compare_takes_objects_and_a_list_of_methods(net, xy):
    record = ss.compare(RUN, ["snip", "random"], [0.3], network=net, data=xy, seeds=1)
    assert [(row["method"], row["complete"]) for row in record["rows"]] == [("snip", 1), ("random", 1), ("dense", 1)]
    again = ss.compare(RUN, ["snip", "random", "synflow"], [0.3], network=net, data=xy, seeds=1)
    assert [cell["trial"] for cell in again["cells"]] == [0, 1, 3, 2]
    of_a_task = ss.compare(RUN, ["snip"], [0.3], network=net, data=xy, task=Margin(), seeds=1, name="margin")
    assert of_a_task["rows"][0]["val_margin"]["mean"] < 0
    assert ss.compare(RUN, ["snip"], [0.3], network=net, data=xy, task=Margin(), seeds=1, name="margin") == of_a_task
    with pytest.raises(UserError, match="give lists of methods and densities, got 'snip'"):
        ss.compare(RUN, "snip", [0.3])
    with pytest.raises(UserError, match="seeds is the number of runs of each method, 1 or more: got 0"):
        ss.compare(RUN, ["snip"], [0.3], seeds=0)
    with pytest.raises(UserError, match="network is a Python object"):
        ss.compare(RUN, ["snip"], [0.3], network=net, data=xy, workers=2, name="two")


def without_times(record):
    return {key: value for key, value in record.items() if key != "seconds"}


def test_sanity_is_that_of_the_command(net, xy, capsys, tmp_path):
    record = ss.sanity(RUN, network=net, data=xy, seeds=1)
    assert [row["method"] for row in record["rows"]] == ["original", "shuffled", "redrawn", "inverted", "random", "dense"]
    run = {**RUN, "network": "own_of_tests:make", "data": "own_of_tests:data"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    code, out, err = said(capsys, "sanity", "run.yaml", "--seeds", 1, "--name", "command", "--json")
    assert code == 0, err
    assert list(map(without_times, json.loads(out)["cells"])) == list(map(without_times, record["cells"]))


def test_plasticity_is_that_of_the_command(net, xy, capsys, tmp_path):
    run = {"recipe": {**RUN["recipe"], "epochs": 4, "lr": 0.05}}
    records = ss.plasticity(run, 1, at=[0.25, 0.5], rate=[0.5], regrow=0, network=net, data=xy)
    assert [(record["at"], record["rate"]) for record in records] == [(0.25, 0.5), (0.5, 0.5)]
    assert (tmp_path / "runs/plasticity/plasticity.json").is_file()
    with pytest.raises(UserError, match=r"^at takes a list of numbers, got 0\.5$"):
        ss.plasticity(run, 1, at=0.5)
    named = {**run, "network": "own_of_tests:make", "data": "own_of_tests:data"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(named))
    words = ("--epochs", 1, "--at", "0.25,0.5", "--rate", 0.5, "--regrow", 0, "--no-plot", "--json")
    assert json.loads(said(capsys, "plasticity", "run.yaml", *words)[1]) == records
    (record,) = ss.plasticity(run, 1, at=[0.5], rate=[0.5], regrow=0, network=net, data=xy, task=Margin(), out="margin")
    assert record["margin_pruned"] < 0
