"""Two networks on the same items, and prune potentials: by hand, and from files of real runs."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import subnet_search as ss
from subnet_search import UserError
from subnet_search.cli import main
from subnet_search.extraction.against import compared
from subnet_search.extraction.prune_potential import potential
from subnet_search.tasks import Classification, create_task

ONE_SHOT = ss.Recipe(epochs=0, threads=1, device="cpu")
START = {"name": "lenet5", "state": "dense.pt"}
LIMITED = {"name": "digits", "limit": 300}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with the state dict of a trained network, dense.pt, and a pruned run of it, run/subnetwork.safetensors."""
    folder = tmp_path_factory.mktemp("against")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        recipe = ss.Recipe(epochs=3, batch_size=20, lr=0.05, threads=1, device="cpu")
        whole = ss.extract("lenet5", LIMITED, "magnitude", density=1.0, recipe=recipe)
        torch.save(whole.state_dict(), "dense.pt")
        for density in (0.5, 0.05):
            ss.extract(START, LIMITED, "magnitude", density=density, recipe=ONE_SHOT, out=f"run{density}")
        whole.save("dense.safetensors")
    return folder


@pytest.fixture(autouse=True)
def _inside(here, monkeypatch):
    monkeypatch.chdir(here)


def load(density=0.5):
    return ss.Subnetwork.load(f"run{density}/subnetwork.safetensors")


def test_a_comparison_by_hand():
    task, labels = Classification(), torch.tensor([0, 0, 1, 1, 1])
    logits = {"this": torch.tensor([[2.0, 0], [0, 2], [0, 2], [2, 0], [2, 0]])}  # right: 1 0 1 0 0
    logits["other"] = torch.tensor([[2.0, 0], [2, 0], [0, 2], [0, 2], [2, 0]])  # right: 1 1 1 1 0
    this, other = (task.measure_items(nn.Identity(), [(one, labels)]) for one in logits.values())
    found = compared(task, this, other, "the other")
    assert (found["name"], found["accuracy"], found["difference"]) == ("the other", 0.8, pytest.approx(-0.4))
    assert found["test"] == {"test": "McNemar, exact", "only_this": 0, "only_other": 2, "p_value": 0.5}
    assert found["interval"]["low"] == -0.8  # 40 % of the items differ: up to 4 of 5 in all but 1 % of the resamples
    assert found["interval"]["high"] == 0
    assert found["agreement"] == pytest.approx(3 / 5)
    # Where predictions differ, probabilities are (p, 1 - p) and (1 - p, p) with p = 1 / (1 + exp(-2)).
    assert found["distance"] == pytest.approx(0.4 * math.sqrt(2) * (2 / (1 + math.exp(-2)) - 1))
    assert [(row["class"], row["items"], round(row["difference"], 4)) for row in found["classes"]] == [
        (0, 2, -0.5),
        (1, 3, -0.3333),
    ]


def test_a_comparison_of_another_task():
    task, labels = create_task("regression"), torch.zeros(4, 1)
    this, other = (task.measure_items(nn.Identity(), [(torch.full((4, 1), value), labels)]) for value in (3.0, 1.0))
    found = compared(task, this, other, "other")
    assert (found["rmse"], found["difference"]) == (1, 2)
    assert found["interval"]["low"] == found["interval"]["high"] == 2
    assert found["test"] == {"test": "paired bootstrap", "p_value": 0}
    assert "agreement" not in found


def test_dense_is_the_network_before_pruning():
    whole, subnet = ss.Subnetwork.load("dense.safetensors"), load(0.05)
    record = ss.evaluate(subnet, "test", against="dense", noise=True)
    found = record["against"]
    assert found["accuracy"] == ss.evaluate(whole, "test")["accuracy"] > record["accuracy"]
    assert found["difference"] == pytest.approx(record["accuracy"] - found["accuracy"])
    assert found["test"]["only_other"] - found["test"]["only_this"] == round(-found["difference"] * record["items"])
    assert found["interval"]["low"] <= found["difference"] <= found["interval"]["high"]
    assert record["interval"]["low"] <= record["accuracy"] <= record["interval"]["high"]
    assert sum(row["count"] for row in record["calibration"]) == record["items"]
    clean = record["noise"][0]
    assert (clean["agreement"], clean["distance"]) == pytest.approx((found["agreement"], found["distance"]), abs=1e-6)
    for other in ("dense.pt", "dense.safetensors", whole, whole.network()):
        again = ss.evaluate(subnet, "test", against=other)["against"]
        assert {**again, "name": "dense"} == found
    assert ss.evaluate(whole, against=whole)["against"]["test"]["p_value"] == 1


