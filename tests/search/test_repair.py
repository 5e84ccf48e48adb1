"""Repairs by hand: failed trials again, trials without a worker, stopping, deleting, and the dashboard."""

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from urllib.parse import quote

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

import subnet_search as ss
from subnet_search.cli import main
from subnet_search.core.errors import RunError, UserError
from subnet_search.extraction.config_file import check
from subnet_search.search.engine.scheduler import Scheduler
from subnet_search.search.engine.trial_runner import run_trial
from subnet_search.search.engine.worker import run_worker
from subnet_search.search.queries.dashboard import dashboard, note
from subnet_search.search.spec.study_spec import StudySpec
from subnet_search.search.storage.connect import load_study, open_storage, rdb
from subnet_search.search.storage.optuna_private import models
from subnet_search.search.storage.ranking import best_ranked
from subnet_search.search.studies.admin import check_idle, delete_study, release_lost_trials, retry
from subnet_search.search.studies.launcher import prepare_study

pytest_plugins = ["servers"]
URL = "sqlite:///s.db"
RUN = {
    "network": "lenet_300_100",
    "data": {"name": "digits", "limit": 200},
    "extractor": "random",
    "recipe": {"epochs": 2, "threads": 1, "device": "cpu"},
}
# A network that cannot be trained while a file is there.
FLAWED = """
from pathlib import Path
from torch import nn
class Net(nn.Linear):
    def forward(self, x):
        if Path("flaw").exists() and self.training: raise ValueError("what a pity")
        return super().forward(x.flatten(1))
def make(num_classes): return Net(64, num_classes)
"""


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SUBNET_SEARCH_STORAGE", URL)


def spec(**more):
    space = {"recipe.lr": {"float": [0.01, 1], "log": True}}
    return check(StudySpec, {"name": "toy", "run": RUN, "space": space, "trials": 3, "sampler": "random", **more})


