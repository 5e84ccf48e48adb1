"""Methods from outside the package: found by import path, in configurations, Python, studies and worker processes."""

import json
import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from toys import mlp, points

import subnet_search as ss
from subnet_search import RunConfig, Subnetwork, UserError
from subnet_search.cli import main
from subnet_search.extraction.config_file import check
from subnet_search.extractors import create, get_extractor, registry

EXAMPLE = Path(__file__).parents[2] / "examples" / "largest.py"
RECIPE = ss.Recipe(epochs=1, batch_size=20, threads=1, device="cpu")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder with the example's file, as a user has one."""
    shutil.copy(EXAMPLE, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "largest", raising=False)
    return tmp_path


def test_by_path_in_python_and_in_a_configuration(here):
    found = ss.extract(mlp(), points(), "largest:Largest", density=0.25, recipe=RECIPE)
    assert found.density == pytest.approx(0.25, abs=0.01)
    assert found.origin.extractor == {"name": "largest:Largest", "density": 0.25}
    config = check(RunConfig, {"extractor": {"name": "largest:Largest", "density": 0.25}})
    assert config.dump()["extractor"] == {"name": "largest:Largest", "density": 0.25}
    with pytest.raises(UserError, match=r"unknown key 'extractor.densty': did you mean 'density'\?"):
        check(RunConfig, {"extractor": {"name": "largest:Largest", "densty": 0.25}})


def test_an_object_of_a_class_that_nobody_registered(here):
    import largest

    found = ss.extract(mlp(), points(), largest.Largest(density=0.25), recipe=RECIPE)
    assert found.origin.extractor["name"] == "largest:Largest"
    assert create({"name": "largest:Largest", "density": 0.25}) == largest.Largest(density=0.25)


def test_an_error_inside_a_method_names_its_line(here, capsys):
    code = (here / "largest.py").read_text().replace("ss.magnitude(net.weights)", "net.nothing")
    (here / "largest.py").write_text(code)
    line = next(number for number, text in enumerate(code.splitlines(), 1) if "net.nothing" in text)
    reason = f"AttributeError: 'Supernet' object has no attribute 'nothing' (largest, line {line})"
    values = {"network": "lenet_300_100", "data": {"name": "digits", "limit": 100}, "recipe": RECIPE.model_dump()}
    (here / "run.yaml").write_text(json.dumps(values))
    with pytest.raises(SystemExit):
        main(["extract", "run.yaml", "-s", "extractor=largest:Largest"])
    assert f"unexpected {reason} (traceback: " in capsys.readouterr().err
    record = ss.compare("run.yaml", ["largest:Largest"], [0.3], seeds=1, progress=False)
    assert record["cells"][0]["reason"] == reason


