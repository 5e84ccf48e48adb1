"""The command `study prune-files`: what it removes is shown first, and only removed when confirmed."""

import json
from pathlib import Path

import pytest
from optuna.trial import TrialState, create_trial

from subnet_search.cli import main
from subnet_search.extraction.config_file import check
from subnet_search.search.spec.study_spec import StudySpec
from subnet_search.search.storage.study_folder import folder_of
from subnet_search.search.studies.launcher import prepare_study

URL = "sqlite:///s.db"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of a study of three trials, the second of which is the best."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SUBNET_SEARCH_STORAGE", URL)
    space = {"recipe.lr": {"float": [0.01, 1], "log": True}}
    study = prepare_study(check(StudySpec, {"name": "toy", "run": {"data": "digits"}, "space": space}), URL)
    for number, value in enumerate((0.5, 0.9, 0.7)):
        path = folder_of(study) / f"{number:04d}"
        path.mkdir(parents=True)
        (path / "log.txt").write_bytes(b"x" * 1000)
        study.add_trial(create_trial(state=TrialState.COMPLETE, values=[value], user_attrs={"folder": str(path)}))
    return folder_of(study)


def said(capsys, *words, code=0):
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["study", *words])
    shown = capsys.readouterr()
    assert ended.value.code == code, shown
    return shown.err if code else shown.out


def left(folder: Path):
    return sorted(path.name for path in folder.iterdir())


def test_it_shows_what_it_removes_and_asks(folder, capsys, monkeypatch):
    what = f"2 run folders (2.0 kB) in {folder}"
    assert said(capsys, "prune-files", "toy", "--dry-run").splitlines() == [
        "toy keeps 1 run folder (1.0 kB) of the best and of unfinished trials: 1",
        f"would remove {what}",
    ]
    assert f"standard input is not a terminal: use --yes to remove {what}" in said(capsys, "prune-files", "toy", code=2)
    assert left(folder) == ["0000", "0001", "0002"]
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda words, abort: asked.append(words))
    asked: list[str] = []
    assert said(capsys, "prune-files", "toy", "--keep", "2").splitlines()[-1] == f"removed 1 run folder (1.0 kB) in {folder}"
    assert asked == [f"Remove 1 run folder (1.0 kB) in {folder}?"]
    assert left(folder) == ["0001", "0002"]
    assert "removed 1 run folder" in said(capsys, "prune-files", "toy", "--yes")
    assert said(capsys, "prune-files", "toy").splitlines()[-1] == "there are no other files to remove"
    assert left(folder) == ["0001"]


def test_show_says_what_is_there(folder, capsys):
    shown = " ".join(said(capsys, "show", "toy").split())
    assert f"files {folder}: 1 run folder (1.0 kB) of the best and of unfinished trials; 2 run folders (2.0 kB) of" in shown
    assert "subnet-search study prune-files toy" in shown
    assert json.loads(said(capsys, "show", "toy", "--json"))["files"]["not_kept"] == {"folders": 2, "bytes": 2000}


def test_mistakes_are_one_line(folder, capsys):
    assert "did you mean 'toy'" in said(capsys, "prune-files", "toi", code=2)
    assert "--keep" in said(capsys, "prune-files", "toy", "--keep", "0", code=2)