def command(capsys, *words, code=0):
    """What a command says: on standard output, or, when it fails, in one line on standard error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["study", *map(str, words)])
    said = capsys.readouterr()
    assert ended.value.code == code, said
    if code:
        assert said.err.count("\n") == 1, said.err
        assert said.err.startswith("error: ")
    return said.err if code else said.out


def failing(number_of_trials=3, **more):
    """A study of which some trials have failed, some in a way that a retry cannot help."""
    study = prepare_study(spec(**more), URL)
    config = {"config": {"seed": 1}, "seed": 1}
    domain = {"recipe.lr": FloatDistribution(0.01, 1)}
    fail = {"state": TrialState.FAIL, "params": {"recipe.lr": 0.1}, "distributions": domain}
    study.add_trial(create_trial(**fail, user_attrs={**config, "reason": "nan", "log": ["a"], "worker": {"pid": 1}}))
    study.add_trial(create_trial(**{**fail, "state": TrialState.COMPLETE}, value=0.5, user_attrs=config))
    study.add_trial(create_trial(**fail, user_attrs={"reason": "recipe.lr: input should be less"}))
    study.add_trial(create_trial(**fail, user_attrs={**config, "cell": {"method": "a"}, "repeats": 1, "reason": "no memory"}))
    return study


# Failed trials again


def test_a_retried_trial_is_the_run_that_it_would_have_been(tmp_path, monkeypatch):
    (tmp_path / "flawed.py").write_text(FLAWED)
    monkeypatch.syspath_prepend(tmp_path)
    flawed = spec(run={**RUN, "network": "flawed:make"}, trials=6)
    whole = ss.run_study(flawed, storage="sqlite:///whole.db")
    ss.run_study(flawed, storage=URL, trials=1)
    Path("flaw").touch()
    with pytest.raises(RunError, match="what a pity"):
        ss.run_study(flawed, storage=URL)
    Path("flaw").unlink()
    study = load_study("toy", open_storage(URL))
    assert [t.state.name for t in study.trials] == ["COMPLETE"] + ["FAIL"] * 5
    done = retry(study)
    assert done.queued == {1: 6, 2: 7, 3: 8, 4: 9, 5: 10}
    assert (done.skipped, done.counting) == ({}, 6)
    study = ss.run_study(flawed, storage=URL)
    assert len(study.trials) == 11
    for before, after in done.queued.items():
        again = study.trials[after]
        assert again.user_attrs["sha256"] == whole.trials[before].user_attrs["sha256"]
        assert (again.params, again.values) == (whole.trials[before].params, whole.trials[before].values)
        assert again.user_attrs["retries"] == before


def test_a_trial_is_retried_once_and_keeps_what_makes_it_the_same_run():
    study = failing()
    done = retry(study)
    assert done.queued == {0: 4, 3: 5}
    assert list(done.skipped) == [2]
    assert "its configuration is invalid: recipe.lr: input should be less" in done.skipped[2]
    first, second = study.trials[4:]
    assert (first.state, first.params, first.distributions) == (TrialState.WAITING, *_domain(study.trials[0]))
    assert first.user_attrs == {"config": {"seed": 1}, "seed": 1, "retries": 0}
    assert second.user_attrs == {"config": {"seed": 1}, "seed": 1, "cell": {"method": "a"}, "repeats": 1, "retries": 3}
    assert retry(study).queued == {}
    again = retry(study, [0])
    assert (again.queued, again.skipped) == ({}, {0: "already retried as trial 4"})
    study._storage.set_trial_state_values(study.trials[4]._trial_id, TrialState.FAIL)
    assert retry(study).queued == {4: 6}  # a retry that failed
    assert retry(study, [4]).skipped == {4: "already retried as trial 6"}


def _domain(trial):
    return trial.params, trial.distributions


@pytest.mark.parametrize(
    ("number", "message"),
    [(1, "only failed trials can be retried; trial 1 is COMPLETE"), (9, "has no trial 9: it has 4")],
)
def test_what_cannot_be_retried(number, message):
    with pytest.raises(UserError, match=message):
        retry(failing(), [0, number])
    assert len(load_study("toy", open_storage(URL)).trials) == 4


def test_the_command_says_how_to_run_them(capsys):
    failing(trials=1)
    said = command(capsys, "retry", "toy", 0)
    assert said == "queued 0 as trial 4; run them with: subnet-search study run toy --trials 2\n"
    assert command(capsys, "retry", "toy", 0) == "toy has no failed trial to retry\n"
    assert "only failed trials can be retried" in command(capsys, "retry", "toy", 1, code=2)
    assert "did you mean 'toy'" in command(capsys, "retry", "tou", code=2)


# Stopping


def test_a_stopped_study_begins_nothing_until_it_is_run(capsys):
    ss.run_study(spec(trials=1), storage=URL)
    assert command(capsys, "stop", "toy") == "toy starts no more trials. Continue with: subnet-search study run toy\n"
    assert run_worker("toy", URL, trials=3) == []
    assert len(ss.run_study(spec(), storage=URL, trials=3).trials) == 3


@pytest.mark.slow
def test_a_trial_under_way_stops_at_a_checkpoint_and_goes_on_to_the_same_end(capsys):
    long = spec(run={**RUN, "recipe": {**RUN["recipe"], "epochs": 80}}, heartbeat=0.05, trials=1)
    whole = ss.run_study(long, storage="sqlite:///whole.db")
    study = prepare_study(long, URL)
    ran, begun = [], threading.Event()

    def begin(*arguments):
        begun.set()
        return run_trial(*arguments)

    worker = threading.Thread(target=lambda: ran.append(run_worker("toy", URL, objective=begin)))
    worker.start()
    begun.wait(60)
    said = command(capsys, "stop", "toy", "--now")
    worker.join(60)
    assert ran == [[]]  # it ended as a worker of a finished study does
    assert "trial 0 will write a checkpoint and stop" in said
    [trial] = study.trials
    assert (trial.state, trial.user_attrs["interruptions"][0]["why"]) == (TrialState.WAITING, "the study was stopped")
    assert (trial.last_step or 0) < 80
    assert ss.run_study(long, storage=URL).trials[0].user_attrs["sha256"] == whole.trials[0].user_attrs["sha256"]


# Trials without a worker


def claimed(heartbeat=0.05, **more):
    """A study with a trial that another worker runs, as it is told by `more`."""
    study = prepare_study(spec(heartbeat=heartbeat), URL)
    lease = Scheduler(study, spec(), 3).next()
    lease.note(worker={**study.trials[0].user_attrs["worker"], **more})
    return study, lease


def gone():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.mark.slow
def test_a_dead_process_of_this_machine_is_found_at_once(capsys):
    claimed(pid=gone())
    assert command(capsys, "reap", "toy") == "trial 0 was requeued\n"
    assert command(capsys, "reap", "toy") == "no running trial of toy has a dead worker\n"


def test_a_living_process_of_this_machine_is_left_alone():
    study, _ = claimed()
    watched = []
    assert release_lost_trials(study, watch=lambda *seen: watched.append(seen)) == []
    assert release_lost_trials(study, now=True) == []
    assert watched == []
    assert study.trials[0].state == TrialState.RUNNING


def test_a_worker_elsewhere_is_watched_for_five_heartbeats():
    study, _ = claimed(host="elsewhere")
    watched = []
    [trial] = release_lost_trials(study, watch=lambda left, numbers: watched.append((left, numbers)))
    assert (trial.number, trial.state, trial.user_attrs["worker"]) == (0, TrialState.WAITING, {})
    assert trial.user_attrs["interruptions"][0]["died"]
    assert {tuple(numbers) for _, numbers in watched} == {(0,)}
    assert 0.25 >= watched[0][0] > watched[-1][0] >= 0


def test_a_worker_elsewhere_that_gives_signs_of_life_keeps_its_trial():
    study, lease = claimed(host="elsewhere")
    ended = threading.Event()

    def beat():
        count = 0
        while not ended.wait(0.02):
            count += 1
            lease.note(beat=count)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        assert release_lost_trials(study) == []
    finally:
        ended.set()
        thread.join()
    assert study.trials[0].state == TrialState.RUNNING


def test_a_worker_elsewhere_is_given_up_at_once_when_told(capsys):
    study, lease = claimed(heartbeat=100, host="elsewhere")
    assert command(capsys, "reap", "toy", "--now") == "trial 0 was requeued\n"
    [past] = study.trials[0].user_attrs["interruptions"]
    assert not past["died"]
    assert past["why"].endswith("on elsewhere was declared dead by `study reap --now`")
    assert not lease.is_mine()


def test_a_trial_that_has_killed_five_workers_fails(capsys):
    _, lease = claimed(pid=gone())
    lease.note(interruptions=[{"why": "", "host": "h", "pid": 1, "died": True}] * 4)
    assert command(capsys, "reap", "toy").startswith("trial 0 has failed: its worker died 5 times")


# Deleting


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request):
    return URL if request.param == "sqlite" else request.getfixturevalue("postgres").url()


def test_a_deleted_study_leaves_nothing_and_others_alone(url):
    for name in ("toy", "other"):
        study = ss.run_study(spec(name=name, trials=2), storage=url)
    storage = open_storage(url)
    folders = [Path(load_study(name, storage).user_attrs["folder"]) for name in ("toy", "other")]
    tables = [
        table for table in models.BaseModel.metadata.sorted_tables if table.name not in ("alembic_version", "version_info")
    ]

    def rows():
        with rdb(storage).engine.connect() as connection:
            return {t.name: connection.exec_driver_sql(f"SELECT count(*) FROM {t.name}").scalar() for t in tables}

    before = rows()
    assert delete_study(load_study("toy", storage)) == [folders[0]]
    assert rows() == {name: count // 2 for name, count in before.items()}
    assert [folder.exists() for folder in folders] == [False, True]
    assert study.trials == load_study("other", storage).trials
    assert delete_study(load_study("other", storage), files=False) == []
    assert set(rows().values()) == {0}
    assert folders[1].exists()


def test_a_study_at_work_is_not_deleted_unless_forced(capsys):
    study, _ = claimed()
    pid = study.trials[0].user_attrs["worker"]["pid"]
    said = command(capsys, "delete", "toy", "--yes", code=2)
    assert f"the study 'toy' has running trials: trial 0 (process {pid} on {socket.gethostname()}); stop it first" in said
    with pytest.raises(UserError, match="has running trials"):
        delete_study(study)
    assert command(capsys, "delete", "toy", "--yes", "--force") == "deleted toy with its 1 trials\n"
    assert optuna.get_all_study_names(URL) == []


def test_trials_of_dead_workers_hinder_nobody():
    study, _ = claimed(pid=gone())
    check_idle(study)
    delete_study(study)


def test_deleting_asks(capsys, monkeypatch):
    prepare_study(spec(), URL)
    assert "use --yes to delete toy and its 0 trials" in command(capsys, "delete", "toy", code=2)
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    with pytest.raises(SystemExit) as ended:
        main(["study", "delete", "toy"])
    assert ended.value.code == 130
    assert optuna.get_all_study_names(URL) == ["toy"]
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    assert "deleted toy" in command(capsys, "delete", "toy")


class Terminal:
    """A person who types."""

    def __init__(self, text):
        self.text = text

    def isatty(self):
        return True

    def readline(self, *_):
        return self.text


@pytest.mark.parametrize("folder", ["/", "..", "runs", "runs/trials", "keep/my-data", "runs/trials/../../keep/my-data", 7])
def test_only_a_folder_of_studies_is_deleted(folder):
    study = prepare_study(spec(), URL)
    study.set_user_attr("folder", folder)
    Path("keep/my-data").mkdir(parents=True)
    Path("runs/trials/of-another").mkdir(parents=True)
    assert delete_study(study) == []
    assert Path("keep/my-data").is_dir()
    assert Path("runs/trials/of-another").is_dir()
    assert optuna.get_all_study_names(URL) == []


def test_a_link_to_a_folder_is_not_followed():
    study = prepare_study(spec(), URL)
    Path("keep").mkdir()
    Path("runs/trials").mkdir(parents=True)
    Path(study.user_attrs["folder"]).symlink_to(Path("keep").resolve())
    with pytest.raises(UserError, match="is a symbolic link: delete it yourself, or use --keep-files"):
        delete_study(study)
    assert Path("keep").is_dir()
    assert optuna.get_all_study_names(URL) == ["toy"]
    assert delete_study(study, files=False) == []


# Out and in


def test_the_commands_that_move_a_study(capsys):
    study = ss.run_study(spec(trials=2), storage=URL)
    assert command(capsys, "export", "toy").startswith("toy.db (")
    assert "the storage has a study 'toy' already" in command(capsys, "import", "toy.db", code=2)
    said = command(capsys, "import", "toy.db", "--name", "copy")
    assert said == "copy with 2 trials; continue with: subnet-search study run copy\n"
    assert load_study("copy", open_storage(URL)).trials[1].values == study.trials[1].values
    command(capsys, "import", "toy.db", "--storage", "sqlite:///new/other.db")
    command(capsys, "run", "toy", "--storage", "sqlite:///new/other.db", "--trials", 3)
    moved = load_study("toy", open_storage("sqlite:///new/other.db"))
    assert ss.run_study(spec(), storage=URL, trials=3).trials[2].values == moved.trials[2].values


# The dashboard


@pytest.fixture
def served():
    """A served study of three trials: one that keeps its constraint, a better one that does not, one that failed."""
    pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed (pip install 'subnet-search[dashboard]')")
    study = prepare_study(spec(constraints={"density": "<= 0.1"}), URL)
    domain = {"recipe.lr": FloatDistribution(0.01, 1)}
    for accuracy, density in ((0.5, 0.1), (0.9, 0.3)):
        attrs = {"density": density, "val_accuracy": accuracy, "config": {"extractor": {"name": "snip"}}}
        trial = create_trial(
            params={"recipe.lr": 0.1},
            distributions=domain,
            value=accuracy,
            user_attrs=attrs,
            constraints={"density": density - 0.1},
        )
        study.add_trial(trial)
    study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={"reason": "the loss is nan"}))
    server = dashboard(study._storage, "toy", port=0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield study, server
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(server, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}{path}", timeout=30) as answer:
        return answer.read().decode()


def test_the_dashboard_shows_a_study_as_we_know_it(served):
    study, server = served
    assert server.server_address[0] == "127.0.0.1"
    assert server.page.endswith(f"/dashboard/studies/{study._study_id}")
    assert "<title>Optuna Dashboard" in fetch(server, "/dashboard")
    [listed] = json.loads(fetch(server, "/api/studies"))["study_summaries"]
    assert listed["study_name"] == "toy"
    shown = json.loads(fetch(server, f"/api/studies/{study._study_id}"))
    assert [t["constraints"] for t in shown["trials"]] == [[0.0], [pytest.approx(0.2)], []]
    assert [t["number"] for t in shown["best_trials"]] == [best_ranked(study)[0].trial.number] == [0]
    assert shown["note"]["body"] == note(study)
    assert "Looks for the highest **val_accuracy**, where density <= 0.1." in shown["note"]["body"]
    plots = {plot["id"]: json.loads(plot["graph_object"])["data"] for plot in shown["plotly_graph_objects"]}
    assert plots.keys() == {"density"}
    assert (plots["density"][0]["x"], plots["density"][0]["marker"]["symbol"]) == ([0.1, 0.3], ["circle", "circle-open"])


def test_the_dashboard_follows_a_study_and_writes_nothing_but_the_note(served):
    study, server = served
    before = study._storage.get_study_system_attrs(study._study_id)
    study.tell(study.ask({"recipe.lr": FloatDistribution(0.01, 1)}), 0.7)
    shown = json.loads(fetch(server, f"/api/studies/{study._study_id}"))
    assert len(shown["trials"]) == 4
    after = study._storage.get_study_system_attrs(study._study_id)
    assert after == before
    assert {key for key in after if key.startswith("dashboard:")} == {"dashboard:note_ver", "dashboard:note_str:0"}
    assert not any("constraints" in trial.system_attrs for trial in optuna.load_study(study_name="toy", storage=URL).trials)


def ask(server, method="GET", path="/api/studies", **headers):
    """The status of an answer, and what it says."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.putrequest(method, path, skip_host=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body


