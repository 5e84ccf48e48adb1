"""Studies that were stored, copied, exported or handed over: who they are, what they may cause, what is read of bad ones."""

import ast
import json
import math
import random
import re
import sqlite3
import sys
from contextlib import suppress
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

import subnet_search as ss
from subnet_search.cli import main
from subnet_search.cli.commands import study_admin, study_show
from subnet_search.core.errors import RunError, UserError
from subnet_search.extraction.config_file import check
from subnet_search.search.engine.copies import adopt
from subnet_search.search.engine.scheduler import Scheduler
from subnet_search.search.engine.trial_runner import Ending
from subnet_search.search.engine.worker import run_worker
from subnet_search.search.queries.queries import find_trial
from subnet_search.search.spec.search_space import Space
from subnet_search.search.spec.study_spec import StudySpec, spec_of
from subnet_search.search.storage import connect
from subnet_search.search.storage.connect import load_study, open_storage, rdb
from subnet_search.search.storage.records import plain_spec
from subnet_search.search.storage.study_folder import file_name, folder_of, rebased
from subnet_search.search.storage.transfer import import_study, study_in, write_export
from subnet_search.search.storage.trust import imports_of, imports_of_spec
from subnet_search.search.studies.admin import delete_study
from subnet_search.search.studies.launcher import find_spec, prepare_study
from subnet_search.search.studies.processes import _Process
from subnet_search.search.studies.reproduce import retrain_trial

URL = "sqlite:///runs/studies.db"
RUN = {
    "network": "lenet_300_100",
    "data": {"name": "digits", "limit": 100},
    "extractor": "random",
    "recipe": {"epochs": 1, "threads": 1, "device": "cpu"},
}
LR = {"recipe.lr": {"float": [0.01, 1], "log": True}}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def spec(**more):
    run = {**RUN, **more.pop("run", {})}
    return check(StudySpec, {"name": "toy", "space": LR, "trials": 1, "parallel": 2, **more, "run": run})


def command(capsys, *words, code=0):
    """What a command prints: on standard output, or in its one line of an error."""
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, words)))
    out, err = capsys.readouterr()
    assert ended.value.code == code, err
    if code:
        assert err.count("\n") == 1, err
        assert err.startswith("error: ")
    return err if code else out


# Names and folders


@pytest.mark.parametrize("name", ["toy", "a.b-c_1", "été", "2:4".replace(":", "-")])
def test_a_plain_name_is_its_folders(name):
    assert file_name(name) == name


@pytest.mark.parametrize(
    "name", ["../../x", "/abs/x", "team/a", ".", "..", "-x", ".hidden", "a b", "a\0b", "x" * 300, "é" * 80]
)
def test_any_other_name_becomes_one_that_is_plain(name):
    found = file_name(name)
    assert file_name(found) == found
    assert found != file_name(name + "2")
    assert len(found.encode()) <= 100


def test_a_name_is_no_path(tmp_path, capsys):
    for name in ("../../../outside/x", str(tmp_path / "outside/y"), "team/a"):
        study = prepare_study(spec(name=name), URL)
        assert folder_of(study).parent == Path("runs/trials")
    study = ss.run_study(spec(name="../../../outside/x"), storage=URL)
    folder = folder_of(study)
    assert (folder / "0000" / "config.yaml").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    assert command(capsys, "study", "export", "../../../outside/x").startswith(f"{file_name('../../../outside/x')}.db (")
    done = command(capsys, "study", "delete", "../../../outside/x", "--yes")
    assert done == f"deleted ../../../outside/x with its 1 trials, {folder}\n"
    assert not folder.exists()


def test_a_folder_does_not_hide_a_study_of_its_name():
    prepare_study(spec(name="known"), URL)
    Path("known").mkdir()
    assert find_spec("known", [], URL)[0].name == "known"
    with pytest.raises(UserError, match=r"no such file: known\.yaml"):
        find_spec("known.yaml", [], URL)


ODD_FOLDERS = ["/etc/x", "../x", "runs/trials/../../../x", "runs/trials", "", "elsewhere/x", "runs/trials/a\0b", 3]


@pytest.mark.parametrize("folder", ODD_FOLDERS)
def test_a_stored_folder_is_below_the_folder_of_trials(folder, tmp_path):
    assert rebased(folder).parts[:2] == ("runs", "trials")
    assert len(rebased(folder).parts) == 3
    study = prepare_study(spec(), URL)
    study.set_user_attr("folder", folder)
    run_worker("toy", URL)
    assert (rebased(folder) / "0000" / "config.yaml").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_folders_that_studies_have_stay():
    for folder in ("runs/trials/toy-01234567", "runs/trials/team/a-01234567", "runs/trials/toy-01234567/0003"):
        assert rebased(folder) == Path(folder)


