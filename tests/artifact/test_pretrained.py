"""A subnetwork in a folder: config.json, model.safetensors and a model card."""

import json

import pytest
import torch
from torch import nn

import subnet_search as ss
from subnet_search.core.errors import RunError, UserError

RECIPE = ss.Recipe(epochs=1, batch_size=20, device="cpu", threads=1)
DATA = torch.randn(60, 4), torch.randint(0, 2, (60,))


def net(hidden=32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, 2))


@pytest.fixture(scope="module")
def subnet():
    return ss.extract(net(), DATA, "magnitude", density=0.5, recipe=RECIPE)


def test_a_network_with_a_name(tmp_path):
    run = {"init": "signed_constant", "recipe": ss.Recipe(epochs=1, device="cpu", threads=1)}
    subnet = ss.extract("lenet_300_100", {"name": "digits", "limit": 200}, "gumbel", density=0.2, **run)
    subnet.save_pretrained(tmp_path / "a" / "b", weights="seed")
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again = ss.Subnetwork.from_pretrained(tmp_path / "a" / "b")
    assert again.sha256 == subnet.sha256
    assert again.network()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    config = json.loads((tmp_path / "a" / "b" / "config.json").read_text())
    assert config["summary"]["normalisation"]["mean"] == list(subnet.origin.mean)
    assert config["network"]["name"] == "lenet_300_100"
    card = (tmp_path / "a" / "b" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: subnet-search\n")
    for text in ("| method | `gumbel`", "| density | 0.2000", subnet.sha256, '"mean"'):
        assert text in card


def test_a_network_of_the_users(subnet, tmp_path, monkeypatch):
    subnet.save_pretrained(tmp_path)
    (tmp_path / "notes.txt").write_text("kept")
    subnet.save_pretrained(tmp_path)  # once more
    assert (tmp_path / "notes.txt").read_text() == "kept"
    assert 'from_pretrained(".", network=net)' in (tmp_path / "README.md").read_text()
    with pytest.raises(UserError, match="cannot be built by name: pass it"):
        ss.Subnetwork.from_pretrained(tmp_path).network()
    again = ss.Subnetwork.from_pretrained(tmp_path, network=net())
    inputs = torch.randn(3, 4)
    assert torch.equal(again.network()(inputs), subnet.network()(inputs))
    (tmp_path / "nets_of_mine.py").write_text(
        "from torch import nn\ndef make(): return nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    by_name = ss.Subnetwork.from_pretrained(tmp_path, network="nets_of_mine:make")
    assert torch.equal(by_name.network()(inputs), subnet.network()(inputs))


def test_mistakes_are_one_line(subnet, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file is a file: give a folder"):
        subnet.save_pretrained(tmp_path / "file")
    with pytest.raises(RunError, match="cannot write"):
        subnet.save_pretrained("/proc/none")
    with pytest.raises(UserError, match=r"has no model\.safetensors: give a folder that"):
        ss.Subnetwork.from_pretrained(tmp_path)
    subnet.save_pretrained(tmp_path / "ok")
    with pytest.raises(UserError, match="this subnetwork is of another network"):
        ss.Subnetwork.from_pretrained(tmp_path / "ok", network=net(16))
    (tmp_path / "ok" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"not a subnetwork file|damaged"):
        ss.Subnetwork.from_pretrained(tmp_path / "ok")
