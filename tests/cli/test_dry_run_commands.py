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
    assert "prunable weights" in text
    assert json.loads(said("study", "run", "study.yaml", "--json"))["study"]["trials"] == 2


def test_compare(said):
    words = "compare", "run.yaml", "--extractors", "snip,random", "--densities", "0.2,0.1", "--seeds", "3"
    text = said(*words)
    assert "15 runs" in text
    assert "recipe: shared by all methods" in text
    assert "0.2 of 268,048 prunable weights" in text
    assert json.loads(said(*words, "--json"))["runs"] == 15
