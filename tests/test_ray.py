"""Ray as an engine: workers on a real local cluster, one that loses a node, and what is refused."""

import importlib.util
import socket
import time
from pathlib import Path

import pytest
from test_study import RUN, spec

from subnet_search.errors import Interrupted, RunError, UserError
from subnet_search.search import ray_engine
from subnet_search.search.launch import prepare_study, reap
from subnet_search.search.leases import is_dead
from subnet_search.search.ray_engine import StudyWorker, _check_nodes, run_on_ray

HERE = socket.gethostname()
MEMORY = 80 * 2**20  # bytes of a node's object store, about the least that Ray takes
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def begin(url, **more):
    return prepare_study(spec(sampler="random", **more), url)


def on_ray(url, **more):
    options = {"workers": 1, "trials": None, "timeout": None, "address": None, "gpus": 0.0, "cpus": 1.0}
    run_on_ray("toy", url, **{**options, "should_stop": lambda: False, **more})


def running(study):
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "RUNNING"]


def longer(epochs):
    return {**RUN, "recipe": {**RUN["recipe"], "epochs": epochs}}


def node(cpus, gpus=0.0, host=HERE, alive=True):
    return {"Alive": alive, "NodeManagerHostname": host, "Resources": {"CPU": cpus, "GPU": gpus}}


# What is refused


def test_without_ray_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^the engine ray needs Ray: pip install 'subnet-search\[ray\]'$"):
        on_ray("sqlite:///studies.db")


@needs_ray
def test_a_gpu_and_a_half_is_no_share(tmp_path):
    with pytest.raises(UserError, match=r"a whole number of GPUs, or a fraction of one: not 1.5$"):
        on_ray("sqlite:///studies.db", gpus=1.5)


@needs_ray
def test_an_address_where_no_cluster_is():
    begin("sqlite:///studies.db")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # not listening, and nobody else can
        with pytest.raises(UserError, match=r"^cannot join the Ray cluster at 127.0.0.1:\d+: .*[Rr]efused$"):
            on_ray("sqlite:///studies.db", address=f"127.0.0.1:{taken.getsockname()[1]}")


@pytest.mark.parametrize(
    ("nodes", "job", "message"),
    [
        ([node(8), node(4, 2)], {"gpus": 0.25}, None),
        ([node(8), node(4, 2)], {"gpus": 4}, "takes 4 GPU and 1 CPU, and no node has that: the largest has 2 and 4"),
        ([node(8), node(0, 1)], {"gpus": 1}, "the largest has 1 and 0"),  # not half here and half there
        ([node(2), node(64, 8, alive=False)], {"cpus": 3}, "the largest has 0 and 2"),
        ([node(2), node(2, host="elsewhere")], {}, r"SQLite is for one machine, .* others \(elsewhere\): give a --storage"),
        ([node(2), node(2, host="elsewhere", alive=False)], {}, None),
        ([node(2), node(2, host="elsewhere")], {"url": "postgresql://me:hush@host/studies"}, None),
    ],
)
def test_the_nodes_of_a_cluster_must_do(nodes, job, message):
    job = {"url": "sqlite:///studies.db", "gpus": 0.0, "cpus": 1.0, **job}
    if message is None:
        _check_nodes(nodes, job)
    else:
        with pytest.raises(UserError, match=message):
            _check_nodes(nodes, job)


# The actor, without Ray around it


def test_the_actor_runs_where_the_study_was_started(tmp_path, monkeypatch):
    study = begin("sqlite:///runs/studies.db", trials=1)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert StudyWorker().run("toy", "sqlite:///runs/studies.db", None, None, str(tmp_path)) is None
    assert [trial.state.name for trial in study.get_trials()] == ["COMPLETE"]
    assert (tmp_path / study.trials[0].user_attrs["folder"]).is_dir()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_an_actor_that_starts_after_the_deadline_begins_nothing(tmp_path):
    study = begin("sqlite:///studies.db")
    assert StudyWorker().run("toy", "sqlite:///studies.db", None, time.time() - 60, str(tmp_path)) is None
    assert study.get_trials() == []