# Copies


def begun():
    """A study with a trial that is complete and one that runs, in a worker that is alive."""
    study = ss.run_study(spec(), storage=URL)
    Scheduler(study, spec_of(study), 2).next()
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "RUNNING"]
    return study


def renamed(study, name):
    """As the dashboard does it."""
    copy = optuna.create_study(storage=study._storage, study_name=name, directions=study.directions)
    copy.add_trials(study.get_trials(deepcopy=False))
    for key, value in study.user_attrs.items():
        copy.set_user_attr(key, value)
    optuna.delete_study(study_name=study.study_name, storage=study._storage)
    return copy


def copied(study, name):
    optuna.copy_study(
        from_study_name=study.study_name, from_storage=study._storage, to_storage=study._storage, to_study_name=name
    )
    return load_study(name, study._storage)


@pytest.mark.parametrize("how", [copied, renamed])
def test_a_copy_goes_on_as_the_study_that_it_is_called(how):
    study = begun()
    origin = folder_of(study)
    whole = ss.run_study(spec(), storage="sqlite:///whole.db", trials=3)
    copy = how(study, "other")
    assert spec_of(copy).name == "other"
    before = sorted(origin.rglob("*"))
    done = ss.run_study(find_spec("other", [], URL)[0], storage=URL, trials=3)
    assert (done.study_name, plain_spec(done)["name"]) == ("other", "other")
    assert [t.params for t in done.trials] == [t.params for t in whole.trials]
    assert [t.user_attrs["sha256"] for t in done.trials] == [t.user_attrs["sha256"] for t in whole.trials]
    assert folder_of(done) != origin
    assert folder_of(done).name.startswith("other-")
    assert sorted(folder_of(done).glob("0*")) == [folder_of(done) / "0001", folder_of(done) / "0002"]
    assert sorted(origin.rglob("*")) == before
    assert done.metric_names == ["val_accuracy"]
    assert done.trials[1].user_attrs["interruptions"][0]["why"].startswith("the study was copied")
    if how is copied:
        assert [t.state.name for t in load_study("toy", study._storage).trials] == ["COMPLETE", "RUNNING"]
        folder = folder_of(done)
        assert delete_study(done) == [folder]
        assert sorted(origin.rglob("*")) == before


def test_a_copy_that_is_deleted_leaves_the_files_of_the_study_it_was_copied_from():
    study = ss.run_study(spec(), storage=URL)
    copy = copied(study, "other")
    assert delete_study(copy) == []
    assert (folder_of(study) / "0000").is_dir()
    assert optuna.get_all_study_names(URL) == ["toy"]


def test_a_worker_of_a_copy_has_its_own_folder():
    study = begun()
    copy = copied(study, "other")
    assert run_worker("other", URL, trials=2) == [1]
    assert folder_of(copy) != folder_of(study)
    adopted = dict(copy.user_attrs)
    adopt(copy)  # a second time nothing changes
    assert copy.user_attrs == adopted


# What stored studies may import


TRAP = """
from pathlib import Path
from torch import nn

Path("imported").touch()


def make(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module that leaves a mark when it is imported. Call it to forget the module, and hear whether it was."""
    (tmp_path / "trap_of_tests.py").write_text(TRAP)
    monkeypatch.syspath_prepend(tmp_path)

    def was_imported():
        there = Path("imported").exists()
        Path("imported").unlink(missing_ok=True)
        sys.modules.pop("trap_of_tests", None)
        return there

    yield was_imported
    sys.modules.pop("trap_of_tests", None)


def own(**more):
    return spec(run={"network": "trap_of_tests:make"}, **more)


