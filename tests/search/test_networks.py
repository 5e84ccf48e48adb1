"""A network of the user's is built and called with real data before trial 0 of a study or comparison."""

import optuna
import pytest
import torch

import subnet_search as ss
from subnet_search.core.errors import UserError
from subnet_search.extraction.config_file import check

URL = "sqlite:///studies.db"
RUN = {"data": {"name": "digits", "limit": 100}, "recipe": {"epochs": 1, "threads": 1, "device": "cpu"}}
SPACE = {"extractor.density": {"float": [0.2, 0.5]}}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "nets_of_studies.py").write_text(
        "from torch import nn\n"
        "def ok(num_classes, width=16):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, num_classes))\n"
        "def narrow(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(10, num_classes))\n"
        "def fails(num_classes): raise ValueError('no weights here')\n"
        "def few(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n"
    )


def spec(name, **space):
    run = {**RUN, "network": name, "extractor": "magnitude"}
    return check(ss.StudySpec, {"name": "own", "run": run, "space": {**SPACE, **space}, "trials": 1, "storage": URL})


@pytest.mark.parametrize(
    ("network", "space", "message"),
    [
        ("nets_of_studies:narrow", {}, r"nets_of_studies:narrow does not accept inputs of shape \(1, 8, 8\)"),
        ("nets_of_studies:fails", {}, "ValueError: no weights here"),
        ("nets_of_studies:few", {}, "has 3 outputs, but the data has 10 classes"),
        ("nets_of_studies:none", {}, "nets_of_studies has no function 'none'"),
        ("nets_of_studies:ok", {"network": {"choice": ["nets_of_studies:ok", "nets_of_studies:fails"]}}, "no weights here"),
        ("nets_of_studies:ok", {"network.options": {"choice": [{"width": 8}, {"wdth": 8}]}}, "unknown option .*'wdth'"),
    ],
)
def test_what_does_not_work_is_one_line_and_leaves_no_study(network, space, message):
    with pytest.raises(UserError, match=message):
        ss.run_study(spec(network, **space))
    assert optuna.get_all_study_names(URL) == []
    if not space:
        with pytest.raises(UserError, match=message):
            ss.compare({**RUN, "network": network}, ["snip"], [0.3], seeds=1, storage=URL)


def test_what_works_runs():
    study = ss.run_study(spec("nets_of_studies:ok", **{"network.options": {"choice": [{"width": 8}, {"width": 16}]}}))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"]


def test_trained_weights_of_an_own_network():
    import nets_of_studies

    torch.save(nets_of_studies.ok(10).state_dict(), "ok.pt")
    network = {"name": "nets_of_studies:ok", "state": "ok.pt"}
    fixed = {"extractor.density": 0.4, "density_per_layer": True}
    study = ss.run_study(spec(network, **fixed))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"]
    compared = ss.compare({**RUN, "network": network}, ["magnitude"], [0.3], seeds=1, storage=URL, name="compared")
    assert len(compared["cells"]) == 2  # one of them dense
