"""Run folders begun by version 0.1.0 before its modules moved to folders by layer: they go on to the same subnetwork.

`golden/format2` was written at commit 6666b45: a network of `tiny_network.py` on 300 digits, stopped after step 9 of 16, and
as `expected.safetensors` what the same run found undisturbed. One learns a mask on untrained weights (`gumbel`), the other
trains the weights and changes its topology (`granet`).
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from subnet_search import Subnetwork
from subnet_search.cli import main

GOLDEN = Path(__file__).parents[1] / "golden" / "format2"


@pytest.fixture(params=["stopped-untrained", "stopped-trained"])
def name(request, tmp_path, monkeypatch):
    shutil.copytree(GOLDEN / request.param, tmp_path / request.param)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(GOLDEN)
    return request.param


def test_it_goes_on_from_its_checkpoint_to_the_same_subnetwork(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["extract", "--resume", "--out", name, "--allow-import", "tiny_network", "--json"])
    out, err = capsys.readouterr()
    assert ended.value.code == 0, err
    found, expected = Subnetwork.load(f"{name}/subnetwork.safetensors"), Subnetwork.load(GOLDEN / name / "expected.safetensors")
    assert found.masks.same(expected.masks)
    for key, value in expected.state_dict().items():  # the last bits depend on the machine
        torch.testing.assert_close(found.state_dict()[key], value, rtol=1e-4, atol=1e-6)
    summary = json.loads(out)
    assert (summary["sha256"], summary["steps"]) == (found.sha256, 16)
    if name == "stopped-untrained":  # only the scales depend on the machine
        assert all(weight.equal(expected.weights[key]) for key, weight in found.weights.items())
    before, after = (folder / "metrics.jsonl" for folder in (GOLDEN / name, Path(name)))
    assert len(after.read_text().splitlines()) == 4
    assert after.read_text().startswith(before.read_text())  # seconds too: those epochs were not trained again


def test_its_configuration_imports_only_what_is_allowed(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["extract", "--resume", "--out", name])
    assert ended.value.code == 2
    assert "--allow-import tiny_network" in capsys.readouterr().err