def test_a_stored_study_imports_what_is_allowed_and_nothing_else(trap, capsys):
    ss.run_study(own(), storage=URL)  # handed in, so its names are the user's own
    assert trap()
    words = ("study", "run", "toy", "--trials", 2)
    refused = "the study 'toy' imports trap_of_tests:make, which a stored configuration may do only with "
    assert command(capsys, *words, code=2) == (
        f"error: {refused}--allow-import trap_of_tests:make (or --allow-import trap_of_tests)\n"
    )
    assert refused in command(capsys, "study", "worker", "toy", "--trials", 2, "--allow-import", "trap", code=2)
    assert "trial 0 imports trap_of_tests:make" in command(capsys, "study", "extract", "toy", 0, code=2)
    for page in ("show", "trials", "best"):
        command(capsys, "study", page, "toy")
    assert not trap()
    command(capsys, *words, "--allow-import", "trap_of_tests:make")
    assert trap()
    command(capsys, "study", "worker", "toy", "--trials", 3, "--allow-import", "trap_of_tests")
    assert trap()
    command(capsys, "study", "extract", "toy", 0, "--out", "again", "--allow-import", "trap_of_tests")
    assert trap()


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_file_that_the_user_passes_hands_its_names_to_the_workers(workers, trap, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    wanted = {**json.loads(own().to_json()), "trials": 2}
    Path("s.yaml").write_text(json.dumps(wanted))
    command(capsys, "study", "run", "s.yaml", "--workers", workers)
    assert Path("imported").exists()


def test_a_worker_in_a_process_of_its_own_is_told_what_it_may_import():
    process = _Process(spec(name="-x"), URL, 2, Path("runs"), 0, ["a.b:c", "d"])
    assert process.command[-2:] == ["--allow-import=a.b:c", "--allow-import=d"]


def test_a_trial_that_is_not_of_the_specification_is_asked_about_too(trap):
    study = prepare_study(spec(), URL)
    config = {**spec().config({"recipe.lr": 0.1}).resolve().dump(), "network": {"name": "trap_of_tests:make", "init": "keep"}}
    lr = {"recipe.lr": FloatDistribution(0.01, 1, log=True)}
    template = create_trial(
        state=TrialState.WAITING, params={"recipe.lr": 0.1}, distributions=lr, user_attrs={"config": config, "seed": 0}
    )
    study._storage.create_new_trial(study._study_id, template)
    with pytest.raises(UserError, match="trial 0 of the study 'toy' imports trap_of_tests:make"):
        run_worker("toy", URL)
    assert study.trials[0].state == TrialState.WAITING
    assert not trap()
    assert run_worker("toy", URL, allow_imports=["trap_of_tests"]) == [0]
    with pytest.raises(UserError, match="trial 0 imports"):
        retrain_trial(study.trials[0], "again")


def test_layers_are_not_looked_up_in_a_network_that_is_not_allowed(trap):
    study = prepare_study(spec(), URL)
    stored = {**plain_spec(study), "space": {"density_per_layer": True}}
    stored["run"]["network"] = "trap_of_tests:make"
    study.set_user_attr("spec", json.dumps(stored))
    with pytest.raises(UserError, match="imports trap_of_tests:make"):
        find_spec("toy", [], URL)
    assert not trap()


def test_a_run_folder_imports_what_is_allowed(trap, capsys):
    words = ["-s", "network=trap_of_tests:make", "-s", "extractor=random", "-s", "recipe.epochs=1", "-s", "recipe.device=cpu"]
    command(capsys, "extract", *words, "-s", "data.limit=100", "--out", "run")
    assert trap()
    assert "run/config.yaml imports trap_of_tests:make" in command(capsys, "extract", "--resume", "--out", "run", code=2)
    assert not trap()
    command(capsys, "extract", "--resume", "--out", "run", "--allow-import", "trap_of_tests:make")
    assert trap()


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"network": "lenet5", "data": "npz:x.npz", "unit": "2:4"}, set()),
        ({"network": "torch.hub:load"}, {"torch.hub:load"}),
        ({"network": {"name": "a.b:c", "options": {"x": 1}}}, {"a.b:c"}),
        ({"network": {"choice": ["lenet5", {"name": "a:b"}]}}, {"a:b"}),
        ({"network.name": [{"when": {"unit": "weight"}, "value": "a:b"}]}, {"a:b"}),
        ({"extractor": {"choice": {"gumbel": ["temperature"], "my.module:Mine": None}}}, {"my.module:Mine"}),
        ({"extractor": {"name": "shuffled", "source": {"name": "a:B"}}}, {"a:B"}),
        ({"network": "torchvision:resnet18"}, set()),
        ({"network": {"name": "torchvision:resnet18", "options": {"weights": None, "pretrained": False}}}, set()),
        ({"network": {"name": "torchvision:resnet18", "options": {"weights": "DEFAULT"}}}, {"torchvision:resnet18"}),
        (
            {"network": "torchvision:googlenet", "network.options.pretrained": {"choice": [False, True]}},
            {"torchvision:googlenet"},
        ),
        ({"network": {"name": "torchvision:x", "options": {"weights_backbone": "DEFAULT"}}}, {"torchvision:x"}),
        ({"data": "cifar10"}, set()),
        ({"data": {"name": "cifar10", "root": "data/here"}}, set()),
        ({"data": {"name": "cifar10", "root": "/nowhere"}}, {"cifar10"}),
        ({"data": "cifar100", "data.root": {"choice": ["data", "../x"]}}, {"cifar100"}),
        ({"data": {"name": "fashion_mnist", "root": "/usr/../nowhere"}}, {"fashion_mnist"}),
        ({"data": {"name": "npz:x.npz", "root": "/nowhere"}}, set()),
        ({"task": "regression"}, set()),
        ({"task": "a.b:Task"}, {"a.b:Task"}),
        ({"task": {"name": "a.b:Task", "weight": 2, "labels": "x:y"}}, {"a.b:Task"}),
        ({"task.name": {"choice": ["classification", "a:B"]}}, {"a:B"}),
        ({"data": "a.b:make"}, {"a.b:make"}),
        ({"data": {"name": "a.b:make", "options": {"n": 1}}}, {"a.b:make"}),
        ({"data": {"choice": ["csv:x.csv", "parquet:y", "text:z", "image_folder:d", "c:d"]}}, {"c:d"}),
        ([], set()),
        (None, set()),
    ],
)
def test_what_values_of_a_run_would_import(values, names):
    assert imports_of(values) == names
    assert imports_of_spec({"run": values, "space": {}}) == names
    assert imports_of_spec({"run": {}, "space": values}) == names