def test_an_actor_says_in_one_line_why_it_failed(tmp_path, monkeypatch):
    assert "missing.db does not exist" in StudyWorker().run("toy", "sqlite:///missing.db", None, None, str(tmp_path))

    def fail(*_, **__):
        raise LookupError("no such\n  luck")

    monkeypatch.setattr(ray_engine, "run_worker", fail)
    assert StudyWorker().run("toy", "sqlite:///missing.db", None, None, str(tmp_path)) == "LookupError: no such luck"


# On a cluster


@pytest.fixture
def cluster():
    """Two nodes of one processor each."""
    from ray.cluster_utils import Cluster

    options = {"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False}
    health = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    cluster = Cluster(initialize_head=True, head_node_args={**options, "_system_config": health})
    try:
        cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
        yield cluster
    finally:
        cluster.shutdown()


@needs_ray
@pytest.mark.slow
def test_a_cluster_that_loses_a_node_finishes_the_study(cluster, capfd):
    """The storage's URL stands for a password: Ray is to keep it nowhere."""
    url = "sqlite:///hush-hush.db"
    study = begin(url, trials=6, run=longer(40))
    lost = []

    def take_a_node_away():
        under_way = running(study)
        if not lost and len(under_way) == 2 and all(trial.intermediate_values for trial in under_way):
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
            lost.extend(under_way)
        return False

    on_ray(url, workers=2, address=cluster.address, should_stop=take_a_node_away)
    assert len(lost) == 2
    assert [trial.state.name for trial in study.get_trials()] == ["COMPLETE"] * 6
    assert reap(study) == []
    (died,) = [t for t in study.trials if any(one["died"] for one in t.user_attrs.get("interruptions", []))]
    (before,) = [t.user_attrs["worker"]["pid"] for t in lost if t.number == died.number]
    assert died.user_attrs["interruptions"][-1]["pid"] == before != died.user_attrs["worker"]["pid"]
    assert all(is_dead(trial.user_attrs["worker"]) for trial in study.trials)  # nothing is left running
    logs = Path(cluster.head_node.get_logs_dir_path())
    texts = [path.read_bytes() for path in (*logs.rglob("*"), *Path("runs").rglob("ray.log")) if path.is_file()]
    assert any(b"StudyWorker" in text for text in texts)
    assert not any(b"hush" in text for text in texts)
    assert capfd.readouterr().out == ""


@needs_ray
@pytest.mark.slow
def test_a_stop_leaves_trials_that_go_on_from_their_checkpoint():
    """On a Ray of our own, with a worker more than there is room for."""
    url = "sqlite:///studies.db"
    study = begin(url, trials=2, run=longer(400))

    def once_a_trial_is_under_way():
        return any(trial.intermediate_values for trial in running(study))

    with pytest.raises(Interrupted, match="stopped; the trials under way wait to go on"):
        on_ray(url, workers=3, should_stop=once_a_trial_is_under_way)
    trials = study.get_trials()
    assert {trial.state.name for trial in trials} == {"WAITING"}
    assert all(trial.user_attrs["interruptions"][-1]["why"] == "interrupted" for trial in trials)
    checkpoints = [Path(trial.user_attrs["folder"], "checkpoint") for trial in trials]
    assert any(folder.exists() for folder in checkpoints)


@needs_ray
@pytest.mark.slow
def test_when_every_worker_has_failed_the_reason_is_told():
    begin("sqlite:///studies.db", run={**RUN, "extractor": "random"}, space={"recipe.lr": {"float": [1e30, 2e30]}}, trials=50)
    with pytest.raises(
        RunError, match=r"^no worker is left: 5 trials failed in a row, the last because: the loss is .*ray.log"
    ):
        on_ray("sqlite:///studies.db")
