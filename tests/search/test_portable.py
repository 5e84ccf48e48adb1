"""A study in a file: everything of it, nothing of where it was, and the same study wherever it is read."""

import json
import math
import os
import shutil
import subprocess
import sys

import optuna
import pytest
from optuna.trial import TrialState
from servers import Postgres
from sqlalchemy import event
from test_reading import fill, storage  # noqa: F401

import subnet_search as ss
from subnet_search.core.errors import Interrupted, UserError
from subnet_search.extraction.config_file import check
from subnet_search.search.engine.worker import run_worker
from subnet_search.search.spec.study_spec import StudySpec, spec_of
from subnet_search.search.storage.connect import load_study, open_storage, rdb
from subnet_search.search.storage.read import read_trials
from subnet_search.search.storage.transfer import export_study, import_study, study_in, write_export

pytest_plugins = ["servers"]
RUN = {
    "network": "lenet_300_100",
    "data": {"name": "digits", "limit": 200},
    "extractor": "random",
    "recipe": {"epochs": 3, "threads": 1, "device": "cpu"},
}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def spec(**more):
    space = {"recipe.lr": {"float": [0.01, 1], "log": True}}
    return check(StudySpec, {"name": "toy", "run": RUN, "space": space, "trials": 6, "parallel": 2, **more})


def elsewhere(name="other"):
    return open_storage(f"sqlite:///{name}.db", create=True)


def content(study):
    """All of a study but ids, with NaN, which equals nothing, in words; what ran waits."""
    return {
        "directions": study.directions,
        "metric_names": study.metric_names,
        "user_attrs": study.user_attrs,
        "trials": [
            (
                t.number,
                t.state if t.state != TrialState.RUNNING else TrialState.WAITING,
                t.values,
                t.params,
                t.distributions,
                {key: value for key, value in t.user_attrs.items() if key not in ("worker", "interruptions")},
                t.system_attrs,
                {step: str(value) for step, value in t.intermediate_values.items()},
                t.datetime_start,
                t.datetime_complete,
            )
            for t in read_trials(study)
        ],
    }


def test_a_study_is_the_same_in_another_storage(storage):  # noqa: F811
    study = fill(storage)
    study.set_user_attr("odd", ["é", None, 1e-300, {"deep": [True]}])
    study._storage.set_study_system_attr(study._study_id, "study:metric_names", ["a", "b"])
    running = study.ask()
    study._storage.set_trial_intermediate_value(running._trial_id, 7, math.nan)
    running.set_user_attr("loss", [math.nan, math.inf, {"x": -math.inf}])
    write_export(study, "s.json")
    expected = content(study)
    in_words(expected["trials"][running.number][5])
    for there, same in ((elsewhere(), "s"), (storage, "s3")):
        read = content(import_study("s.json", there, None if same == "s" else same))
        in_words(read["trials"][running.number][5])
        assert read == expected
    assert [t.number for t in study_in("s.json").trials if t.state == TrialState.RUNNING] == [9, 10]


def in_words(attrs):
    attrs["loss"] = str(attrs["loss"])


def test_the_file_is_strict_json_without_the_storages_password(storage):  # noqa: F811
    study = fill(storage)
    study._storage.set_trial_intermediate_value(study.ask()._trial_id, 0, math.nan)
    write_export(study, "s.json")
    with open("s.json") as file:
        text = file.read()
    record = json.loads(text, parse_constant=pytest.fail)
    assert (record["format"], record["version"], len(record["study"]["trials"])) == ("subnet-search study", 1, 12)
    assert record["study"]["trials"][0]["values"] == [0.1 + 0.2, {"non_finite": "-inf"}]
    assert Postgres.password not in text
    assert "://" not in text


def test_what_was_under_way_waits_and_run_folders_are_its_own():
    study = ss.run_study(spec(trials=1))
    for _ in range(2):
        trial = study.ask()
        trial.set_user_attr("worker", {"host": "h", "pid": 3, "token": "t"})
    write_export(study, "toy.json")
    same, other = import_study("toy.json", elsewhere()), import_study("toy.json", elsewhere(), "new")
    for number, name in ((1, "toy"), (2, "new")):
        trial = (same if name == "toy" else other).trials[number]
        assert trial.state == TrialState.WAITING
        assert trial.user_attrs["worker"] == {}
        [past] = trial.user_attrs["interruptions"]
        assert (past["host"], past["pid"], past["died"]) == ("h", 3, False)
    assert len({one.user_attrs["folder"] for one in (study, same, other)}) == 3
    assert other.user_attrs["folder"].startswith("runs/trials/new-")
    assert (spec_of(same).name, spec_of(other).name) == ("toy", "new")
    assert same.trials[0] == study.trials[0]