@pytest.mark.parametrize("part", ["task", "extractor"])
def test_a_run_folder_imports_nothing_before_that_is_allowed(part, trap, capsys):
    Path("run").mkdir()
    Path("run/config.yaml").write_text(f"{part}: {{name: trap_of_tests:Mine}}\n")
    refused = "run/config.yaml imports trap_of_tests:Mine"
    assert refused in command(capsys, "extract", "--resume", "--out", "run", code=2)
    assert not trap()


def test_a_stored_study_imports_no_task_that_is_not_allowed(trap, capsys):
    study = prepare_study(spec(), URL)
    stored = plain_spec(study)
    study.set_user_attr("spec", json.dumps({**stored, "run": {**stored["run"], "task": "trap_of_tests:Task"}}))
    refused = "the study 'toy' imports trap_of_tests:Task, which a stored configuration may do only with --allow-import"
    assert refused in command(capsys, "study", "run", "toy", code=2)
    assert refused in command(capsys, "study", "worker", "toy", code=2)
    for page in ("show", "trials", "reap", "list"):
        command(capsys, "study", page, *(["toy"] if page != "list" else []))
    assert not trap()


def test_a_stored_study_downloads_nothing(capsys, monkeypatch):
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda *_, **__: pytest.fail("a download"))
    monkeypatch.setattr(Space, "check_networks", lambda *_: None)  # which downloads what the user's own file names
    study = prepare_study(spec(run={"network": {"name": "torchvision:resnet18", "options": {"weights": "DEFAULT"}}}), URL)
    assert "the study 'toy' downloads weights for torchvision:resnet18" in command(capsys, "study", "worker", "toy", code=2)
    assert study.trials == []


