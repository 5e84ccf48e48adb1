"""Files that users keep: those of earlier formats load for ever, and no damaged byte changes what a file says."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import subnet_search as ss
from subnet_search import RunConfig, Subnetwork
from subnet_search.config import check
from subnet_search.data import from_user, prepare
from subnet_search.deploy.deployed import load_deployed, read_artifact
from subnet_search.deploy.masks import load_masks
from subnet_search.deploy.subnetwork import state_in
from subnet_search.extraction import run
from subnet_search.files import digest

GOLDEN = Path(__file__).parent / "golden" / "format1"


def pictures():
    """60 grey images of 6x6 whose brightest third is their class."""
    labels = torch.arange(60) % 3
    images = (torch.arange(60 * 36).view(60, 1, 6, 6) * 37 % 101).to(torch.uint8)
    for label in range(3):
        images[labels == label, :, label * 2 : label * 2 + 2] += 120
    return from_user((images, labels))


def filled(net):
    """The same weights on every machine: no generator draws them."""
    with torch.no_grad():
        for position, parameter in enumerate(net.parameters()):
            steps = torch.arange(parameter.numel()).view(parameter.shape) + position
            parameter.copy_((steps * 37 % 101 - 50) / 200)
    return net


def dense():
    return filled(nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3)))


def convolutions():
    return filled(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)))


def settings(method, unit="weight", recipe=None, **hyperparameters):
    recipe = {"epochs": 3, "batch_size": 16, "threads": 1, "device": "cpu", "lr": 0.05, **(recipe or {})}
    return check(RunConfig, {"extractor": {"name": method, **hyperparameters}, "unit": unit, "recipe": recipe, "seed": 3})


# --- format 1: written before headers were covered by a hash ---

SHA256 = {
    "finished/subnetwork": "5f7c6bd2e67db1a0e1379456dc9205c05a7b4a1cf6eeedda3ffcf7244060ed58",
    "seed": "9da82b4ca9edb1da8dd94425f99f4f8c0cbeb9f14a88338eef37c04f45d6e83b",
    "stopped/expected": "513b2de495b9067ca73796640902fe0c615a5cc20cfaae8fc2a667f1c5d318ba",
    "stopped-relevance/expected": "26ef2f6304c460554d3cc31af7ebe0bb198c74057168f674bee94c381e68345d",
}


@pytest.mark.parametrize("name", SHA256)
def test_subnetworks_of_format_1_load(name):
    subnet = Subnetwork.load(GOLDEN / f"{name}.safetensors")
    assert subnet.sha256 == SHA256[name]
    assert subnet.density == pytest.approx(0.3, abs=0.01)
    assert subnet.origin.mean == pytest.approx((0.3531651,))
    assert subnet.summary()["steps"] == 9


def test_masks_of_format_1_load():
    masks = load_masks(GOLDEN / "trial" / "masks.safetensors")
    assert digest(masks) == "c309e951be0913c3234ad9e364ceb8a45bc662dee881074e5efe7eb0f1846775"


@pytest.mark.parametrize(
    ("name", "method", "options"),
    [("stopped", "rigl", {"every": 2, "recipe": {"patience": 3}}), ("stopped-relevance", "gumbel", {})],
)
def test_a_run_that_stopped_in_format_1_goes_on(tmp_path, name, method, options):
    shutil.copytree(GOLDEN / name, tmp_path / "run")
    config = settings(method, density=0.3, **options)
    found = run(config, tmp_path / "run", resume=True, module=convolutions(), data=pictures())
    expected = Subnetwork.load(GOLDEN / name / "expected.safetensors")
    assert found.masks.same(expected.masks)
    for key, value in expected.state_dict().items():  # the last bits depend on the machine
        torch.testing.assert_close(found.state_dict()[key], value, rtol=1e-4, atol=1e-6)
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_run_that_finished_in_format_1_is_finished(tmp_path):
    shutil.copytree(GOLDEN / "finished", tmp_path / "run")
    config = settings("magnitude", density=0.3)
    found = run(config, tmp_path / "run", resume=True, module=dense(), data=pictures(), on_step=pytest.fail)
    assert found.sha256 == SHA256["finished/subnetwork"]


def test_exports_of_format_1_load():
    data, masked = pictures(), convolutions()
    masked.load_state_dict(state_in(GOLDEN / "state-dict.safetensors"))
    assert digest(masked.state_dict()) == "0729f01303029748ddee838f6f4cd876da2b1c8da7efe9bb4b173bcfadb928b3"
    masked.eval()
    inputs = prepare(data.val.inputs, data.mean, data.std)
    with torch.no_grad():
        small = load_deployed(GOLDEN / "compact.safetensors", convolutions())
        torch.testing.assert_close(small(inputs), masked(inputs))
        normalises = load_deployed(GOLDEN / "compact-normalise.safetensors", convolutions())
        torch.testing.assert_close(normalises(data.val.inputs / 255), masked(inputs))
        sparse = load_deployed(GOLDEN / "csr.safetensors", dense())
        torch.testing.assert_close(
            sparse(inputs), Subnetwork.load(GOLDEN / "finished/subnetwork.safetensors").on(dense())(inputs)
        )
    record = ss.evaluate(read_artifact(GOLDEN / "compact.safetensors"), network=convolutions(), data=data)
    assert record["accuracy"] == record["val_accuracy"]
