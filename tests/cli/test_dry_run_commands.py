"""`--dry-run` of extract, study run and compare: everything in 80 columns, and nothing written."""

import json

import pytest
import yaml

from subnet_search.cli import main

RECIPE = {"epochs": 2, "batch_size": 32, "device": "cpu"}
RUN = {"network": "resnet20", "data": {"name": "digits", "limit": 200}, "extractor": "snip", "recipe": RECIPE}
STUDY = {"name": "mine", "run": RUN, "space": {"extractor.density": {"choice": [0.1, 0.2]}}, "trials": 2}


@pytest.fixture
def said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))

    def call(*words):
        with pytest.raises(SystemExit) as ended:
            main([*words, "--dry-run"])
        assert ended.value.code == 0
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run.yaml", "study.yaml"]
        return capsys.readouterr().out

    return call


def test_extract(said):
    text = said("extract", "run.yaml", "-s", "recipe.threads=1")
    complete, _, plan = text.partition("\n\n")
    assert yaml.safe_load(complete)["recipe"]["momentum"] == 0.9
    assert max(map(len, plan.splitlines())) <= 80
    assert "prunable" in plan
    assert "left whole: normalisation" in plan
    assert "268,048 prunable weights" in plan
    assert "(measured in a forward" in plan
    record = json.loads(said("extract", "run.yaml", "--json"))
    assert record["config"]["network"]["name"] == "resnet20"


def test_study_run(said):
    text = said("study", "run", "study.yaml")
    assert "extractor.density: 0.1 | 0.2" in text
    assert "threads: 1\n" in text
    config, _, plan = text[text.index("# complete configuration") :].partition("\n\n")
    assert yaml.safe_load(config)["extractor"]["density"] == "searched: 0.1 | 0.2"
    assert "density  searched: 0.1 | 0.2 " in plan
    assert json.loads(said("study", "run", "study.yaml", "--json"))["study"]["trials"] == 2


def test_study_run_shows_no_value_that_is_searched_or_of_another_method(said):
    lr = [{"when": {"extractor": "gumbel"}, "value": 50}, {"when": {"extractor": "snip"}, "float": [0.1, 0.2]}]
    space = {"extractor": {"choice": {"snip": [], "gumbel": ["temperature"]}}, "network": {"choice": ["conv2", "conv4"]}}
    space |= {"recipe.lr": lr, "recipe.epochs": {"int": [1, 2]}}
    record = json.loads(said("study", "run", "study.yaml", "--json", "-s", f"space={json.dumps(space)}"))["run"]
    config = record["config"]
    assert config["extractor"] == {"name": "searched: snip | gumbel", "temperature": "searched: 0.3 to 3, log (gumbel)"}
    assert config["recipe"]["lr"] == "50 (gumbel); searched: 0.1 to 0.2 (snip)"
    assert config["recipe"]["epochs"] == "searched: 1 to 2"
    assert config["recipe"]["schedule"] == "depends on the method or unit"  # each has its published one
    assert config["recipe"]["batch_size"] == 32
    assert config["network"]["name"] == "searched: conv2 | conv4"
    assert record["density"] == "depends on the method"


def test_compare(said):
    words = "compare", "run.yaml", "--extractors", "snip,random", "--densities", "0.2,0.1", "--seeds", "3"
    text = said(*words)
    assert "15 runs" in text
    assert "recipe: shared by all methods" in text
    assert "0.2 of 268,048 prunable weights" in text
    assert json.loads(said(*words, "--json"))["runs"] == 15
