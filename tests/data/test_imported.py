"""Data that a function of the user's makes: `package.module:make`, in runs, studies and their workers."""

import os
import signal
import subprocess
import sys

import pytest
import torch

import subnet_search as ss
from subnet_search.cli import main
from subnet_search.core.errors import UserError
from subnet_search.data import DataSpec, Items, Split, describe, load
from subnet_search.search.studies.launcher import run_study

MODULE = """
import random

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

X = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
read = []


def pair(rows=50):
    return X[:rows], Y[:rows]


def drawn():
    return torch.randn(20, 6) + np.random.rand() + random.random(), torch.arange(20) % 2


class Noisy(Dataset):
    classes = ["low", "high"]

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return X[self.rows[index]] + 0.1 * torch.randn(6), int(Y[self.rows[index]])


def parts(noise=True):
    def test():
        read.append("test")
        return X[40:], Y[40:]

    return {"train": Noisy(range(32)), "val": Noisy(range(32, 40)), "test": test}


def loader():
    return DataLoader(TensorDataset(X, Y), batch_size=4)


def images():
    return torch.arange(40 * 3 * 8 * 8).view(40, 3, 8, 8).to(torch.uint8), torch.arange(40) % 2


def broken():
    raise OSError("no disk")


def nothing():
    return None


number = 7
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module in the current folder."""
    (tmp_path / "their_data.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield "their_data"
    sys.modules.pop("their_data", None)


def run_config(**data):
    return ss.RunConfig(
        network="their_net:make",
        data=data,
        extractor={"name": "granet", "density": 0.5},
        recipe={"epochs": 3, "batch_size": 8, "threads": 1, "device": "cpu"},
    )


@pytest.fixture
def network(module, tmp_path):
    (tmp_path / "their_net.py").write_text(
        "from torch import nn\n"
        "def make(num_classes): return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, num_classes))\n"
    )
    yield module
    sys.modules.pop("their_net", None)


def test_tensors_are_split_as_when_they_are_passed(module):
    data = load({"name": f"{module}:pair", "options": {"rows": 40}, "val_fraction": 0.25, "split_seed": 3})
    import their_data

    given = ss.load_data((their_data.X[:40], their_data.Y[:40]), val_fraction=0.25, split_seed=3)
    assert (data.name, data.spec.options, data.classes) == (f"{module}:pair", {"rows": 40}, 2)
    assert data.val.inputs.equal(given.val.inputs)
    assert data.fingerprint == given.fingerprint
    assert len(load({"name": f"{module}:pair", "limit": 20}).train) == 18


def test_mean_and_std_are_settings(module):
    data = load({"name": f"{module}:images", "mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]})
    assert data.mean.tolist() == pytest.approx([0.1, 0.2, 0.3])
    with pytest.raises(UserError, match=r"data.mean and data.std need uint8 images .* the inputs of their_data:pair"):
        load({"name": f"{module}:pair", "mean": 0.1, "std": 1})


def test_a_function_that_draws_gives_the_same_data_each_time_and_leaves_no_trace(module):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    one, other = load(f"{module}:drawn"), load(f"{module}:drawn")
    assert torch.rand(1).equal(expected)
    assert one.fingerprint == other.fingerprint


def test_the_test_part_is_made_when_it_is_needed(module):
    data = load(f"{module}:parts")
    import their_data

    assert (type(data.train), len(data.train), len(data.val), data.class_names) == (Items, 32, 8, ("low", "high"))
    assert their_data.read == []
    assert isinstance(test := data.test(), Split)
    assert (len(test), their_data.read) == (10, ["test"])


def test_workers(module):
    assert load(f"{module}:parts").train.workers == 0
    assert load({"name": f"{module}:parts", "workers": 2}).train.workers == 2
    assert describe(f"{module}:loader") == {
        "name": "their_data:loader", "state": "your files", "train": 45, "validation": 5, "shape": [6], "classes": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pair", {"row": 3}, "their_data:pair fails with options {'row': 3}: TypeError: .* unexpected keyword argument 'row'"),
        ("broken", {}, "their_data:broken fails with options {}: OSError: no disk"),
        ("nothing", {}, "their_data:nothing: data must be a name, a pair .* got NoneType"),
        ("number", {}, r"their_data has no function 'number' \(data 'their_data:number'\)"),
        ("absent", {}, "their_data has no function 'absent'"),
    ],
)
def test_mistakes_are_one_line(module, name, options, message):
    with pytest.raises(UserError, match=message) as caught:
        load({"name": f"{module}:{name}", "options": options})
    assert len(str(caught.value).splitlines()) == 1


def test_what_cannot_be_imported_or_set():
    with pytest.raises(UserError, match="cannot import 'no_such_module' for the data 'no_such_module:make': No module named"):
        load("no_such_module:make")
    with pytest.raises(UserError, match=r"options: only for package.module:make, and the data is digits"):
        DataSpec.of({"name": "digits", "options": {"rows": 3}})
    with pytest.raises(UserError, match=r"options.rows"):
        DataSpec.of({"name": "my:make", "options": {"rows": torch.ones(2)}})
    with pytest.raises(UserError, match=r"unknown data set 'nzp:file.npz': valid: .*npz:FILE"):
        load("nzp:file.npz")


@pytest.mark.slow
def test_a_killed_run_with_two_workers_resumes_to_the_same_bits(network, tmp_path, capsys):
    data = {"name": f"{network}:parts", "workers": 2}
    whole = ss.run(run_config(**data), tmp_path / "whole")
    other = ss.run(run_config(**{**data, "workers": 0}), tmp_path / "none")
    code = (
        "import os, signal, sys; sys.path.insert(0, os.getcwd())\n"
        "import subnet_search as ss\n"
        f"config = ss.RunConfig.model_validate({run_config(**data).given()!r})\n"
        "ss.run(config, 'cut', on_epoch=lambda epoch: epoch.epoch == 2 and os.kill(os.getpid(), signal.SIGKILL))\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert killed.returncode == -signal.SIGKILL
    resumed = ss.run(run_config(**data), tmp_path / "cut", resume=True)
    assert resumed.sha256 == whole.sha256 == other.sha256
    assert resumed.origin.data["name"] == "their_data:parts"
    assert ss.evaluate(resumed, "test", network="their_net:make", data="their_data:parts")["items"] == 10
    with pytest.raises(UserError, match="is made by your function: to import it, pass --data their_data:parts"):
        ss.evaluate(resumed, "test", network="their_net:make")
    with pytest.raises(SystemExit):
        main(["evaluate", "cut/subnetwork.safetensors", "--split", "test"])
    ends = "evaluate cut/subnetwork.safetensors --split test --network their_net:make --data their_data:parts"
    assert capsys.readouterr().err.endswith(f"The whole command: subnet-search {ends}\n")


def study(name, data):
    return ss.StudySpec.model_validate(
        {
            "name": name,
            "storage": f"sqlite:///{name}.db",
            "trials": 3,
            "workers": 2,
            "run": {
                "network": "their_net:make",
                "data": data,
                "extractor": {"name": "granet", "density": 0.5},
                "recipe": {"epochs": 1, "batch_size": 8, "threads": 1, "device": "cpu"},
            },
            "space": {"recipe.lr": {"float": [0.01, 0.1]}},
        }
    )


@pytest.mark.long
def test_a_study_in_worker_processes(network, tmp_path):
    found = run_study(
        study("theirs", {"name": f"{network}:pair", "options": {"rows": 48}}), allow_imports=["their_data", "their_net"]
    )
    assert [trial.state.name for trial in found.trials] == ["COMPLETE"] * 3


def test_data_that_cannot_be_imported_is_refused_before_any_trial(network, tmp_path):
    spec = study("absent", "not_there:make")
    for workers in (1, 2):  # found when the study is made, since its network is called with the data
        with pytest.raises(UserError, match="cannot import 'not_there' for the data 'not_there:make'") as caught:
            run_study(spec, workers=workers, allow_imports=["not_there", "their_net"])
        assert len(str(caught.value).splitlines()) == 1
