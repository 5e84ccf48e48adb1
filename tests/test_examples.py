"""The examples in short form: networks, data and tasks of one's own (extract, resume, evaluate, export, a study), notebooks.

The notebooks are stored with the output of `jupyter execute --inplace` (of the package nbclient), without standard error.
"""

import json
import sys
from pathlib import Path

import optuna
import pytest

import subnet_search as ss
from subnet_search.core.errors import Interrupted
from subnet_search.extraction.config_file import check

EXAMPLES = Path(__file__).parents[1] / "examples"
GPT = {"name": "gpt:GPT", "options": {"layers": 1, "heads": 2, "width": 16, "context": 16}}
CASES = {
    "gpt": {
        "network": GPT,
        "data": {"name": f"text:{EXAMPLES.parent / 'README.md'}", "context": 16, "limit": 200},
        "task": "language_modeling",
        "extractor": {"name": "gumbel", "density": 0.3},
    },
    "text_classifier": {
        "network": "text_classifier:Encoder",
        "data": {"name": "text_classifier:make", "options": {"count": 120}},
        "extractor": {"name": "magnitude", "density": 0.3},
    },
    "lstm": {
        "network": "lstm:Recurrent",
        "data": {"name": "lstm:make", "options": {"count": 120}},
        "extractor": {"name": "granet", "density": 0.3},
    },
    "unet": {
        "network": {"name": "unet:UNet", "options": {"width": 16}},
        "data": {"name": "unet:make", "options": {"count": 90, "size": 16}},
        "task": "segmentation",
        "extractor": {"name": "l1_filters", "density": 0.5},
        "unit": "channel",
    },
    "two_heads": {
        "network": "two_heads:TwoHeads",
        "data": {"name": "two_heads:make", "options": {"count": 120}},
        "task": {"name": "two_heads:Both", "weight": 0.4},
        "extractor": {"name": "snip", "density": 0.3},
    },
    "diabetes": {
        "network": "diabetes:Perceptron",
        "data": "diabetes:make",
        "task": "regression",
        "extractor": {"name": "magnitude", "density": 0.3},
    },
    "augmented": {
        "network": "small_conv",
        "data": {"name": "augmented:make", "workers": 1},
        "extractor": {"name": "rigl", "density": 0.3},
    },
    "my_network": {
        "network": "my_network:MyNetwork",
        "data": {"name": "digits", "limit": 200},
        "extractor": {"name": "granet", "density": 0.3},
    },
    "imbalanced": {
        "network": "imbalanced:Perceptron",
        "data": {"name": "imbalanced:make", "options": {"count": 200}},
        "task": {"class_weights": "balanced"},
        "extractor": {"name": "edge_popup", "density": 0.3},
    },
}
SMALL_BERT = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
SMALL_VIT = {"img_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2}
CASES |= {
    "bert": {
        "network": {"name": "hf:bert", "options": SMALL_BERT},
        "data": {"name": "bert:make", "options": {"count": 120}},
        "extractor": {"name": "magnitude", "density": 0.3},
    },
    "vit": {
        "network": {"name": "timm:vit_tiny_patch16_224", "options": SMALL_VIT},
        "data": "augmented:make",
        "extractor": {"name": "granet", "density": 0.3},
        "dense_layers": ["head"],
    },
    "group_norm": {
        "network": {"name": "resnet20", "options": {"norm": "group", "activation": "silu", "width": 0.5}},
        "data": "augmented:make",
        "extractor": {"name": "l1_filters", "density": 0.5},
        "unit": "channel",
    },
}
RECIPE = {"epochs": 2, "batch_size": 16, "lr": 0.01, "threads": 1, "device": "cpu"}
LATER = (
    "gpt",
    "two_heads",
    "my_network",
    "text_classifier",
    "lstm",
    "diabetes",
    "augmented",
    "imbalanced",
    "vit",
    "bert",
    "group_norm",
)  # exports in make test-long
LONG = (
    "two_heads",
    "unet",
    "diabetes",
    "imbalanced",
    "text_classifier",
    "lstm",
    "augmented",
    "bert",
    "vit",
    "group_norm",
)  # studies in make test-long
PACKAGES = {"bert": "transformers", "vit": "timm"}
OBJECTIVES = {"imbalanced": "val_balanced_accuracy", "two_heads": "val_mae"}


@pytest.fixture
def here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES))


