"""Formats that the result of a run can have, known before it is trained; and what is said of a file after it is written."""

import json

import pytest
from torch import nn
from toys import pictures, points

import subnet_search as ss
from subnet_search.cli import main
from subnet_search.core.errors import UserError
from subnet_search.deploy.export import export
from subnet_search.deploy.exported_network import read_artifact
from subnet_search.extraction.config_file import check
from subnet_search.training import Recipe

SHORT = Recipe(epochs=1, batch_size=20, threads=1, device="cpu")
RUN = {"recipe": SHORT.model_dump(exclude_unset=True), "extractor": {"name": "magnitude", "density": 0.5}}


def images():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3))


def layers(width=64):
    return nn.Sequential(nn.Linear(10, width), nn.ReLU(), nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 3))


def convolutions():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 3, 6), nn.Flatten())


class Reading(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(10, 3)

    def forward(self, x):
        return self.one(x) + x @ self.one.weight.T


class Choosing(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(10, 3)

    def forward(self, x):
        return self.one(x) if x.sum() > 0 else -self.one(x)


@pytest.mark.parametrize(
    ("net", "more", "to", "said"),
    [
        (images, {"unit": "weight"}, "compact", r"no channel can be removed.*unit=channel prunes whole channels"),
        (images, {"unit": "channel"}, "csr", r"needs linear layers .* with zero weights.*use --export compact"),
        (layers, {"unit": "weight"}, "2:4", r"no linear layer of this network has 2:4 sparsity.*unit=2:4"),
        (lambda: layers(66), {"unit": "2:4"}, "2:4", r"multiples of 64; .* but not these sizes: 0, 2, 4"),
        (
            convolutions,
            {"unit": "2:4"},
            "2:4",
            r"2:4 needs linear layers",
        ),
        (layers, {"extractor": {"name": "magnitude", "density": 1.0}}, "csr", r"density 1 prunes none: set a lower density"),
        (Reading, {}, "csr", r"reads weights of its layers directly"),
        pytest.param(
            *(Choosing, {}, "onnx", r"cannot be exported to ONNX.*--export compact or state-dict"), marks=pytest.mark.slow
        ),
        (layers, {}, "compcat", r"unknown format 'compcat': did you mean 'compact'"),
    ],
)
def test_what_can_be_known_is_refused_before_training(net, more, to, said, tmp_path):
    if to == "onnx":
        pytest.importorskip("onnxruntime")
    data = pictures() if "Conv2d" in repr(net()) else points()
    data, module, config = ss.load_data(data), net(), check(ss.RunConfig, {**RUN, **more})
    with pytest.raises(UserError, match=said) as caught:
        ss.run(config, tmp_path / "run", module=module, data=data, exports=[to], on_begin=pytest.fail)
    assert str(caught.value).startswith(f"the result of this run cannot be exported to {to}: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("unit", "to"), [("channel", "compact"), ("weight", "csr"), ("block:4", "bsr"), ("weight", "state-dict")]
)
def test_what_can_be_written_is_trained(unit, to):
    data = ss.load_data(points())
    config = check(ss.RunConfig, {**RUN, "unit": unit})
    net = layers()
    assert ss.run(config, module=net, data=data, exports=[to]).sha256 == ss.run(config, module=net, data=data).sha256


DIGITS = ["-s", "data.name=digits", "-s", "data.limit=200", "-s", "network=lenet5", "-s", "extractor=magnitude"]
DIGITS += ["-s", "recipe.epochs=1", "-s", "recipe.threads=1", "-s", "recipe.device=cpu", "-s", "recipe.lr=0.02"]


def called(capsys, *words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return ended.value.code, *capsys.readouterr()


@pytest.mark.slow
def test_what_is_only_known_afterwards_leaves_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("subnet_search.deploy.sparse._times", lambda *_: (1.0, 2.0, False))
    words = ["extract", *DIGITS, "--out", "run", "--export", "csr", "--export", "state-dict", "--no-latency"]
    code, out, err = called(capsys, *words)
    assert code == 1
    assert "error: not exported to csr: no layer is significantly faster as csr" in err
    assert err.splitlines()[-1] == "the run is finished, without csr: run/subnetwork.safetensors is complete"
    assert (tmp_path / "run/state-dict.safetensors").is_file()
    assert "not timed (--no-latency)" in out
    code, out, err = called(capsys, "extract", "--resume", "--out", "run", "--export", "csr", "--json")
    assert (code, json.loads(out)["exports"]["csr"]["error"].startswith("no layer is")) == (1, True)


def test_no_verdict_where_no_operation_was_removed(tmp_path, capsys):
    subnet = ss.extract(layers(), points(), "magnitude", density=0.5, recipe=SHORT)
    stages = []
    record = export(subnet, "state-dict", tmp_path / "file", seconds=0, on_stage=stages.append)
    assert ([row["verdict"] for row in record["latency"]], record["faster"]) == (["same"] * 3, False)
    assert stages[-3:] == [f"timing forward passes at batch {n}, {i} of 3 batch sizes" for i, n in enumerate((1, 16, 256), 1)]
    from subnet_search.cli.commands.export import print_export

    print_export(record)
    assert "no operation was removed, so the times differ only by chance: " in capsys.readouterr().out
    record = export(subnet, "state-dict", tmp_path / "file", latency=False)
    assert (record["latency"], record["faster"], record["advice"]) == ([], None, None)


@pytest.mark.slow
def test_an_onnx_file_is_evaluated(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    code, out, err = called(
        capsys, "extract", *DIGITS, "-s", "unit=channel", "--out", "run", "--export", "onnx", "--no-latency"
    )
    assert code == 0, err
    assert "of this file in ONNX Runtime: " in out
    assert "evaluating the file on" in err
    masked = ss.Subnetwork.load("run/subnetwork.safetensors")
    metrics = ss.evaluate(read_artifact("run/onnx.onnx"), "test", data="digits")
    assert metrics["accuracy"] == masked.metrics["test_accuracy"]
    built_in = export(masked, "onnx", "built_in.onnx", normalise=True, latency=False, split="test")["evaluated"]
    assert built_in["exported"] == built_in["masked"] == masked.metrics["test_accuracy"]
    assert ss.evaluate(read_artifact("built_in.onnx"), "test")["accuracy"] == masked.metrics["test_accuracy"]
    assert str(tmp_path).encode() not in (tmp_path / "run/onnx.onnx").read_bytes()
    code, _, err = called(capsys, "evaluate", "run/onnx.onnx", "--latency")
    assert (code, "export measures the latency of an ONNX file" in err) == (2, True)
    (tmp_path / "other.onnx").write_bytes(b"no model")
    code, _, err = called(capsys, "evaluate", "other.onnx")
    assert (code, err.count("\n"), "is not an ONNX model" in err) == (2, 1, True)


@pytest.mark.slow
def test_why_an_onnx_file_was_not_evaluated(tmp_path):
    pytest.importorskip("onnxruntime")
    net, data = layers(), points()
    subnet = ss.extract(net, data, "magnitude", density=0.5, recipe=SHORT)
    found = export(subnet, "onnx", tmp_path / "net.onnx", latency=False)["evaluated"]
    assert found == {
        "split": "val",
        "error": "the data of this run was passed from Python: name a data set, --data NAME",
    }
    found = export(subnet, "onnx", tmp_path / "net.onnx", latency=False, data=data)["evaluated"]
    assert (found["metric"], found["exported"]) == ("accuracy", found["masked"])


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(10, 16), nn.LayerNorm(16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.b(self.norm(self.a(x))).relu())


def test_what_was_left_whole_is_in_the_record_and_in_the_card(tmp_path):
    net = nn.Sequential(Normed(), nn.ReLU(), nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 3))
    subnet = ss.extract(net, points(), "magnitude", density=0.6, unit="channel", dense_layers=["4"], recipe=SHORT)
    reasons = {row["name"]: row["why"] for row in subnet.metrics["channels_left_whole"]}
    assert reasons.keys() == {"0.a", "2"}
    assert reasons["2"] == "layers that are not pruned read or compute them"
    subnet.save_pretrained(tmp_path)
    lines = (tmp_path / "README.md").read_text().splitlines()
    rows = dict(line[2:-2].split(" | ", 1) for line in lines if line.startswith("| ") and line != "| | |")
    assert rows["dense layers"] == "`4`"
    assert reasons["0.a"] in rows["channels not pruned"]
    assert "`4.weight`: in dense_layers" in rows["not pruned"]
    assert json.loads(rows["recipe"].strip("`"))["batch_size"] == 20
    assert json.loads(rows["hyperparameters"].strip("`"))["density"] == 0.6
    assert ss.Subnetwork.from_pretrained(tmp_path, net).origin.dense_layers == ("4",)
