"""A study in a file: everything of it, nothing of where it was, and the same study wherever it is read."""

import math
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

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
from subnet_search.search.storage.transfer import import_study, study_in, write_export

pytestmark = pytest.mark.slow

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
    write_export(study, "s.db")
    expected = content(study)
    in_words(expected["trials"][running.number][5])
    for there, same in ((elsewhere(), "s"), (storage, "s3")):
        read = content(import_study("s.db", there, None if same == "s" else same))
        in_words(read["trials"][running.number][5])
        assert read == expected
    assert [t.number for t in study_in("s.db").trials if t.state == TrialState.RUNNING] == [9, 10]


def in_words(attrs):
    attrs["loss"] = str(attrs["loss"])


def test_optuna_opens_the_file_as_it_is_and_the_storages_password_is_not_in_it(storage):  # noqa: F811
    study = fill(storage)
    running = study.ask()
    study._storage.set_trial_intermediate_value(running._trial_id, 0, math.nan)
    write_export(study, "s.db")
    theirs = optuna.load_study(study_name="s", storage="sqlite:///s.db")
    assert [trial.state for trial in theirs.trials] == [trial.state for trial in study.trials]
    assert theirs.trials[0].values == [0.1 + 0.2, -math.inf]
    assert math.isnan(theirs.trials[running.number].intermediate_values[0])
    content = Path("s.db").read_bytes()
    assert Postgres.password.encode() not in content
    assert b"://" not in content


def test_the_dashboard_opens_the_file_as_it_is():
    optuna_dashboard = pytest.importorskip("optuna_dashboard")
    write_export(fill(elsewhere("first")), "s.db")
    said = []
    app = optuna_dashboard.wsgi("sqlite:///s.db")
    page = app({"PATH_INFO": "/api/studies/1", "REQUEST_METHOD": "GET"}, lambda status, *_: said.append(status))
    assert said == ["200 OK"]
    assert b'"name": "s"' in b"".join(page)


def test_a_file_is_not_changed_by_reading_it():
    write_export(fill(elsewhere("first")), "s.db")
    Path("s.db").chmod(0o400)
    before = Path("s.db").read_bytes()
    import_study("s.db", elsewhere())
    assert len(study_in("s.db").trials) == 12
    assert Path("s.db").read_bytes() == before
    assert sorted(path.name for path in Path().glob("s.db*")) == ["s.db"]


def test_an_export_replaces_an_earlier_one_and_nothing_else():
    study = fill(elsewhere("first"))
    write_export(study, "s.db")
    study.add_trial(study.trials[0])
    write_export(study, "s.db")
    assert len(study_in("s.db").trials) == 13
    for name in ("first.db", "s.db"):
        if name == "s.db":  # is a storage as soon as one of our commands has opened it as one
            rdb(open_storage("sqlite:///s.db")).engine.dispose()
        before = Path(name).read_bytes()
        with pytest.raises(UserError, match=f"{name} exists, and is no file that `study export` wrote, or a storage by now"):
            write_export(study, name)
        assert Path(name).read_bytes() == before
    with pytest.raises(UserError, match=r"whose name ends in \.db: got s\.json"):
        write_export(study, "s.json")


def test_any_file_of_optunas_that_holds_one_study():
    study = optuna.create_study(storage="sqlite:///theirs.db", study_name="theirs")
    study.tell(study.ask(), 0.5)
    assert import_study("theirs.db", elsewhere()).trials == study.trials
    live = optuna.create_study(storage=elsewhere("live"))  # open, with its trial in the write-ahead log
    live.tell(live.ask(), 0.5)
    before = Path("live.db").read_bytes()
    assert study_in("live.db").trials == live.trials
    assert Path("live.db").read_bytes() == before
    fill(elsewhere("several"))
    with pytest.raises(UserError, match=r"several\.db holds several studies \(s, s2\), and not one: use `study export NAME"):
        study_in("several.db")
    elsewhere("nothing")
    with pytest.raises(UserError, match=r"nothing\.db holds no study"):
        study_in("nothing.db")


def test_what_was_under_way_waits_and_run_folders_are_its_own():
    study = ss.run_study(spec(trials=1))
    for _ in range(2):
        trial = study.ask()
        trial.set_user_attr("worker", {"host": "h", "pid": 3, "token": "t"})
    write_export(study, "toy.db")
    same, other = import_study("toy.db", elsewhere()), import_study("toy.db", elsewhere(), "new")
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
    write_export(study, "s.db")
    there = elsewhere()
    fill(there)  # so that ids are others
    copy = import_study("s.db", there)
    notes = copy._storage.get_study_system_attrs(copy._study_id)
    assert copy.trials[2]._trial_id != id
    assert notes[f"dashboard:{copy.trials[2]._trial_id}:note_str:0"] == "odd"
    assert notes["dashboard:note_ver"] == 4