def config(name):
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    return check(ss.RunConfig, {**CASES[name], "recipe": RECIPE})


def network_and_task(name):
    case = CASES[name]
    network = case["network"]["name"] if isinstance(case["network"], dict) else case["network"]
    task = case.get("task")
    return {"network": network if ":" in network else None, "task": task}


@pytest.mark.parametrize("name", CASES)
def test_extract_stop_resume_and_evaluate(name, here, tmp_path):
    whole = ss.run(config(name), tmp_path / "whole")
    steps = iter(range(10_000))
    with pytest.raises(Interrupted):
        ss.run(config(name), tmp_path / "cut", should_stop=lambda: next(steps) >= 6)
    assert ss.run(config(name), tmp_path / "cut", resume=True).sha256 == whole.sha256
    loaded = ss.Subnetwork.load(tmp_path / "whole" / "subnetwork.safetensors")
    data = CASES[name]["data"]
    found = ss.evaluate(loaded, data=data, **network_and_task(name))
    task = config(name).task
    assert found[task.leading] == pytest.approx(whole.metrics[f"val_{task.leading}"], rel=1e-6)
    assert whole.metrics["reached"] == pytest.approx(
        CASES[name]["extractor"]["density"], abs=0.1 if CASES[name].get("unit") else 0.01
    )


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.long] * (name in LATER)) for name in CASES])
def test_export(name, here, tmp_path):
    subnet = ss.run(config(name), tmp_path / "run")
    formats = ["state-dict", "onnx", "compact"] if CASES[name].get("unit") else ["state-dict", "onnx"]
    for to in formats:
        network = network_and_task(name)["network"]
        record = ss.export(subnet, to, tmp_path / f"{to}.file", network=network, seconds=0.2)
        assert record["difference"] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt", *(pytest.param(name, marks=pytest.mark.long) for name in LONG)])
def test_a_study_with_two_workers(name, here, tmp_path):
    task = config(name).task
    objective = OBJECTIVES.get(name, f"val_{task.leading}")
    settings = {
        "name": name,
        "run": {**CASES[name], "recipe": RECIPE},
        "space": {"extractor.density": {"choice": [0.4, 0.5, 0.75]}},
        "objective": objective,
        "trials": 3,
        "sampler": "random",
        "storage": f"sqlite:///{tmp_path / 'study.db'}",
    }
    study = ss.run_study(check(ss.StudySpec, settings), workers=2)
    assert [trial.state for trial in study.trials] == [optuna.trial.TrialState.COMPLETE] * 3
    leading = objective.removeprefix("val_")
    wanted = optuna.study.StudyDirection[task.directions[leading].upper()]
    assert study.direction == wanted


@pytest.mark.slow
@pytest.mark.parametrize(("name", "values"), [("untrained_subnetwork", {"epochs": 1}), ("study", {"trials": 3, "epochs": 1})])
def test_a_notebook_runs_and_is_stored_with_small_outputs(name, values, here, monkeypatch, capsys):
    """The cells are run from the top, with other values after the cell that is tagged `parameters`."""
    path = EXAMPLES / f"{name}.ipynb"
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(pytest.importorskip("matplotlib.pyplot"), "show", lambda: None)
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    names = {}
    for cell in cells:
        exec("".join(cell["source"]), names)
        names |= values if "parameters" in cell["metadata"].get("tags", []) else {}
    names["plt"].close("all")
    assert {"untrained_subnetwork": "the same predictions: True", "study": "bit for bit"}[name] in capsys.readouterr().out
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {(output.get("name"), output["output_type"]) for output in outputs} == {
        ("stdout", "stream"),
        (None, "execute_result"),
        (None, "display_data"),
    }
