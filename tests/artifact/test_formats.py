"""Files that users keep: those of earlier formats load for ever, and no damaged byte changes what a file says."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import subnet_search as ss
from subnet_search import RunConfig, Subnetwork
from subnet_search.artifact.mask_file import load_masks, save_masks
from subnet_search.artifact.subnetwork import state_in
from subnet_search.core.errors import Interrupted, UserError
from subnet_search.core.tensor_files import digest, load_tensors, save_tensors
from subnet_search.data import from_user, prepare
from subnet_search.deploy.export import export
from subnet_search.deploy.exported_network import Deployed, load_deployed, read_artifact
from subnet_search.deploy.sparse import sparsify
from subnet_search.extraction.config_file import check
from subnet_search.extraction.extract import run
from subnet_search.nets import NetworkSpec

GOLDEN = Path(__file__).parents[1] / "golden" / "format1"


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


# --- format 2: no damaged byte changes what a file says ---


def mutated(raw, rng):
    """One to three bytes changed, or a piece taken out, put in, or swapped with another."""
    raw = bytearray(raw)
    at = rng.randrange(len(raw)) if rng.random() < 0.3 else rng.randrange(min(len(raw), 8 + int.from_bytes(raw[:8], "little")))
    match rng.randrange(6):
        case 0:
            del raw[at : at + rng.randrange(1, 9)]
        case 1:
            raw[at:at] = rng.randbytes(rng.randrange(1, 9))
        case 2:  # a digit becomes another: in a header these are numbers, shapes and offsets
            digits = [place for place in range(8, len(raw)) if 48 <= raw[place] < 58]
            raw[rng.choice(digits)] = rng.randrange(48, 58)
        case 3:
            raw[at] ^= 1 << rng.randrange(8)
        case 4:
            other = rng.randrange(len(raw))
            raw[at], raw[other] = raw[other], raw[at]
        case _:
            for _ in range(rng.randrange(1, 4)):
                raw[rng.randrange(len(raw))] = rng.randrange(256)
    return bytes(raw)


KINDS = ("values", "seed", "masks", "checkpoint", "compact", "state-dict", "csr")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("written"))


def write_files(folder):
    """A file of each of `KINDS` in `folder`, of the format that is written now."""
    data, net = pictures(), convolutions()
    config = settings("gumbel", density=0.3)
    found = run(config, module=net, init="kaiming_normal", data=data)
    found.save(folder / "values")
    found.save(folder / "seed", "seed")
    save_masks(folder / "masks", found.masks)
    steps = iter(range(100))
    with pytest.raises(Interrupted):
        run(config, folder / "run", module=net, data=data, should_stop=lambda: next(steps) == 4)
    shutil.copy(folder / "run" / "checkpoint" / "state.safetensors", folder / "checkpoint")
    channels = run(settings("l1_filters", unit="channel", density=0.5), module=net, data=data)
    for to in ("compact", "state-dict"):
        export(channels, to, folder / to, network=net, seconds=0)
    small = sparsify(found.on(net), "csr", found.inputs(2), measure=False)[0]
    Deployed.of(small, found.on(net), found.origin, "csr", found.summary()).save(folder / "csr")
    return folder


def content(path):
    """All that a file says, in one comparable value."""
    name = path.name.split(".")[0]
    if name == "masks":
        return digest(load_masks(path))
    if name in ("checkpoint", "state-dict"):
        tensors, header = load_tensors(path, "file")
        return digest(tensors), header
    found = read_artifact(path)
    if isinstance(found, Subnetwork):
        return found.sha256, found.masks.density, found.origin, found.metrics
    return digest(found.tensors), {**vars(found), "tensors": None}


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_refused_or_says_the_same(written, tmp_path, kind):
    """200 mutations over all kinds; `fuzz.py` tries more."""
    rng, raw, before = random.Random(kind), (written / kind).read_bytes(), content(written / kind)
    path, refusals = tmp_path / kind, []
    for _ in range(29):
        path.write_bytes(mutated(raw, rng))
        try:
            assert content(path) == before
        except UserError as error:
            refusals.append(str(error))
    assert len(refusals) > 20
    assert all(str(path) in one and "\n" not in one for one in refusals)


@pytest.mark.parametrize(
    ("change", "of"),
    [
        (lambda header: header["origin"].update(mean=[0.5]), "values"),
        (lambda header: header["origin"].update(seed=7), "values"),
        (lambda header: header["metrics"].update(val_accuracy=0.125), "values"),
        (lambda header: header["progress"].update(step=15), "checkpoint"),
        (lambda header: header["deployed"]["metrics"].update(density=0.01), "compact"),
        (lambda header: header.update(input="as it is"), "state-dict"),
    ],
    ids=["mean", "seed", "metrics", "step", "density", "input"],
)
def test_a_header_that_was_edited_is_refused(written, tmp_path, change, of):
    with safe_open(written / of, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header = json.loads(metadata["header"])
    change(header)
    save_file(tensors, tmp_path / of, {**metadata, "header": json.dumps(header)})
    with pytest.raises(UserError, match=f"{of} is damaged: its content does not match its hash"):
        content(tmp_path / of)


def test_a_hash_cannot_be_left_out(written, tmp_path):
    with safe_open(written / "values", framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert metadata.keys() == {"header", "file_sha256"}
    save_file(tensors, tmp_path / "values", {"header": metadata["header"]})
    with pytest.raises(UserError, match="is not a readable subnetwork file"):
        Subnetwork.load(tmp_path / "values")


def test_the_hash_of_the_weights_is_that_of_format_1():
    """What the files say changed; what the weights are did not."""
    before = Subnetwork.load(GOLDEN / "finished" / "subnetwork.safetensors")
    assert before.sha256 == SHA256["finished/subnetwork"]
    again = Subnetwork(before.masks, before.weights, before.scales, before.state, before.origin, before.metrics)
    assert again.sha256 == before.sha256


# --- a file decides nothing ---


def tampered(path, subnet, **origin):
    """A file with a hash that is right, whose header says something else."""
    replace(subnet, origin=subnet.origin.model_copy(update=origin)).save(path)
    return path


@pytest.fixture(scope="module")
def named():
    recipe = {"epochs": 1, "threads": 1, "device": "cpu"}
    values = {"network": "lenet_300_100", "data": {"name": "digits", "limit": 100}, "extractor": "random", "recipe": recipe}
    return run(check(RunConfig, values))


@pytest.mark.parametrize("option", ["pretrained", "weights", "weights_backbone", "pretrained_backbone"])
def test_a_file_downloads_no_weights(tmp_path, named, monkeypatch, option):
    def refuse(*_, **__):
        raise AssertionError("something was downloaded")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    network = NetworkSpec(name="torchvision:squeezenet1_1", init="keep", options={option: "DEFAULT", "num_classes": 1000})
    found = Subnetwork.load(tampered(tmp_path / "file", named, network=network, shape=(3, 32, 32)))
    assert found.origin.options == {"num_classes": 1000}
    for given in (None, "torchvision:squeezenet1_1"):
        with pytest.raises(UserError, match="is of another network"):
            ss.evaluate(found, network=given)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"name": "cifar10", "root": "elsewhere"}, "cifar10 is not on this machine: to download it"),
        ({"name": "npz:../secret.npz"}, "names data outside the current folder"),
        ({"name": "image_folder:~/pictures"}, "names data outside the current folder"),
        ({"name": "npz:inside.npz", "root": "/tmp"}, "no such data file: inside.npz"),
    ],
    ids=["download", "outside", "home", "root"],
)
def test_a_file_chooses_no_folder_and_no_download(tmp_path, named, monkeypatch, data, said):
    monkeypatch.chdir(tmp_path)
    found = Subnetwork.load(tampered(tmp_path / "file", named, data={**named.origin.data, **data}))
    with pytest.raises(UserError, match=said):
        ss.evaluate(found)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_root_in_a_file_is_not_used(tmp_path, named):
    found = Subnetwork.load(tampered(tmp_path / "file", named, data={**named.origin.data, "root": str(tmp_path / "none")}))
    assert ss.evaluate(found)["accuracy"] == named.metrics["val_accuracy"]
    assert ss.evaluate(found, data="digits")["accuracy"] == named.metrics["val_accuracy"]  # the split of the run


def test_a_mean_that_is_not_that_of_the_data_is_refused(tmp_path, named):
    found = Subnetwork.load(tampered(tmp_path / "file", named, mean=(0.4,)))
    with pytest.raises(UserError, match=r"the mean in the file differs from that of digits"):
        ss.evaluate(found)


def test_sizes_are_checked_before_there_is_room_for_them(tmp_path, named):
    giant = Subnetwork.load(tampered(tmp_path / "file", named, shape=(1, 2**20, 2**20)))
    with pytest.raises(UserError, match="is of another network"):
        giant.network()
    tensors, header = load_tensors(tmp_path / "file", "file")
    for shape in (5, [2**40, 2**40], [-1, 64], ["a"], [300.0, 64]):
        save_tensors(tmp_path / "shape", tensors, {**header, "shapes": {**header["shapes"], "1.weight": shape}})
        with pytest.raises(UserError, match="shape contains no valid masks"):
            Subnetwork.load(tmp_path / "shape")


@pytest.mark.parametrize(
    "change",
    [{"block": 0}, {"block": 2**40}, {"rows": 2**40}, {"columns": 2**40}, {"stored": 2**40}, {"stored": -1}, {"rows": "8"}],
    ids=str,
)
def test_sizes_of_sparse_layers_are_checked_too(written, tmp_path, change):
    tensors, header = load_tensors(written / "csr", "file")
    header["deployed"]["sparse"]["4"].update(change)
    save_tensors(tmp_path / "csr", tensors, header)
    with pytest.raises(UserError, match="is of another network"):
        load_deployed(tmp_path / "csr", convolutions())
