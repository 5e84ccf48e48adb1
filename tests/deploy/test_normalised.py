"""Exported files and how their inputs are prepared: who reads only what `export` prints gets the accuracy it prints."""

import json
import re

import numpy as np
import pytest
import torch
from safetensors import safe_open
from toys import pictures, points

import subnet_search as ss
from subnet_search.cli import main
from subnet_search.core.errors import RunError, UserError
from subnet_search.core.timing import Latency
from subnet_search.deploy import export as exporting
from subnet_search.deploy import sparse
from subnet_search.deploy.export import export
from subnet_search.deploy.exported_network import Deployed, load_deployed, read_artifact
from subnet_search.deploy.normalised import Normalised
from subnet_search.structure.compact import difference_between
from subnet_search.training import Recipe

SHORT = Recipe(epochs=1, batch_size=20, threads=1, device="cpu")
STATISTICS = {"mean": [0.86, 0.48, 0.185], "std": [0.05, 0.06, 0.03]}


@pytest.fixture(autouse=True)
def no_time_to_lose(monkeypatch):
    measured = exporting.measured
    monkeypatch.setattr(exporting, "measured", lambda *given, **more: measured(*given[:-1], 0, **more))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Coloured digits of little contrast, each channel of another brightness, and a run with statistics that are set."""
    from sklearn.datasets import load_digits

    folder, digits = tmp_path_factory.mktemp("coloured"), load_digits()
    grey = digits.images * 15.9
    images = np.stack([210 + 0.15 * grey, 130 - 0.15 * grey, 40 + 0.1 * grey], axis=-1).astype(np.uint8)  # (1797, 8, 8, 3)
    parts = {"train": slice(0, 1400), "test": slice(1400, None)}
    arrays = {f"{name}_images": images[part] for name, part in parts.items()}
    labels = {f"{name}_labels": digits.target[part] for name, part in parts.items()}
    np.savez(folder / "coloured.npz", **arrays, **labels)
    (folder / "run.yaml").write_text(
        json.dumps(
            {
                "network": "small_conv",
                "data": {"name": f"npz:{folder / 'coloured.npz'}", **STATISTICS},
                "extractor": {"name": "magnitude", "density": 0.5},
                "unit": "channel",
                "recipe": {"epochs": 15, "batch_size": 50, "lr": 0.02, "threads": 1, "device": "cpu"},
            }
        )
    )
    with pytest.raises(SystemExit) as ended:
        main(["extract", str(folder / "run.yaml"), "--out", str(folder / "run"), "--json"])
    assert ended.value.code == 0
    return folder


def called(capsys, *words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words)])
    out, err = capsys.readouterr()
    assert ended.value.code == 0, err
    return out


def numbers(text):
    return np.array([float(word) for word in text.split(",")], dtype=np.float32).reshape(-1, 1, 1)


def fed_as_printed(text, images):
    """What the printed line makes of 8-bit images (N, height, width, channels). Nothing else is known here."""
    said = re.search(r"^input: float32 \(N, ([\d, ]+)\): pixels / 255(.*)$", text, re.MULTILINE)
    inputs = images.transpose(0, 3, 1, 2).astype(np.float32) / 255
    assert inputs.shape[1:] == tuple(map(int, said[1].split(",")))
    steps = re.fullmatch(r", minus mean \((.*)\), divided by std \((.*)\), for each channel", said[2])
    if steps is None:
        assert said[2].startswith("; the network itself subtracts mean (")
        return inputs
    return (inputs - numbers(steps[1])) / numbers(steps[2])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("to", "options"),
    [
        pytest.param("onnx", [], id="onnx-prepared outside"),
        pytest.param("onnx", ["--normalise"], id="onnx-built in", marks=pytest.mark.long),  # as the compact one
        pytest.param("compact", [], id="compact-prepared outside"),
        pytest.param("compact", ["--normalise"], id="compact-built in"),
    ],
)
def test_who_reads_what_is_printed_gets_the_accuracy_that_is_printed(folder, to, options, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    text = called(capsys, "export", folder / "run/subnetwork.safetensors", tmp_path / "file", "--to", to, *options)
    with np.load(folder / "coloured.npz") as file:
        images, labels = file["test_images"], file["test_labels"]
    inputs = fed_as_printed(text, images)
    if to == "onnx":
        session = onnxruntime.InferenceSession(tmp_path / "file", providers=["CPUExecutionProvider"])
        [logits] = session.run(["logits"], {"input": inputs})
    else:
        logits = load_deployed(tmp_path / "file")(torch.from_numpy(inputs)).detach().numpy()
    printed = re.search(r"^accuracy: .*?([\d.]+) % on the test split, from the run$", text, re.MULTILINE)
    assert f"{100 * (logits.argmax(1) == labels).mean():.2f}" == printed[1]
    assert float(printed[1]) > 80
    if (to, options) == ("compact", []):  # these images are not recognised when they are only scaled
        wrong = load_deployed(tmp_path / "file")(torch.from_numpy(images.transpose(0, 3, 1, 2) / np.float32(255)))
        assert (wrong.argmax(1).numpy() == labels).mean() < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("normalise", [False, True])
def test_the_statistics_are_in_every_record(folder, normalise, tmp_path, capsys):
    onnx = pytest.importorskip("onnx")
    summary = json.loads((folder / "run/summary.json").read_text())
    assert {key: summary["normalisation"][key] for key in STATISTICS} == STATISTICS
    assert "mean:" in (folder / "run/config.yaml").read_text()
    subnet = ss.Subnetwork.load(folder / "run/subnetwork.safetensors")
    record = export(subnet, "onnx", tmp_path / "net.onnx", normalise=normalise, seconds=0)
    said = {entry.key: entry.value for entry in onnx.load(tmp_path / "net.onnx").metadata_props}
    assert {key: json.loads(said[key]) for key in STATISTICS} == STATISTICS
    assert said["input"] == record["input"]
    assert said["normalisation"] == ("built in" if normalise else "to be done before")
    export(subnet, "compact", tmp_path / "small", normalise=normalise, seconds=0)
    small = Deployed.load(tmp_path / "small")
    assert (small.normalise, list(small.origin.mean), list(small.origin.std)) == (normalise, *STATISTICS.values())
    assert small.summary()["export"]["input"] == record["input"]
    assert small.summary()["normalisation"] == summary["normalisation"]


def test_a_state_dict_says_how_it_is_fed(folder, tmp_path):
    subnet = ss.Subnetwork.load(folder / "run/subnetwork.safetensors")
    record = export(subnet, "state-dict", tmp_path / "file", seconds=0)
    with safe_open(tmp_path / "file", framework="pt") as file:
        header = json.loads(file.metadata()["header"])
    assert {key: header["normalisation"][key] for key in STATISTICS} == STATISTICS
    assert header["input"] == record["input"]
    with pytest.raises(UserError, match=r"^normalise is not possible for state-dict.*mean and std are in the file"):
        export(subnet, "state-dict", tmp_path / "other", normalise=True, seconds=0)
    assert not (tmp_path / "other").exists()


def test_a_file_that_normalises_is_judged_as_the_one_that_does_not(folder, tmp_path):
    subnet = ss.Subnetwork.load(folder / "run/subnetwork.safetensors")
    name = f"npz:{folder / 'coloured.npz'}"  # outside of this folder, so the file alone does not have it read
    with pytest.raises(UserError, match=f"names data outside the current folder: .* --data {name}"):
        ss.evaluate(subnet)
    records = []
    for normalise in (False, True):
        export(subnet, "compact", tmp_path / "file", normalise=normalise, seconds=0)
        records.append(ss.evaluate(read_artifact(tmp_path / "file"), "test", data=name, noise=True, corruptions=normalise))
    plain, built_in = records
    assert built_in["accuracy"] == plain["accuracy"] == subnet.metrics["test_accuracy"]
    assert built_in["nll"] == pytest.approx(plain["nll"], rel=1e-4)
    assert [row["accuracy"] for row in built_in["noise"]] == pytest.approx(
        [row["accuracy"] for row in plain["noise"]], abs=0.01
    )
    assert built_in["corruptions"] == ss.evaluate(subnet, "test", data=name, corruptions=True)["corruptions"]
    assert isinstance(load_deployed(tmp_path / "file"), Normalised)
    timed = ss.evaluate(read_artifact(tmp_path / "file"), data=name, latency=True)
    assert [row["batch"] for row in timed["latency"]] == [1, 16, 256]


@pytest.mark.parametrize("to", ["csr", "bsr"])
def test_sparse_files_normalise_too(to, tmp_path, monkeypatch):
    monkeypatch.setattr(sparse, "in_turn", lambda *_, **__: [Latency(2, 2, 2, 1), Latency(1, 1, 1, 1)])
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3))
    subnet = ss.extract(net, pictures(), "magnitude", density=0.2, recipe=SHORT)
    record = export(subnet, to, tmp_path / "file", network=net, normalise=True, seconds=0)
    loaded, pixels = load_deployed(tmp_path / "file", net), torch.rand(5, 1, 8, 8)
    mean, std = subnet.origin.mean[0], subnet.origin.std[0]
    torch.testing.assert_close(loaded(pixels), subnet.on(net)((pixels - mean) / std), rtol=1e-4, atol=1e-5)
    assert {layer["kept"] for layer in record["layers"]} == {to}
    if to == "csr":
        assert record["weights"] == record["kept"]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_the_normalisation_is_tried_before_anything_is_written(folder, tmp_path, monkeypatch):
    subnet = ss.Subnetwork.load(folder / "run/subnetwork.safetensors")
    right = Normalised.forward
    monkeypatch.setattr(Normalised, "forward", lambda self, x: right(self, x + 0.1))
    export(subnet, "compact", tmp_path / "file", seconds=0)
    for to in ("compact", "onnx"):
        with pytest.raises(RunError, match=f"not exported: the logits of {to} differ from the masked network's by"):
            export(subnet, to, tmp_path / "other", normalise=True, seconds=0)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_inputs_that_are_used_as_they_are(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(10, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3))
    subnet = ss.extract(net, points(), "magnitude", density=0.5, unit="channel", recipe=SHORT)
    assert subnet.summary()["normalisation"] is None
    record = export(subnet, "compact", tmp_path / "file", network=net, seconds=0)
    assert record["input"] == "float32 (N, 10): values as in the data, not normalised"
    assert difference_between(load_deployed(tmp_path / "file", net), subnet.on(net), torch.randn(3, 10)) < 1e-5
    with pytest.raises(UserError, match="normalise: the inputs of this run were not normalised"):
        export(subnet, "compact", tmp_path / "other", network=net, normalise=True, seconds=0)
    assert not (tmp_path / "other").exists()


def test_accuracy_is_of_before_a_recalibration(capsys):
    from subnet_search.cli.commands.export import _quality

    record = {"recalibrated": 0, "val_accuracy": 0.5, "test_accuracy": None}
    assert _quality(record) == "accuracy: 50.00 % on the validation split, from the run"
    record = {"recalibrated": 3, "val_accuracy": 0.5, "test_accuracy": 0.25}
    assert _quality(record) == (
        "accuracy: 50.00 % on the validation split, 25.00 % on the test split, from the run, before batch norm was recalibrated"
    )