def test_the_dashboard_answers_this_machine_alone(served):
    """A page of another site that points its own name at 127.0.0.1 could read and delete studies."""
    study, server = served
    port = server.server_port
    for host in ("127.0.0.1", "localhost", "LOCALHOST", "[::1]"):
        assert ask(server, Host=f"{host}:{port}")[0] == 200
    for host in (
        f"evil.example:{port}",
        "localhost",
        f"localhost.evil.example:{port}",
        f"127.0.0.1:{port + 1}",
        "",
        f"@:{port}",
    ):
        assert ask(server, Host=host)[0] == 403
        assert ask(server, "DELETE", f"/api/studies/{study._study_id}", Host=host)[0] == 403
    assert ask(server) == (403, f"This dashboard is for this machine alone: open it as http://127.0.0.1:{port}/dashboard\n")
    here = f"127.0.0.1:{port}"
    assert ask(server, Host=here, Origin=f"http://{here}")[0] == 200
    assert ask(server, "DELETE", f"/api/studies/{study._study_id}", Host=here, Origin="http://evil.example")[0] == 403
    assert optuna.get_all_study_names(URL) == ["toy"]


def test_the_dashboard_prints_no_traceback(served, monkeypatch, capfd, caplog):
    _, server = served
    here = f"127.0.0.1:{server.server_port}"

    def broken(*_):
        raise RuntimeError("the disk is gone\nand more")

    monkeypatch.setattr("optuna_dashboard._app.get_studies", broken)
    assert ask(server, Host=here)[0] == 500
    monkeypatch.setattr(server, "get_app", lambda: broken)
    assert ask(server, Host=here)[0] == 500
    wanted = ["the dashboard: Exception: the disk is gone", "the dashboard could not answer /api/studies: and more"]
    for _ in range(200):  # an answer is sent before its line is logged
        said = [record.getMessage() for record in caplog.records if record.name.startswith("subnet_search")]
        if len(said) == len(wanted):
            break
        time.sleep(0.05)
    assert said == wanted
    with socket.create_connection(server.server_address) as gone:
        gone.sendall(b"\0" * 100 + b"\r\n\r\n")
    assert ask(server, Host=here)[0] == 500
    assert 'File "' not in "".join(capfd.readouterr())


