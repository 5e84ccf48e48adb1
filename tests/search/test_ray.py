"""Ray as an engine: workers on a real local cluster, one that loses a node, and what is refused."""

import importlib.util
import os
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_study import RUN, spec

from subnet_search.core.errors import Interrupted, RunError, UserError
from subnet_search.search.storage.leases import is_dead
from subnet_search.search.storage.records import TrialRecord
from subnet_search.search.studies import ray_launcher
from subnet_search.search.studies.launcher import prepare_study
from subnet_search.search.studies.ray_launcher import StudyWorker, _check_nodes, _wait_for_workers, run_on_ray

HERE = socket.gethostname()
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
    with pytest.raises(UserError, match=r"--gpus-per-trial takes a whole number or a fraction below 1, got 1.5$"):
        on_ray("sqlite:///studies.db", gpus=1.5)


@needs_ray
def test_an_address_where_no_cluster_is():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # not listening, and nobody else can
        with pytest.raises(UserError, match=r"^cannot connect to a Ray cluster at 127.0.0.1:\d+: .*refused$"):
            on_ray("sqlite:///studies.db", address=f"127.0.0.1:{taken.getsockname()[1]}")


@pytest.mark.parametrize(
    ("nodes", "job", "message"),
    [
        ([node(8), node(4, 2)], {"gpus": 0.25}, None),
        ([node(8), node(4, 2)], {"gpus": 4}, "needs 4 GPU and 1 CPU, but the largest node has 2 GPU and 4 CPU"),
        ([node(8), node(0, 1)], {"gpus": 1}, "the largest node has 1 GPU and 0 CPU"),  # not half here and half there
        ([node(2), node(64, 8, alive=False)], {"cpus": 3}, "the largest node has 0 GPU and 2 CPU"),
        ([node(2), node(2, host="elsewhere")], {}, r"SQLite supports one machine, .* others \(elsewhere\): give a --storage"),
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

    monkeypatch.setattr(ray_launcher, "run_worker", fail)
    assert StudyWorker().run("toy", "sqlite:///missing.db", None, None, str(tmp_path)) == "LookupError: no such luck"


# Following the workers, in a Ray that answers at once


class Ray(SimpleNamespace):
    """What the workers' calls come to is the calls themselves: an outcome, or an error that `get` raises."""

    def wait(self, refs, num_returns=1, timeout=None):
        return [ref for ref in refs if ref != "never"], ["never"]

    def get(self, ref):
        if isinstance(ref, Exception):
            raise ref
        return ref.partition("finished")[0] or None

    def kill(self, worker):
        self.killed.append(worker.name)


def follow(runs, stop=False):
    ray = Ray(killed=[], exceptions=SimpleNamespace(RayError=LookupError))

    def worker(name, run):
        answer = SimpleNamespace(remote=lambda: "never" if run == "never" else f"{name} answers")
        return SimpleNamespace(name=name, stop=answer, __ray_ready__=answer)

    crew = {run: worker(name, run) for name, run in zip("abc", runs, strict=False)}
    return ray, lambda: _wait_for_workers(ray, crew, lambda: stop)


LOST = LookupError("The actor died.\n\tactor_id: 17\nThe actor is dead because its node has died.")


def test_one_that_fails_while_others_finish_is_told_of():
    ray, wait = follow([LOST, "finished", "never"])
    assert wait() == ["The actor is dead because its node has died."]
    assert ray.killed == ["a", "b", "c"]  # the third waits for a place, and there is nothing left to do


def test_when_nobody_is_left_the_study_has_failed():
    _, wait = follow(["5 trials failed in a row", LOST])
    with pytest.raises(RunError, match=r"^all workers failed, the last: The actor is dead because its node has died\.$"):
        wait()


def test_whoever_does_not_hear_that_it_must_stop_is_ended():
    ray, wait = follow(["finished", "never"], stop=True)
    with pytest.raises(Interrupted):
        wait()
    assert ray.killed == ["a", "b"]


# On a cluster


def add_node(cluster, **more):
    return cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20, **more)  # bytes, about the least that Ray takes


@pytest.fixture
def cluster():
    """Two nodes of one processor each, whose loss is noticed within seconds."""
    from ray.cluster_utils import Cluster

    health = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    cluster = Cluster()
    try:
        add_node(cluster, include_dashboard=False, _system_config=health)
        add_node(cluster)
        yield cluster
    finally:
        cluster.shutdown()


@needs_ray
@pytest.mark.long
def test_a_node_is_lost_half_way_and_all_trials_are_found_and_finished(cluster, capfd):
    """And the process on the other node is killed: only a worker that was started again can finish the study.

    The name of the storage's file stands for a password, which Ray is to keep nowhere.
    """
    url = "sqlite:///hush-hush.db"
    study = begin(url, trials=4, run=longer(40))
    lost = {}

    def pull_the_plugs():
        under_way = running(study)
        if not lost and len(under_way) == 2 and all(trial.intermediate_values for trial in under_way):
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
            for trial in under_way:
                with suppress(ProcessLookupError):
                    os.kill(trial.user_attrs["worker"]["pid"], signal.SIGKILL)
            lost.update({trial.number: trial.user_attrs["worker"]["pid"] for trial in running(study)})
        return False

    on_ray(url, workers=2, address=cluster.address, should_stop=pull_the_plugs)
    assert [trial.state.name for trial in study.get_trials()] == ["COMPLETE"] * 4
    died = {t.number: [one["pid"] for one in t.user_attrs.get("interruptions", []) if one["died"]] for t in study.trials}
    assert {number: pids for number, pids in died.items() if pids} == {number: [pid] for number, pid in lost.items()}
    assert lost
    assert not {trial.user_attrs["worker"]["pid"] for trial in study.trials if trial.number in lost} & {*lost.values()}
    assert all(is_dead(TrialRecord(trial).worker) for trial in study.trials)  # nothing is left running
    logs = Path(cluster.head_node.get_logs_dir_path())
    texts = [path.read_bytes() for path in (*logs.rglob("*"), *Path("runs").rglob("ray.log")) if path.is_file()]
    assert any(b"StudyWorker" in text for text in texts)
    assert not any(b"hush" in text for text in texts)
    assert capfd.readouterr().out == ""  # where `--json` prints


@needs_ray
@pytest.mark.long
def test_a_stop_leaves_trials_that_go_on_from_their_checkpoint():
    """On a Ray of our own, with more workers than there is room for."""
    study = begin("sqlite:///studies.db", run=longer(400))

    def once_a_trial_is_under_way():
        return any(trial.intermediate_values for trial in running(study))

    with pytest.raises(Interrupted, match="stopped; the running trials are queued to resume"):
        on_ray("sqlite:///studies.db", workers=os.cpu_count() + 1, should_stop=once_a_trial_is_under_way)
    trials = study.get_trials()
    assert {trial.state.name for trial in trials} == {"WAITING"}
    assert {trial.user_attrs["interruptions"][-1]["why"] for trial in trials} == {"interrupted"}
    assert any(Path(trial.user_attrs["folder"], "checkpoint").exists() for trial in trials)