def test_dense_of_a_module():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    subnet = ss.extract(net, LIMITED, "magnitude", density=0.5, start=0, recipe=ONE_SHOT)
    whole = ss.evaluate(subnet, against=net)["against"]
    assert ss.evaluate(subnet, against="dense")["against"] == {**whole, "name": "dense"}


def test_what_cannot_be_compared(tmp_path, monkeypatch):
    random = ss.extract("lenet5", LIMITED, "random", density=0.5, recipe=ONE_SHOT)
    with pytest.raises(UserError, match="no trained weights from before pruning are known; name the file"):
        ss.evaluate(random, against="dense")
    with pytest.raises(UserError, match="against is a file, a subnetwork, a module or 'dense', got 3"):
        ss.evaluate(random, against=3)
    with pytest.raises(UserError, match=r"no such file to compare with: nothing\.pt"):
        ss.evaluate(random, against="nothing.pt")
    with pytest.raises(UserError, match=r"nothing in dense\.pt fits small_conv"):
        ss.evaluate(ss.extract("small_conv", LIMITED, "random", recipe=ONE_SHOT), against="dense.pt")
    subnet = load()
    monkeypatch.chdir(tmp_path)
    network = subnet.origin.network.model_copy(update={"state": "/else/dense.pt"})
    elsewhere = subnet.origin.model_copy(update={"network": network})
    with pytest.raises(UserError, match=r"outside the current folder, /else/dense\.pt; name the file"):
        ss.evaluate(replace(subnet, origin=elsewhere), against="dense")


def test_a_changed_file_is_refused(tmp_path, monkeypatch):
    subnet = load()
    monkeypatch.chdir(tmp_path)
    torch.save({name: value + 1 for name, value in subnet.state_dict().items()}, "dense.pt")
    with pytest.raises(UserError, match=r"dense\.pt has changed"):
        ss.evaluate(subnet, against="dense")


def test_prune_potential_by_hand():
    ratios = [0.2, 0.5, 0.7, 0.9]
    assert potential(0.1, [0.1, 0.104, 0.106, 0.3], ratios) == 0.5
    assert potential(0.1, [0.1, 0.104, 0.106, 0.3], ratios, delta=0.006) == 0.7  # at most: equal counts
    assert potential(0.1, [0.1, 0.12, 0.1, 0.3], ratios) == 0.7  # the largest, whatever a smaller one does
    assert potential(0.1, [0.2, 0.2, 0.2, 0.2], ratios) == 0


def test_prune_potential_of_files(capsys):
    record = ss.prune_potential(["run0.05", "run0.5/subnetwork.safetensors"], noise=True, corruptions=True)
    errors = [1 - ss.evaluate(load(density), "test")["accuracy"] for density in (0.5, 0.05)]
    assert [round(one["density"], 3) for one in record["networks"]] == [0.5, 0.05]
    clean = record["rows"][0]
    assert (clean["inputs"], clean["errors"]) == ("clean", errors)
    good = [0.5] * (errors[0] <= clean["dense_error"] + 0.005) + [0.95] * (errors[1] <= clean["dense_error"] + 0.005)
    assert clean["prune_potential"] == pytest.approx(max(good, default=0), abs=1e-3)
    names = [row["inputs"] for row in record["rows"]]
    assert names[1] == "noise 0.1"
    assert "gaussian_noise 3" in names
    assert len(names) == 1 + 7 + 10
    whole = ss.prune_potential(["run0.05"], delta=1)
    assert whole["rows"][0]["prune_potential"] == pytest.approx(0.95, abs=1e-3)
    with pytest.raises(UserError, match="has no subnetwork"):
        ss.prune_potential(["."])
    with pytest.raises(UserError, match="delta must not be below 0"):
        ss.prune_potential(["run0.05"], delta=-1)
    with pytest.raises(SystemExit):
        main(["prune-potential", "run0.05", "run0.5", "--against", "dense.pt", "--delta", "100", "--json"])
    assert json.loads(capsys.readouterr().out)["rows"] == [{**whole["rows"][0], "errors": errors}]


def test_the_commands(capsys):
    with pytest.raises(SystemExit) as done:
        main(["evaluate", "run0.05/subnetwork.safetensors", "--split", "test", "--against", "dense", "--noise"])
    out, err = capsys.readouterr()
    assert done.value.code == 0, err
    for part in ("95 % interval", "top-5 accuracy", "mean confidence", "Against dense", "McNemar, exact: p", "agreement"):
        assert part in out
    with pytest.raises(SystemExit):
        main(["prune-potential", "run0.05", "run0.5"])
    assert "95.00 % pruned" in capsys.readouterr().out
