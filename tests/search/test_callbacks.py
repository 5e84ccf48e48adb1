"""The user's functions after each epoch and each trial: who calls them, with what, and what an error in one does."""

import importlib.util
import logging
import re
import sys
from pathlib import Path

import pytest
import yaml

import subnet_search as ss
from subnet_search.cli import main
from subnet_search.core.errors import UserError
from subnet_search.search.engine.worker import run_worker
from subnet_search.search.storage.records import STOPPED

RUN = {
    "network": "lenet_300_100",
    "data": {"name": "digits", "limit": 200},
    "extractor": "snip",
    "recipe": {"epochs": 2, "threads": 1, "device": "cpu"},
}
SPEC = {"name": "toy", "run": RUN, "space": {"extractor.density": {"float": [0.1, 0.5]}}, "trials": 2}
URL = "sqlite:///runs/studies.db"
MODULE = """
def on_epoch(study, trial, epoch):
    with open("epochs.txt", "a") as file:
        print(study.study_name, trial.number, epoch.epoch, "val_accuracy" in epoch.metrics, file=file)


def on_trial(study, trial):
    with open("trials.txt", "a") as file:
        print(trial.number, trial.state.name, trial.values == [trial.user_attrs["val_accuracy"]], file=file)


def few(study):
    pass


nothing = 3
made = []


def works_once(num_classes):
    from torch import nn

    made.append(num_classes)
    if len(made) > 1:
        raise ValueError("once is enough")
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""


@pytest.fixture(autouse=True)
def in_a_folder_with_callbacks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # for workers
    monkeypatch.delenv("SUBNET_SEARCH_STORAGE", raising=False)
    (tmp_path / "calls_of_tests.py").write_text(MODULE)
    monkeypatch.delitem(sys.modules, "calls_of_tests", raising=False)


def lines(file):
    return sorted(Path(file).read_text().splitlines())


def hashes(study):
    return [trial.user_attrs["sha256"] for trial in study.trials]


def said(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    return ended.value.code, out, err


def test_names_reach_worker_processes():
    callbacks = {"on_epoch": "calls_of_tests:on_epoch", "on_trial": "calls_of_tests:on_trial"}
    ss.run_study({**SPEC, "callbacks": callbacks, "workers": 2})
    assert lines("epochs.txt") == [f"toy {trial} {epoch} True" for trial in (0, 1) for epoch in (1, 2)]
    assert lines("trials.txt") == ["0 COMPLETE True", "1 COMPLETE True"]


def test_objects_and_names_change_neither_trials_nor_what_a_study_is():
    plain = hashes(ss.run_study(SPEC, trials=1))
    stored = ss.load_study("toy").user_attrs["spec"]
    assert "callbacks" not in stored
    seen = []
    study = ss.run_study(SPEC, on_epoch=lambda *found: seen.append(found), on_trial=lambda *found: seen.append(found))
    assert hashes(study)[:1] == plain
    assert [[getattr(one, "number", None) for one in found] for found in seen] == [[None, 1, None], [None, 1, None], [None, 1]]
    assert seen[0][1].params == seen[2][1].params
    assert seen[2][1].state.name == "COMPLETE"
    assert study.user_attrs["spec"].replace(" ", "") == stored.replace('"trials":1', '"trials":2').replace(" ", "")
    ss.run_study(SPEC, trials=3, on_trial="calls_of_tests:on_trial")
    assert lines("trials.txt") == ["2 COMPLETE True"]


def test_an_error_is_kept_and_the_trial_goes_on(caplog, capsys):
    def on_epoch(study, trial, epoch):
        raise RuntimeError("the disk of the board is full\nor not there")

    def on_trial(study, trial):
        raise ValueError("no board")

    with caplog.at_level(logging.WARNING, "subnet_search"):
        study = ss.run_study(SPEC, trials=1, on_epoch=on_epoch, on_trial=on_trial)
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [
        "the callback on_epoch failed in trial 0, which is not changed by it: RuntimeError: the disk of the board is full",
        "the callback on_trial failed in trial 0, which is not changed by it: ValueError: no board",
    ]
    attrs = study.trials[0].user_attrs
    assert attrs["on_epoch_error"] == "RuntimeError: the disk of the board is full (epoch 1)"
    assert attrs["on_trial_error"] == "ValueError: no board"
    assert study.trials[0].state.name == "COMPLETE"
    code, out, err = said(capsys, "study", "trial", "toy", 0)
    assert code == 0, err
    assert re.search(r"on_epoch_error +RuntimeError: the disk of the board is full \(epoch 1\)", out)
    assert re.search("on_trial_error +ValueError: no board", out)


def test_a_callback_of_optuna_can_stop_the_study():
    study = ss.run_study(SPEC, on_trial=lambda study, trial: study.stop(), trials=5)
    assert len(study.trials) == 1
    assert study.user_attrs[STOPPED]
    assert len(ss.run_study(SPEC, trials=2).trials) == 2


def test_a_failed_and_a_pruned_trial_end_too():
    ended = []
    constraints = {"density": "<= 0.35"}
    space = {"extractor.density": {"float": [0.1, 0.5]}}
    ss.run_study({**SPEC, "space": space, "constraints": constraints, "trials": 3}, on_trial=lambda _, one: ended.append(one))
    assert {trial.state.name for trial in ended} == {"PRUNED", "COMPLETE"}
    run = {**RUN, "network": "calls_of_tests:works_once"}  # when the study is made
    with pytest.raises(ss.RunError, match="5 trials failed in a row"):
        ss.run_study({**SPEC, "name": "bad", "run": run}, on_trial=lambda study, trial: ended.append(trial))
    assert [trial.state.name for trial in ended[-5:]] == ["FAIL"] * 5


@pytest.mark.parametrize(
    ("more", "given", "message"),
    [
        ({}, {"on_epoch": "nowhere:f"}, "cannot import 'nowhere' for the callback on_epoch 'nowhere:f': No module named"),
        ({}, {"on_epoch": "calls_of_tests:f"}, r"calls_of_tests has no function 'f' \(callback on_epoch"),
        ({}, {"on_trial": "calls_of_tests:nothing"}, "calls_of_tests has no function 'nothing'"),
        (
            {},
            {"on_trial": "calls_of_tests:few"},
            r"on_trial is called as few\(study, trial\), which few does not accept: too many",
        ),
        ({}, {"on_epoch": 3}, r"on_epoch must be a function\(study, trial, epoch\) or package\.module:function, got 3"),
        ({}, {"on_epoch": lambda study: None}, r"on_epoch is called as .*\(study, trial, epoch\), which .* does not accept"),
        (
            {},
            {"on_epoch": print, "workers": 2},
            "on_epoch is a Python object, which only this process has: run it with workers=1",
        ),
        ({"callbacks": {"on_epoch": "few"}}, {}, r"callbacks: on_epoch: give package\.module:function, or {hub: .*got 'few'"),
        ({"callbacks": {"on_epoch": print}}, {}, r"callbacks: on_epoch: give package\.module:function"),
        ({"callbacks": {"on_end": "a:b"}}, {}, "callbacks.on_end"),
        (
            {"callbacks": {"on_trial": {"hub": "wandb"}}},
            {},
            r"callbacks: hub: give the package as in callbacks/NAME, got 'wandb'",
        ),
    ],
)
def test_mistakes_are_one_line_before_a_study_is_made(more, given, message, tmp_path):
    with pytest.raises(UserError, match=message) as refused:
        ss.run_study({**SPEC, **more}, **given)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "runs").exists()


def test_a_stored_study_imports_them_only_with_permission(capsys, tmp_path):
    spec = {**SPEC, "trials": 1, "callbacks": {"on_trial": "calls_of_tests:on_trial"}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(spec))
    code, _, err = said(capsys, "study", "run", "study.yaml")
    assert code == 0, err
    sys.modules.pop("calls_of_tests")
    for words in (("run", "toy", "--trials", 2), ("worker", "toy", "--trials", 2)):
        code, _, err = said(capsys, "study", *words)
        assert (code, "--allow-import calls_of_tests:on_trial" in err, err.count("\n")) == (2, True, 1)
    assert "calls_of_tests" not in sys.modules
    assert run_worker("toy", URL, trials=2, allow_imports=["calls_of_tests"]) == [1]
    assert lines("trials.txt") == ["0 COMPLETE True", "1 COMPLETE True"]
    sys.modules.pop("calls_of_tests")
    assert said(capsys, "study", "extract", "toy", "--best", "--out", "best")[0] == 0  # training again calls nothing
    assert "calls_of_tests" not in sys.modules


# Recipes of the documentation

PAGE = Path(__file__).parents[2] / "docs" / "callbacks.md"


def recipe(name):
    """The Python code under a heading of the page."""
    return re.search(rf"^## {name}$.*?^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)[1]


@pytest.mark.parametrize("name", ["TensorBoard", "Weights & Biases", "MLflow"])
def test_the_recipes_are_python(name):
    compile(recipe(name), name, "exec")


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs tensorboard")
def test_the_recipe_for_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tmp_path / "board_of_tests.py").write_text(recipe("TensorBoard"))
    ss.run_study(SPEC, on_epoch="board_of_tests:on_epoch", on_trial="board_of_tests:on_trial")
    for number in (0, 1):
        (folder,) = (tmp_path / "runs" / "tensorboard" / "toy").glob(f"{number:04d}")
        events = EventAccumulator(str(folder)).Reload()
        assert [event.step for event in events.Scalars("val_accuracy")] == [1, 2]
        assert {"density", "train_loss"} <= set(events.Tags()["scalars"])