def test_the_dashboards_notes_stay_with_their_trials():
    study = optuna.create_study(storage=elsewhere("first"))
    for _ in range(3):
        study.tell(study.ask(), 1.0)
    id = study.trials[2]._trial_id
    for key, value in ((f"dashboard:{id}:note_ver", 1), (f"dashboard:{id}:note_str:0", "odd"), ("dashboard:note_ver", 4)):
        study._storage.set_study_system_attr(study._study_id, key, value)
    write_export(study, "s.json")
    there = elsewhere()
    fill(there)  # so that ids are others
    copy = import_study("s.json", there)
    notes = copy._storage.get_study_system_attrs(copy._study_id)
    assert copy.trials[2]._trial_id != id
    assert notes[f"dashboard:{copy.trials[2]._trial_id}:note_str:0"] == "odd"
    assert notes["dashboard:note_ver"] == 4


def damaged(text, how):
    match how:
        case "truncated":
            return text[: len(text) // 2]
        case "a number":
            return text.replace("0.75", "0.76", 1)
        case "a key":
            return text.replace('"distributions"', '"distribution"')
        case "newer":
            return text.replace('"version":1', '"version":2')
        case "other":
            return '{"version": 1}'
        case "a list":
            return "[]"
        case "bytes":
            return text.replace("subnet", "sub\x00net", 1)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "x.json is not a study that `study export` wrote, or is damaged"),
        ("a number", "x.json is damaged: its content does not match its hash"),
        ("a key", "x.json is damaged"),
        ("newer", "x.json has format 2, made by a newer version: this one reads 1"),
        ("other", "x.json is not a study"),
        ("a list", "x.json is not a study"),
        ("bytes", "x.json is not a study"),
    ],
)
def test_a_file_that_is_not_whole_is_refused(how, message):
    write_export(fill(elsewhere("first")), "x.json")
    with open("x.json") as file:
        text = file.read()
    with open("x.json", "w") as file:
        file.write(damaged(text, how))
    with pytest.raises(UserError, match=message) as caught:
        import_study("x.json", elsewhere())
    assert "\n" not in str(caught.value)
    assert optuna.get_all_study_names(elsewhere()) == []


def test_what_is_no_file_and_a_name_that_is_taken():
    with pytest.raises(UserError, match=r"cannot read none\.json: No such file"):
        import_study("none.json", elsewhere())
    with pytest.raises(UserError, match=r"cannot read \.: Is a directory"):
        import_study(".", elsewhere())
    there = elsewhere()
    write_export(fill(there), "s.json")
    with pytest.raises(UserError, match="the storage has a study 's' already: give this one another name"):
        import_study("s.json", there)
    assert len(import_study("s.json", there, "s3").trials) == 12


def test_an_import_that_is_broken_off_leaves_nothing(storage):  # noqa: F811
    write_export(fill(elsewhere("first"), "whole"), "s.json")

    @event.listens_for(rdb(storage).engine, "before_cursor_execute")
    def break_off(connection, cursor, statement, *_):
        if "INTO study_user_attributes" in statement or "INTO trial_user_attributes" in statement:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_study("s.json", storage)
    event.remove(rdb(storage).engine, "before_cursor_execute", break_off)
    assert optuna.get_all_study_names(storage) == []
    with rdb(storage).engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM trials").scalar() == 0
    assert len(import_study("s.json", storage).trials) == 12


@pytest.mark.slow
def test_an_import_that_is_killed_leaves_nothing():
    write_export(fill(elsewhere("first"), "whole"), "s.json")
    code = (
        "import os, signal; from sqlalchemy import event; from subnet_search.search.storage.connect import open_storage\n"
        "from subnet_search.search.storage.transfer import import_study\n"
        "storage = open_storage('sqlite:///other.db', create=True)\n"
        "@event.listens_for(storage.engine, 'before_cursor_execute')\n"
        "def kill(connection, cursor, statement, *_):\n"
        "    if 'INTO trial_user_attributes' in statement: os.kill(os.getpid(), signal.SIGKILL)\n"
        "import_study('s.json', storage)"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == -9
    assert optuna.get_all_study_names(elsewhere()) == []
    assert len(import_study("s.json", elsewhere()).trials) == 12


def results(study):
    kept = ("config", "val_accuracy", "sha256", "seed", "steps")
    return [
        (t.number, t.state, t.params, t.values, t.intermediate_values, {key: t.user_attrs.get(key) for key in kept})
        for t in study.trials
    ]


def test_an_imported_study_goes_on_as_the_original_would_have():
    sampler = {"name": "tpe", "n_startup_trials": 3}
    whole = ss.run_study(spec(sampler=sampler), storage="sqlite:///whole.db")
    calls = []

    def half_way():
        calls.append(1)
        return len(calls) > 18

    with pytest.raises(Interrupted):
        ss.run_study(spec(sampler=sampler), storage="sqlite:///part.db", should_stop=half_way)
    part = load_study("toy", open_storage("sqlite:///part.db"))
    states = [t.state.name for t in part.trials]
    assert states[-1] == "WAITING"
    assert 1 < len(states) < 6
    write_export(part, "toy.json")
    shutil.rmtree("runs")  # as on another machine
    copy = import_study("toy.json", elsewhere())
    run_worker("toy", "sqlite:///other.db")
    assert results(copy) == results(whole)
    assert export_study(copy)["study"]["directions"] == ["maximize"]