@pytest.mark.slow
def test_the_command_line_finds_a_file_of_the_current_folder(here):
    words = ["-s", "extractor=largest:Largest", "-s", "recipe.epochs=1", "-s", "data.limit=100", "-s", "recipe.threads=1"]
    done = subprocess.run(
        [Path(sys.executable).with_name("subnet-search"), "extract", *words, "--out", "run"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((here / "run" / "summary.json").read_text())["extractor"] == "largest:Largest"


@pytest.mark.slow
def test_a_study_with_two_workers(here):
    """They find the method, finish the budget exactly, and find what one process finds."""
    (here / "s.yaml").write_text(
        "name: mine\n"
        "run: {network: lenet_300_100, data: {name: digits, limit: 100}, recipe: {epochs: 1, threads: 1, device: cpu}}\n"
        "space: {extractor: {choice: [random, 'largest:Largest']}}\n"
        "sampler: random\ntrials: 6\nworkers: 2\n"
    )
    study = ss.run_study("s.yaml")
    assert len(study.trials) == 6
    assert len({trial.user_attrs["worker"]["pid"] for trial in study.trials}) == 2
    alone = ss.run_study("s.yaml", storage="sqlite:///alone.db", workers=1)
    assert [trial.user_attrs["sha256"] for trial in study.trials] == [trial.user_attrs["sha256"] for trial in alone.trials]
    used = [trial.user_attrs["config"]["extractor"]["name"] for trial in study.trials]
    assert set(used) == {"random", "largest:Largest"}
    assert all(trial.state.name == "COMPLETE" for trial in study.trials)


def test_a_comparison_imports_the_methods_that_it_is_given(here):
    config = {"network": "lenet_300_100", "data": {"name": "digits", "limit": 100}, "recipe": RECIPE}
    found = ss.compare(config, ["random", "largest:Largest"], [0.2], seeds=1)
    assert [(row["method"], row["complete"]) for row in found["rows"]] == [("random", 1), ("largest:Largest", 1), ("dense", 1)]


def test_a_subnetwork_of_a_method_that_is_not_here(here, monkeypatch):
    found = ss.extract("lenet_300_100", {"name": "digits", "limit": 100}, "largest:Largest", recipe=RECIPE)
    found.save("s.safetensors")
    (here / "largest.py").unlink()
    monkeypatch.delitem(sys.modules, "largest")
    loaded = Subnetwork.load("s.safetensors")
    assert loaded.sha256 == found.sha256
    assert ss.evaluate(loaded)["accuracy"] == found.metrics["val_accuracy"]
    assert ss.export(loaded, "state-dict", here / "sd.safetensors", seconds=0.01)["bytes"] > 0
    assert "largest" not in sys.modules


def test_it_is_described_like_the_others(here, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["methods", "largest:Largest", "--json"])
    assert not stopped.value.code
    method = json.loads(capsys.readouterr().out)
    assert method["paper"] == "Frankle & Carbin 2019, arXiv:1803.03635"
    assert [field["name"] for field in method["hyperparameters"]] == ["density"]


def test_a_file_in_place_of_a_class_is_told_how_to_name_it():
    with pytest.raises(UserError, match=r"valid: ac_dc, .*; a method in a file of your own is module:Class, as in my_method:"):
        get_extractor("./largest.py")


def test_the_printed_command_allows_the_import(here, capsys):
    run = {"network": "lenet_300_100", "data": {"name": "digits", "limit": 100}, "recipe": {"epochs": 1, "threads": 1}}
    ss.run_study({"name": "mine", "run": run, "space": {"extractor": {"choice": ["largest:Largest"]}}, "trials": 1})
    with pytest.raises(SystemExit):
        main(["study", "show", "mine"])
    assert "subnet-search study extract mine --allow-import largest:Largest" in " ".join(capsys.readouterr().out.split())


def test_an_entry_point_gives_a_short_name(here, monkeypatch):
    point = EntryPoint("largest", "largest:Largest", registry.GROUP)
    monkeypatch.setattr(registry, "_entry_points", lambda: {"largest": point})
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))
    assert "largest" in registry.extractor_names()
    assert get_extractor("largest").name == "largest"
    assert create("largest").density == 0.1


@pytest.mark.parametrize(
    ("code", "name", "said"),
    [
        (
            "",
            "nothing_of_the_kind:Mine",
            "cannot import the extractor 'nothing_of_the_kind:Mine' (package.module:Class, in the ",
        ),
        ("", "broken_method:Mine", "cannot import the extractor 'broken_method:Mine'"),
        ("1 / 0", "broken_method:Mine", "ZeroDivisionError: division by zero"),
        ("Mine = 3", "broken_method:Mine", "broken_method:Mine is a int, not a class derived from subnet_search.Extractor"),
        (
            "from subnet_search.extractors.author import Extractor\nclass Mine(Extractor): pass",
            "broken_method:Mine",
            "broken_method:Mine must declare paper and paradigm: see CONTRIBUTING.md",
        ),
    ],
)
def test_what_cannot_be_imported_is_one_line(here, monkeypatch, code, name, said):
    (here / "broken_method.py").write_text(code)
    monkeypatch.delitem(sys.modules, "broken_method", raising=False)
    with pytest.raises(UserError) as caught:
        check(RunConfig, {"extractor": name})
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_the_example_is_the_one_that_is_shown():
    assert EXAMPLE.read_text() in (EXAMPLE.parents[1] / "CONTRIBUTING.md").read_text()


def test_every_unit_that_the_example_declares(here):
    for unit in ("weight", "channel", "2:4", "block:4"):
        found = ss.extract(mlp(), points(), "largest:Largest", density=0.25, unit=unit, recipe=RECIPE)
        assert torch.tensor(found.density) < 0.5