def damaged(content, how):
    match how:
        case "truncated":
            return content[: len(content) // 2]
        case "other":
            return b"a text that is long enough to be taken for the header of a database" * 9
        case "an earlier version's":
            return b'{"format":"subnet-search study","version":1}'
    with sqlite3.connect("x.db") as database:
        match how:
            case "a number":
                assert database.execute("UPDATE trial_params SET param_value = 0.76 WHERE param_value = 0.75").rowcount
            case "a key":
                database.execute("ALTER TABLE trial_params RENAME COLUMN param_value TO value")
            case "newer":
                database.execute("UPDATE alembic_version SET version_num = 'v99'")
                database.execute("UPDATE version_info SET schema_version = 99")
                database.execute("PRAGMA user_version = 0")
    database.close()
    return Path("x.db").read_bytes()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "x.db is not a study that `study export` wrote, or is damaged: .*disk image is malformed"),
        (
            "a number",
            r"x.db is damaged, or was changed after its export: if .* \(study export NAME FILE.db --storage sqlite:///x",
        ),
        ("a key", "x.db is not a study that `study export` wrote, or is damaged"),
        ("newer", "x.db is not a study that `study export` wrote, or is damaged: .*version"),
        ("other", "x.db is not a study that `study export` wrote, or is damaged: .*file is not a database"),
        ("an earlier version's", "x.db is JSON, and a study is exported to a SQLite file by now: import it with the version"),
    ],
)
def test_a_file_that_is_not_whole_is_refused(how, message):
    write_export(fill(elsewhere("first"), "x"), "x.db")
    Path("x.db").write_bytes(damaged(Path("x.db").read_bytes(), how))
    with pytest.raises(UserError, match=message) as caught:
        import_study("x.db", elsewhere())
    assert "\n" not in str(caught.value)
    assert optuna.get_all_study_names(elsewhere()) == []


def test_what_is_no_file_and_a_name_that_is_taken():
    with pytest.raises(UserError, match=r"cannot read none\.db: No such file"):
        import_study("none.db", elsewhere())
    with pytest.raises(UserError, match=r"cannot read \.: Is a directory"):
        import_study(".", elsewhere())
    there = elsewhere()
    write_export(fill(there), "s.db")
    with pytest.raises(UserError, match="the storage has a study 's' already: give this one another name"):
        import_study("s.db", there)
    assert len(import_study("s.db", there, "s3").trials) == 12


def test_an_import_that_is_broken_off_leaves_nothing(storage):  # noqa: F811
    write_export(fill(elsewhere("first"), "whole"), "s.db")

    @event.listens_for(rdb(storage).engine, "before_cursor_execute")
    def break_off(connection, cursor, statement, *_):
        if "INTO study_user_attributes" in statement or "INTO trial_user_attributes" in statement:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_study("s.db", storage)
    event.remove(rdb(storage).engine, "before_cursor_execute", break_off)
    assert optuna.get_all_study_names(storage) == []
    with rdb(storage).engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM trials").scalar() == 0
    assert len(import_study("s.db", storage).trials) == 12


@pytest.mark.slow
def test_an_import_that_is_killed_leaves_nothing():
    write_export(fill(elsewhere("first"), "whole"), "s.db")
    code = (
        "import os, signal; from sqlalchemy import event; from subnet_search.search.storage.connect import open_storage\n"
        "from subnet_search.search.storage.transfer import import_study\n"
        "storage = open_storage('sqlite:///other.db', create=True)\n"
        "@event.listens_for(storage.engine, 'before_cursor_execute')\n"
        "def kill(connection, cursor, statement, *_):\n"
        "    if 'INTO trial_user_attributes' in statement: os.kill(os.getpid(), signal.SIGKILL)\n"
        "import_study('s.db', storage)"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == -9
    assert optuna.get_all_study_names(elsewhere()) == []
    assert len(import_study("s.db", elsewhere()).trials) == 12


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
    write_export(part, "toy.db")
    shutil.rmtree("runs")  # as on another machine
    copy = import_study("toy.db", elsewhere())
    run_worker("toy", "sqlite:///other.db")
    assert results(copy) == results(whole)
    assert copy.direction == optuna.study.StudyDirection.MAXIMIZE