def test_a_note_that_somebody_wrote_is_kept():
    optuna_dashboard = pytest.importorskip("optuna_dashboard")
    study = prepare_study(spec(), URL)
    optuna_dashboard.save_note(study, "mine")
    dashboard(study._storage, port=0).server_close()
    assert optuna_dashboard.get_note(study) == "mine"


def test_a_dashboard_that_cannot_be_had_says_so_in_one_line(capsys, monkeypatch):
    prepare_study(spec(), URL)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"cannot listen on port {port}: Address already in use" in command(
            capsys, "dashboard", "toy", "--port", port, code=2
        )
    assert "unknown study 'tou'" in command(capsys, "dashboard", "tou", code=2)
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    assert "pip install 'subnet-search[dashboard]'" in command(capsys, "dashboard", code=2)


def test_the_dashboard_takes_the_store_of_artifacts():
    pytest.importorskip("optuna_dashboard")
    study = prepare_study(spec(artifacts="kept"), URL)
    server = dashboard(study._storage, port=0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    assert json.loads(fetch(server, "/api/meta"))["artifact_is_available"]
    server.shutdown()
    server.server_close()


def test_the_dashboard_says_nothing_of_a_password(postgres, capfd):
    pytest.importorskip("optuna_dashboard")
    study = prepare_study(spec(), postgres.url())
    server = dashboard(study._storage, "toy", port=0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    said = [fetch(server, path) for path in ("/api/meta", "/api/studies", "/api/studies/1", "/dashboard")]
    server.shutdown()
    server.server_close()
    assert "toy" in said[2]
    everything = "".join([*said, *capfd.readouterr()])
    assert not any(word in everything for word in (postgres.password, quote(postgres.password, safe=""), "postgresql://"))