def test_a_stored_study_downloads_no_data_to_a_folder_that_it_names(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("torchvision.datasets.CIFAR10", lambda *_, **__: pytest.fail("a download"))
    root = tmp_path / "outside"
    prepare_study(spec(run={"data": {"name": "cifar10", "root": str(root)}}), URL)
    told = "the study 'toy' downloads, to a folder outside the current one, cifar10"
    assert told in command(capsys, "study", "worker", "toy", code=2)
    assert not root.exists()
    (root / "cifar-10-batches-py").mkdir(parents=True)  # data that is there is read
    assert imports_of({"data": {"name": "cifar10", "root": str(root)}}) == set()


def test_an_imported_study_is_asked_about_too(trap, capsys, monkeypatch):
    monkeypatch.setattr(Space, "check_networks", lambda *_: None)
    write_export(prepare_study(own(), URL), "toy.db")
    command(capsys, "study", "import", "toy.db", "--name", "new")
    assert "the study 'new' imports trap_of_tests:make" in command(capsys, "study", "run", "new", code=2)
    assert not trap()


@pytest.mark.parametrize(
    ("artifacts", "kept"),
    [("kept", "kept"), ("/tmp/x", None), ("../x", None), ("~/x", None), ({"bucket": "b", "endpoint_url": "http://evil"}, None)],
)
@pytest.mark.slow
def test_an_imported_study_does_not_say_where_artifacts_go(artifacts, kept, caplog, tmp_path):
    study = prepare_study(spec(), URL)
    study.set_user_attr("spec", json.dumps({**plain_spec(study), "artifacts": artifacts}))
    study.set_user_attr("folder", str(tmp_path / "outside-01234567"))
    write_export(study, "toy.db")
    read = import_study("toy.db", open_storage("sqlite:///other.db", create=True))
    assert plain_spec(read)["artifacts"] == kept
    assert ("and here in no place" in caplog.text) == (kept is None)
    assert folder_of(read).parent == Path("runs/trials")
    assert str(folder_of(read)) == read.user_attrs["folder"]


# Bad files


LOOKS = (
    lambda name, url: study_show.list_(storage=url),
    lambda name, url: study_show.show_(name, storage=url),
    lambda name, url: study_show.trials(name, storage=url),
    lambda name, url: study_show.trial(name, 0, storage=url),
    lambda name, url: study_show.best(name, storage=url),
    lambda name, url: study_admin.export(name, Path("again.db"), storage=url),
)


def looked_at(capsys, url="sqlite:///bad.db", name="toy", by=LOOKS):
    """Look at a storage by the functions that are our commands; every answer is a page, or a line. Returns the lines."""
    said = [refused for look_at in by if (refused := _said(lambda at=look_at: at(name, url)))]
    assert not any("\n" in line or len(line) > 700 for line in said)
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return said


@pytest.fixture(scope="module")
def a_study(tmp_path_factory):
    """A small study of every kind of trial: its SQLite file, and its export, as bytes."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        study = prepare_study(spec(), "sqlite:///s.db")
        lr = {"recipe.lr": FloatDistribution(0.01, 1, log=True)}
        attrs = {"density": 0.1, "val_accuracy": 0.5, "config": spec().config({"recipe.lr": 0.1}).resolve().dump()}
        worker = {"worker": {"host": "h", "pid": 1, "token": "t"}, "interruptions": [], "folder": "runs/trials/x-01234567/0000"}
        for value in (0.5, 0.25, math.inf):
            study.add_trial(
                create_trial(
                    value=value,
                    params={"recipe.lr": 0.1},
                    distributions=lr,
                    user_attrs={**attrs, **worker},
                    intermediate_values={1: 0.5, 2: math.nan},
                )
            )
        study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={"reason": "no"}))
        study.add_trial(create_trial(state=TrialState.RUNNING, params={"recipe.lr": 1.0}, distributions=lr, user_attrs=worker))
        write_export(study, "export.db")
        rdb(study._storage).engine.dispose()
        database = sqlite3.connect("s.db", isolation_level=None)
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database.execute("PRAGMA journal_mode=DELETE")
        database.execute("VACUUM")
        database.close()
        return (folder / "s.db").read_bytes(), (folder / "export.db").read_bytes()


def test_the_study_of_these_tests_can_be_read(a_study, capsys):
    Path("bad.db").write_bytes(a_study[0])
    assert looked_at(capsys) == []
    Path("whole.db").write_bytes(a_study[1])
    assert len(study_in("whole.db").trials) == 5


def damaged(content, seed):
    draw, content = random.Random(seed), bytearray(content)
    match seed % 3:
        case 0:  # a few bytes
            for _ in range(20):
                content[draw.randrange(len(content))] = draw.randrange(256)
        case 1:  # a page
            place = draw.randrange(len(content) // 4096) * 4096
            content[place : place + 4096] = draw.randbytes(4096)
        case 2:  # cut off
            del content[draw.randrange(len(content)) :]
    return content


@pytest.mark.parametrize("seed", range(15))
def test_a_damaged_database_is_one_line(seed, a_study, capsys):
    Path("bad.db").write_bytes(damaged(a_study[0], seed))
    for line in looked_at(capsys, by=LOOKS[:2]):
        assert "bad.db" in line or "'toy'" in line


def cells(table, column, value, where="1"):
    return f"UPDATE {table} SET {column} = {value} WHERE {where}"


LIES = [
    cells("study_user_attributes", "value_json", "'[]'", "key = 'spec'"),
    cells("study_user_attributes", "value_json", "'\"[]\"'", "key = 'spec'"),
    cells("study_user_attributes", "value_json", "'\"{}\"'", "key = 'spec'"),
    cells("study_user_attributes", "value_json", "'\"{'", "key = 'spec'"),
    cells("study_user_attributes", "value_json", "'7'"),
    "INSERT INTO study_user_attributes (study_id, key, value_json) VALUES (1, 'task', '{\"leading\": \"[/x]\"}')",
    cells("trial_user_attributes", "value_json", "'7'"),
    cells("trial_user_attributes", "value_json", "'{'", "key = 'config'"),
    cells("trial_user_attributes", "value_json", "'\"x\"'"),
    cells("trial_values", "value", "NULL"),
    cells("trial_values", "value_type", "'NAN'"),
    cells("trial_values", "objective", "3"),
    cells("trial_params", "distribution_json", "'{}'"),
    cells("trial_params", "param_value", "'x'"),
    cells("trials", "state", "'GONE'"),
    cells("trials", "number", "number + 7"),
    cells("trials", "datetime_start", "'yesterday'"),
    cells("study_directions", "direction", "'UP'"),
    "DROP TABLE trial_params",
    "ALTER TABLE trials RENAME COLUMN number TO place",
    cells("version_info", "schema_version", "99"),
    cells("alembic_version", "version_num", "'v99'"),
    "DELETE FROM studies",
]


@pytest.mark.parametrize("statement", LIES)
def test_a_database_that_lies_is_one_line(statement, a_study, capsys):
    Path("bad.db").write_bytes(a_study[0])
    with sqlite3.connect("bad.db") as database:
        database.execute(statement)
    database.close()
    looked_at(capsys, by=LOOKS[1:4:2])


def test_a_damaged_database_on_the_command_line(a_study, capsys):
    Path("bad.db").write_bytes(a_study[0][:9000])
    said = command(capsys, "study", "show", "toy", "--storage", "sqlite:///bad.db", code=2)
    assert "sqlite:///bad.db" in said
    assert "malformed" in said


def test_what_is_no_database_of_studies(a_study, capsys):
    Path("bad.db").write_bytes(b"not a database at all, but a text that is long enough to be taken for a header" * 9)
    assert all("cannot open the storage sqlite:///bad.db: file is not a database" in line for line in looked_at(capsys))
    Path("bad.db").unlink()
    with sqlite3.connect("bad.db") as database:
        database.execute("CREATE TABLE bookmarks (url TEXT)")
    database.close()
    before = Path("bad.db").read_bytes()
    assert all("bad.db is a SQLite file of another program" in line for line in looked_at(capsys))
    assert "bad.db is a SQLite file of another program" in _refused("sqlite:///bad.db", create=True)
    assert Path("bad.db").read_bytes() == before
    Path("bad.db").unlink()
    Path("bad.db").mkdir()
    assert "bad.db does not exist" in looked_at(capsys)[0]


def _refused(url, **options):
    with pytest.raises(UserError) as caught:
        open_storage(url, **options)
    return str(caught.value)


def test_a_database_that_another_program_keeps_locked(a_study, capsys, monkeypatch):
    monkeypatch.setattr(connect, "BUSY", 0.05)
    Path("bad.db").write_bytes(a_study[0])
    holder = sqlite3.connect("bad.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    [line] = looked_at(capsys, by=LOOKS[:1])
    assert line == "cannot open the storage sqlite:///bad.db: database is locked"
    holder.close()


@pytest.mark.parametrize("seed", range(15))
@pytest.mark.slow
def test_a_damaged_export_is_one_line_or_whole(seed, a_study):
    Path("whole.db").write_bytes(a_study[1])
    Path("bad.db").write_bytes(damaged(a_study[1], seed))
    if refused := read_twice():
        assert all("bad.db" in line and "\n" not in line for line in refused)
    else:  # nothing that belongs to the study was hit
        assert str(study_in("bad.db").trials) == str(study_in("whole.db").trials)


def read_twice():
    """What reading bad.db is refused with, in memory and into a storage; nothing is left there."""
    storage = open_storage("sqlite:///there.db", create=True)
    refused = [line for line in (_said(lambda: study_in("bad.db")), _said(lambda: import_study("bad.db", storage))) if line]
    assert bool(refused) != bool(optuna.get_all_study_names(storage))
    return refused


def odd_cell(database, seed):
    """Change a cell of a database to a value that is out of range, of another type, or missing."""
    draw = random.Random(seed)
    tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
    filled = [name for name in tables if database.execute(f"SELECT count(*) FROM {name}").fetchone()[0]]
    table = draw.choice(filled)
    column = draw.choice([row[1] for row in database.execute(f"PRAGMA table_info({table})")])
    [(row,)] = database.execute(f"SELECT rowid FROM {table} ORDER BY rowid LIMIT 1")
    odd = [-1, 2**62, 1e308, "", "x", "[]", "{}", '{"name": 3}', "\0", b"\xff", "null", "7", '"../../x"']
    with suppress(sqlite3.IntegrityError):
        database.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (draw.choice(odd), row))


@pytest.mark.parametrize("lie", [*LIES, *range(20)])
@pytest.mark.slow
def test_an_export_that_lies_is_one_line(lie, a_study, capsys):
    """It has no checksum: somebody has made it."""
    Path("bad.db").write_bytes(a_study[1])
    with sqlite3.connect("bad.db") as database:
        database.execute(lie) if isinstance(lie, str) else odd_cell(database, lie)
        database.execute("PRAGMA user_version = 0")
    database.close()
    assert all("bad.db" in line and "\n" not in line for line in read_twice())
    for name in optuna.get_all_study_names("sqlite:///there.db"):
        looked_at(capsys, "sqlite:///there.db", name=name, by=LOOKS[1:2])


def _said(call):
    """The error of ours that a call raises, if any."""
    try:
        call()
    except (UserError, RunError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("content", [b"", b"[]", b"7", b"\x80", b"SQLite format 3\0", b"x" * 5000])
def test_what_is_no_export(content):
    Path("bad.db").write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.db is not a study that `study export` wrote, or is damaged"):
        study_in("bad.db")


def test_numbers_that_are_none_are_shown(a_study, capsys):
    Path("bad.db").write_bytes(a_study[0])
    with sqlite3.connect("bad.db") as database:
        database.execute(cells("trial_values", "value", "NULL", "trial_id = 1"))  # so SQLite stores NaN
        stored = {**json.loads(_spec(database)), "heartbeat": 1e10}
        database.execute(cells("study_user_attributes", "value_json", "?", "key = 'spec'"), [json.dumps(json.dumps(stored))])
    database.close()
    assert looked_at(capsys) == []
    study = load_study("toy", open_storage("sqlite:///bad.db"))
    assert math.isnan(find_trial(study, 0).values[0])
    assert "inf" in command(capsys, "study", "trial", "toy", 2, "--storage", "sqlite:///bad.db")
    rows = json.loads(command(capsys, "study", "trials", "toy", "--json", "--storage", "sqlite:///bad.db"))
    assert [str(row["values"]) for row in rows[:3]] == ["[nan]", "[0.25]", "[inf]"]
    write_export(study, "nan.db")
    read = import_study("nan.db", open_storage("sqlite:///other.db", create=True))
    assert [trial.state.name for trial in read.trials[:3]] == ["FAIL", "COMPLETE", "COMPLETE"]


def _spec(database):
    [(text,)] = database.execute("SELECT value_json FROM study_user_attributes WHERE key = 'spec'")
    return json.loads(text)


def test_a_result_that_is_nan_fails_its_trial(monkeypatch):
    monkeypatch.setattr("subnet_search.search.engine.trial_runner.measure", lambda names, *_: dict.fromkeys(names, math.nan))
    with pytest.raises(RunError, match="val_nll is nan, not a number"):
        ss.run_study(spec(objective=["val_nll", "density"], trials=1), storage=URL)
    assert {trial.state.name for trial in load_study("toy", open_storage(URL)).trials} == {"FAIL"}


# Advice


def test_what_a_run_sets_for_one_method_alone_is_no_secret():
    space = {"extractor": {"choice": ["l1_filters", "fpgm"]}, **LR}
    run = {"network": "small_conv", "unit": "channel", "extractor": {"name": "l1_filters", "start": 0}}
    alone = r"run.extractor sets start for l1_filters only, but this study searches l1_filters, fpgm: set it in the space"
    with pytest.raises(UserError, match=alone):
        prepare_study(spec(run=run, space=space), URL)
    assert optuna.get_all_study_names(URL) == []
    prepare_study(spec(run=run, space={**space, "extractor.start": 0}), URL)
    only = {"extractor.start": {"when": {"extractor": "l1_filters"}, "value": 0}}
    prepare_study(spec(name="b", run={**run, "extractor": "l1_filters"}, space={**space, **only}), URL)


def test_the_command_that_a_front_ends_in_works(capsys):
    ss.run_study(
        spec(name="two goals", objective=["val_accuracy", "density"], trials=2, run={"extractor": "snip"}), storage=URL
    )
    shown = command(capsys, "study", "show", "two goals")
    front = json.loads(command(capsys, "study", "show", "two goals", "--json"))["best"]
    last = shown.splitlines()[-1]
    which = f" {front[0]['number']}" if len(front) > 1 else ""
    assert last == f"Extract {'one' if which else 'it'} with: subnet-search study extract 'two goals'{which}"


def test_a_trial_is_named_by_its_number(capsys):
    ss.run_study(spec(trials=2), storage=URL)
    found = [
        json.loads(command(capsys, "study", "extract", "toy", *words, "--json", "--out", f"runs/{place}"))
        for place, words in enumerate((["1"], ["--trial", "1"]))
    ]
    assert [(record["trial"], record["same"]) for record in found] == [(1, True)] * 2
    refused = "give either a trial number or --best"
    assert refused in command(capsys, "study", "extract", "toy", 1, "--best", code=2)
    assert refused in command(capsys, "study", "extract", "toy", 1, "--trial", 0, code=2)
    assert "has no trial 98: it has 2" in command(capsys, "study", "extract", "toy", 98, code=2)


def test_advice_names_the_storage_and_quotes(capsys):
    prepare_study(spec(name="a b"), "sqlite:///my.db")
    said = command(capsys, "study", "stop", "a b", "--storage", "sqlite:///my.db")
    assert said.endswith("Continue with: subnet-search study run 'a b' --storage sqlite:///my.db\n")


@pytest.mark.parametrize("name", ["x.doc", "x", "html"])
def test_a_plot_is_refused_under_the_name_of_another_kind_of_file(name, capsys):
    Path("c.yaml").write_text("extractor: random\n")
    message = f"the name of a plot ends in .html, .htm, .svg, .pdf, .png, .csv, .tex: got {name}"
    assert message in command(capsys, "study", "pareto", "none", "--plot", name, code=2)
    assert message in command(capsys, "study", "importance", "none", "--plot", name, code=2)
    grid = ["compare", "c.yaml", "--extractors", "random", "--densities", "0.3", "--plot", name]
    assert message in command(capsys, *grid, code=2)
    assert not Path("runs").exists()


def test_no_message_holds_a_placeholder_that_nobody_fills():
    """A text with {name} in it that is no f-string, or a part of one whose braces are doubled, is a slip."""
    placeholder = re.compile(
        r"(?<!%)(?<!\\begin)(?<!\\end)\{(?!task\.)[a-z_][\w.()\[\]]*(![rsa])?(:[^ {}]+)?\}"
    )  # %{x} and {task.x} are others'
    slips = []
    for path in Path(ss.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text())
        documents = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        found = (node for node in texts if id(node) not in documents and placeholder.search(node.value))
        slips += [f"{path.name}:{node.lineno}: {node.value[:80]}" for node in found]
    assert slips == []


@pytest.mark.parametrize("value", [[], "x", {"subnet-search": []}])
def test_versions_that_lie_hide_no_study(value, capsys):
    study = prepare_study(spec(), URL)
    study.set_user_attr("versions", value)
    study.set_user_attr("spec", "{")
    with pytest.raises(UserError, match=r"the study 'toy' from subnet-search .* cannot be read by this version"):
        run_worker("toy", URL)


LYING = [None, "x", 3, True, [], [3], {"a": []}, {"died": "often"}, [{"died": "often", "why": 3}], float("nan")]
STORED = ("interruptions", "worker", "config", "cell", "seed", "seeds", "folder", "versions", "reason", "steps", "seconds")
STORED += ("known", "repeats", "retries", "withdrawn", "beat", "key", "rungs", "log", "passes", "density", "sha256", "first")


@pytest.mark.parametrize("value", LYING, ids=str)
@pytest.mark.slow
def test_a_trial_attribute_of_another_type_is_no_traceback(value, capsys):
    """A trial for each attribute: every command that looks at the study, and a worker that goes on with it, do their best."""
    complete = ss.run_study(spec(), storage=URL).trials[0]
    study = load_study("toy", open_storage(URL))
    for name in STORED:
        for state, values in ((TrialState.COMPLETE, complete.values), (TrialState.WAITING, None), (TrialState.FAIL, None)):
            attrs = {**complete.user_attrs, name: value}
            study.add_trial(create_trial(state=state, values=values, **of(complete), user_attrs=attrs))
    for words in (["show"], ["trial"], ["table"], ["retry"], ["importance"], ["reap"]):
        more = [str(3 * STORED.index("interruptions") + 2)] if words == ["trial"] else []
        with pytest.raises(SystemExit) as ended:
            main(["study", *words, "toy", *more])
        _, err = capsys.readouterr()
        assert ended.value.code in (0, 2), (words, err)
        assert "log of it" not in err, (words, err)
    ran = run_worker("toy", URL, trials=1000, timeout=0.001, objective=lambda *_: Ending(TrialState.COMPLETE, [0.5], {}))
    assert len(ran) > len(STORED) / 2


def of(trial):
    return {"params": trial.params, "distributions": trial.distributions}


def test_a_copy_of_the_same_name_in_another_storage_has_run_folders_of_its_own():
    study = ss.run_study(spec(), storage=URL)
    copy_in(other := open_storage("sqlite:///other.db", create=True), study)
    whole = ss.run_study(spec(), storage="sqlite:///whole.db", trials=4)
    first = ss.run_study(spec(), storage=URL, trials=4)
    before = {path: path.read_bytes() for path in folder_of(first).rglob("*.json")}
    second = ss.run_study(spec(), storage="sqlite:///other.db", trials=4)
    assert {path: path.read_bytes() for path in before} == before
    for done in (first, second):
        assert [trial.user_attrs["sha256"] for trial in done.trials] == [t.user_attrs["sha256"] for t in whole.trials]
    folders = [trial.user_attrs["folder"] for done in (first, second) for trial in done.trials[1:]]
    assert len(set(folders)) == len(folders)
    assert load_study("toy", other).trials[3].user_attrs["folder"] == folders[-1]


def copy_in(storage, study):
    optuna.copy_study(from_study_name=study.study_name, from_storage=study._storage, to_storage=storage)
