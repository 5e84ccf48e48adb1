"""Nothing is lost: whatever happens to workers, disks, storages and clocks, a study's trials come out the same."""

import errno
import itertools
import json
import os
import random
import re
import signal
import socket
import time
from pathlib import Path
from urllib.parse import quote

import optuna
import pytest
import torch
import yaml
from faults import Killed, Member, account, differences, dying, failing, interruptions, is_alive, strike
from optuna.trial import TrialState

from subnet_search.core import tensor_files
from subnet_search.core.errors import Interrupted, RunError, UserError
from subnet_search.extraction.config_file import check
from subnet_search.search.engine import scheduler, trial_runner, worker
from subnet_search.search.engine.scheduler import Scheduler
from subnet_search.search.engine.trial_lease import LeaseLost
from subnet_search.search.engine.trial_runner import run_trial
from subnet_search.search.engine.worker import run_worker
from subnet_search.search.spec.study_spec import StudySpec
from subnet_search.search.storage import leases
from subnet_search.search.storage.connect import load_study, open_storage
from subnet_search.search.studies import processes
from subnet_search.search.studies.launcher import prepare_study, run_study

RUN = {
    "network": "lenet_300_100",
    "data": {"name": "digits", "limit": 200},
    "recipe": {"epochs": 9, "batch_size": 32, "threads": 1, "device": "cpu"},
}
SPACE = {"recipe.lr": {"float": [2, 60], "log": True}, "extractor": ["temperature", "rescale"]}
TPE = {"name": "tpe", "n_startup_trials": 5}
pytest_plugins = ["servers"]

KILL, STOP, TERM = signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM
URL = "sqlite:///s.db"


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def values(epochs=3, checkpoint_every=1, **more):
    recipe = {**RUN["recipe"], "epochs": epochs, "checkpoint_every": checkpoint_every}
    run = {**RUN, "recipe": recipe}
    return {"name": "toy", "run": run, "space": SPACE, "sampler": TPE, "trials": 3, **more}


def spec(**more):
    return check(StudySpec, values(**more))


def alone(wanted):
    """The account of a study that one worker ran and nothing disturbed."""
    run_study(wanted, storage="sqlite:///alone.db")
    return account(wanted.name, "sqlite:///alone.db")


def counts(rows):
    states = [row["state"] for row in rows]
    return {state: states.count(state) for state in sorted(set(states))}


# Many at once, struck at random

LARGE = {"epochs": 9, "trials": 12, "heartbeat": 0.4, "pruner": "hyperband"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    url = f"sqlite:///{tmp_path_factory.mktemp('undisturbed')}/s.db"
    run_study(spec(**LARGE), storage=url)
    return account("toy", url)


def crew(tmp_path, url, **more):
    """Starts processes that run the study of `values(**more)`, on three hosts in turn."""
    path, hosts = tmp_path / "study.yaml", itertools.cycle("abc")
    path.write_text(yaml.safe_dump(values(**more)))
    return lambda: Member(str(path), url, tmp_path, f"host-{next(hosts)}")


def said(tmp_path):
    """What the members wrote where people read."""
    return (tmp_path / "members.log").read_text()


@pytest.mark.long
@pytest.mark.parametrize("size", [3, 8])
def test_study_runs_at_once_find_what_one_finds(tmp_path, undisturbed, size):
    strike(crew(tmp_path, URL, **LARGE), size, [], 0)
    rows = account("toy", URL)
    assert differences(rows, undisturbed) == []
    assert counts(rows).keys() == {"COMPLETE", "PRUNED"}
    assert len(rows) == 12
    trials = load_study("toy", open_storage(URL)).get_trials()
    assert len({trial.user_attrs["worker"]["pid"] for trial in trials}) > 1
    assert len(list((tmp_path / "runs" / "trials").iterdir())) == 1
    assert said(tmp_path) == ""


@pytest.mark.slow
def test_struck_at_random_on_sqlite(tmp_path, undisturbed):
    def kill_a_worker_with_a_trial():
        """At random it may be that every strike meets a process that has no trial."""
        try:
            trials = load_study("toy", open_storage(URL)).get_trials(states=[TrialState.RUNNING])
        except UserError:  # there is no storage or no study yet
            return False
        for trial in trials:
            if (pid := trial.user_attrs.get("worker", {}).get("pid")) and is_alive(pid):
                os.kill(pid, KILL)
                return True
        return False

    blows = [kill_a_worker_with_a_trial, *[KILL, KILL, STOP, KILL, TERM, KILL] * 2]
    assert strike(crew(tmp_path, URL, **LARGE), 3, blows, 1, pause=(0.15, 0.6), growth=1.12) > 6
    assert differences(account("toy", URL), undisturbed) == []
    assert any(one["died"] for one in interruptions("toy", URL))
    assert "Traceback" not in said(tmp_path)


@pytest.mark.long
def test_struck_at_random_on_postgresql_whose_server_goes_away_too(tmp_path, postgres):
    def outage():
        postgres.stop("immediate")
        time.sleep(3)
        postgres.start()

    more = {"epochs": 9, "trials": 8, "heartbeat": 0.4}
    expected = alone(spec(**more))
    url = postgres.url()
    blows = [KILL, KILL, STOP, outage, KILL, TERM, KILL]
    assert strike(crew(tmp_path, url, **more), 3, blows, 2) > 3
    assert differences(account("toy", url), expected) == []
    assert counts(expected) == {"COMPLETE": 8}
    assert "Traceback" not in said(tmp_path)
    assert leaks(tmp_path, url, postgres.password) == []


def leaks(folder, url, password):
    """Where a storage's password can be read: in a file, or in what a study's storage holds."""
    study = load_study("toy", open_storage(url))
    held = json.dumps([study.user_attrs, *((t.user_attrs, t.system_attrs) for t in study.get_trials())])
    texts = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()} | {"storage": held.encode()}
    words = [spelling.encode() for spelling in (password, quote(password, safe=""), quote(password))]
    return [place for place, text in texts.items() if any(word in text for word in words)]


# Killed at a write

DENSITY = {**SPACE, "extractor": ["density", "temperature"]}
WAYS = {
    "hyperband": {"pruner": "hyperband", "epochs": 9, "checkpoint_every": 4},
    "wilcoxon, queued": {
        "pruner": {"name": "wilcoxon", "p_threshold": 0.4},
        "repeats": 3,
        "epochs": 2,
        "enqueue": [{"recipe.lr": 3.0}, {"extractor.rescale": "fan_in"}],
    },
    "rungs, repeats, constraints": {
        "pruner": "rungs",
        "objective": ["val_accuracy", "density"],
        "constraints": {"density": "<= 0.4"},
        "space": DENSITY,
        "repeats": 2,
        "promising": 1,
        "epochs": 4,
        "checkpoint_every": 2,
    },
}

IN_TURN = [pytest.param(way, marks=pytest.mark.long if number else ()) for number, way in enumerate(WAYS)]


@pytest.mark.slow
@pytest.mark.parametrize("way", IN_TURN)
def test_killed_before_or_after_any_write(way):
    wanted, rng, deaths = spec(trials=6, parallel=3, heartbeat=1000.0, **WAYS[way]), random.Random(way), 0
    expected = alone(wanted)
    with dying() as die:
        prepared = False
        while True:
            try:
                die(rng.randrange(1, 60))
                if not prepared:
                    prepare_study(wanted, URL)
                prepared = True
                run_worker("toy", URL)
                break
            except Killed:
                deaths += 1
    assert differences(account("toy", URL), expected) == []
    assert deaths > 5


@pytest.mark.slow
@pytest.mark.parametrize("way", IN_TURN)
def test_a_storage_that_fails_again_and_again(way):
    wanted = spec(trials=6, parallel=3, heartbeat=1000.0, **WAYS[way])
    expected = alone(wanted)
    with failing(random.Random(way), 100) as failed:
        run_study(wanted, storage=URL, wait=60)
    assert differences(account("toy", URL), expected) == []
    assert len(failed) > 10


# One fault at a time


def desks(wanted, count=2):
    """So many workers of a new study, in this process. They run one trial."""
    prepare_study(wanted, URL)
    return [Scheduler(load_study("toy", open_storage(URL)), wanted, 1) for _ in range(count)]


def test_a_stalled_worker_overwrites_nothing():
    slow, quick = desks(spec(heartbeat=0.01))
    late = slow.next()
    assert quick.next() == "wait"
    time.sleep(0.1)
    successor = quick.next()
    assert successor.number == late.number == 0
    successor.report(1, 0.5)
    successor.note(beat=7, rungs={"1": [0.5]})
    successor.constrain("density", 0.2)  # an estimate
    successor.constrain("density", -0.1)

    def comes_back():
        for write in (
            lambda: late.report(1, 0.9),
            lambda: late.note(beat=1, rungs={}),
            lambda: late.constrain("density", 1.0),
            lambda: late.end(TrialState.COMPLETE, [0.9], {"sha256": "late"}),
        ):
            with pytest.raises(LeaseLost):
                write()
        late.release("late")
        assert not late.is_mine()

    comes_back()
    assert successor.is_mine()
    successor.end(TrialState.COMPLETE, [0.5], {"sha256": "in time"})
    comes_back()
    (trial,) = load_study("toy", open_storage(URL)).get_trials()
    assert (trial.state, trial.values, trial.intermediate_values) == (TrialState.COMPLETE, [0.5], {1: 0.5})
    assert (trial.user_attrs["sha256"], trial.user_attrs["beat"], trial.user_attrs["rungs"]) == ("in time", 7, {"1": [0.5]})
    assert trial.constraints == {"density": -0.1}
    assert [one["died"] for one in trial.user_attrs["interruptions"]] == [True]


def test_a_trial_that_is_taken_over_while_it_runs_is_left_to_its_successor(caplog):
    wanted = spec(heartbeat=0.02)
    expected = alone(wanted)
    prepare_study(wanted, URL)
    stolen = []

    def steal_the_first(lease, *rest):
        if not stolen:
            stolen.append(lease.number)
            lease.note(worker={"host": "another", "pid": 1, "token": "another"})
        return run_trial(lease, *rest)

    run_worker("toy", URL, objective=steal_the_first)
    assert "trial 0 was taken over by another worker" in caplog.text
    assert [one["host"] for one in interruptions("toy", URL)] == ["another"]
    assert differences(account("toy", URL), expected) == []


@pytest.mark.long
def test_workers_that_somebody_else_stops_have_not_failed():
    wanted = spec(epochs=200, trials=2, parallel=2, heartbeat=1000.0)
    study, told = prepare_study(wanted, URL), set()

    def stop_all():
        workers = {trial.user_attrs["worker"]["pid"] for trial in study.get_trials(states=[TrialState.RUNNING])}
        if len(workers) == 2 and not told:
            told.update(workers)
            for pid in workers:
                os.kill(pid, TERM)
        return False

    with pytest.raises(Interrupted, match=r"^the workers were stopped; the running trials are queued to resume$"):
        run_study(wanted, storage=URL, workers=2, should_stop=stop_all)
    assert counts(account("toy", URL)) == {"WAITING": 2}


@pytest.mark.long
def test_workers_that_are_all_killed_at_once_are_started_again(monkeypatch):
    wanted = spec(epochs=30, trials=2, parallel=2, heartbeat=1000.0)
    expected, wait = alone(wanted), time.sleep
    study, killed = prepare_study(wanted, URL), set()

    def kill_all(seconds):
        workers = {trial.user_attrs["worker"]["pid"] for trial in study.get_trials(states=[TrialState.RUNNING])}
        if len(workers) == 2 and not killed:
            killed.update(workers)
            for pid in workers:
                os.kill(pid, KILL)
        wait(0.5 if killed else seconds)

    monkeypatch.setattr(processes.time, "sleep", kill_all)
    run_study(wanted, storage=URL, workers=2)
    assert differences(account("toy", URL), expected) == []
    assert {one["pid"] for one in interruptions("toy", URL)} == killed


def test_a_worker_that_is_killed_in_vain_is_not_started_for_ever():
    process = processes._Process(spec(), URL, 3, Path(), 0, ())
    assert [process.may_restart(0) for _ in range(12)] == [True] * 10 + [False] * 2
    assert process.may_restart(1)
    assert [process.may_restart(1) for _ in range(11)] == [True] * 10 + [False]


def test_a_full_disk_ends_the_worker_and_not_the_trial(monkeypatch):
    wanted = spec()
    expected = alone(wanted)
    writes = itertools.count()

    def full(descriptor):
        if next(writes) > 7:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tensor_files.os, "fsync", full)
        with pytest.raises(RunError, match=r"^the disk is full: cannot write runs/trials/toy-.*: No space left on device$"):
            run_study(wanted, storage=URL)
    assert counts(account("toy", URL)) == {"COMPLETE": 1, "WAITING": 1}
    run_study(wanted, storage=URL)
    assert differences(account("toy", URL), expected) == []


def test_a_clock_that_jumps_changes_nothing(monkeypatch):
    wanted = spec(timeout=600.0)
    expected = alone(wanted)
    jumps = itertools.cycle([0, 3600 * 9, -3600 * 24])
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + next(jumps))
    one, other = desks(wanted)
    lease = one.next()
    assert [other.next() for _ in range(9)] == ["wait"] * 9
    lease.release("the test goes on")
    run_worker("toy", URL)
    assert differences(account("toy", URL), expected) == []
    assert [one["why"] for one in interruptions("toy", URL)] == ["the test goes on"]


def test_a_trial_of_another_version_is_begun_anew(monkeypatch):
    wanted = spec()
    expected = alone(wanted)
    steps, old = itertools.count(), {**worker.versions(), "torch": "1.0"}
    with monkeypatch.context() as patch:
        for module in (scheduler, worker, trial_runner):
            patch.setattr(module, "versions", lambda: old)
        with pytest.raises(Interrupted):
            run_study(wanted, storage=URL, should_stop=lambda: next(steps) > 12)
    trial = load_study("toy", open_storage(URL)).trials[0]
    assert (trial.state.name, trial.user_attrs["versions"]["torch"]) == ("WAITING", "1.0")
    assert len(trial.intermediate_values) == 2
    study = run_study(wanted, storage=URL)
    assert differences(account("toy", URL), expected) == []
    log = Path(study.trials[0].user_attrs["folder"], "log.txt").read_text()
    assert "starting over: the checkpoint is from other package versions" in log
    assert log.count("epoch 1:") == 2


ERRORS = {
    "a mistake": (ZeroDivisionError("float division\nby zero"), "ZeroDivisionError: float division"),
    "no memory": (MemoryError(), "MemoryError"),
    "no memory on a GPU": (torch.OutOfMemoryError("CUDA out of memory."), "OutOfMemoryError: CUDA out of memory."),
    "no number": (RunError("the loss is nan at step 3: try a lower learning rate"), "the loss is nan at step 3"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_a_trial_raises_fails_that_trial(case, monkeypatch):
    error, reason = ERRORS[case]
    whole = trial_runner.run

    def run(config, folder, **options):
        if folder.name == "0001":
            raise error
        return whole(config, folder, **options)

    monkeypatch.setattr(trial_runner, "run", run)
    study = run_study(spec(epochs=1), storage=URL)
    states = [trial.state.name for trial in study.trials]
    assert states == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    attrs = study.trials[1].user_attrs
    assert attrs["reason"].startswith(reason)
    assert "\n" not in attrs["reason"]
    assert ("traceback" in attrs) == (case != "no number")
    assert "trial 1 starts" in attrs["log"][0]
    assert attrs["log"][-1].endswith(f"failed: {attrs['reason']}")


NETS = """
import torch
from torch import nn

class Nan(nn.Linear):
    def forward(self, x):
        return super().forward(x.flatten(1)) * (1.0 if self.training else float("nan"))

class Huge(nn.Linear):
    def forward(self, x):
        return super().forward(x.flatten(1)) + (torch.empty(10**15).sum() if self.training else 0)

def nan(num_classes): return Nan(64, num_classes)
def huge(num_classes): return Huge(64, num_classes)
def fine(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""


@pytest.mark.parametrize(
    ("net", "pruner", "reason"),
    [
        ("nan", "none", r"^val_nll is nan after epoch 1"),
        ("nan", "hyperband", r"^val_nll is nan after epoch 1"),
        ("huge", "none", r"RuntimeError: .*can't allocate memory"),
    ],
)
def test_networks_that_return_no_number_or_take_all_memory(net, pruner, reason, tmp_path, monkeypatch):
    (tmp_path / "nets_at_fault.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    nets = [f"nets_at_fault:{name}" for name in (net, "fine")]
    run = {**RUN, "network": nets[1], "extractor": "random", "recipe": {**RUN["recipe"], "epochs": 3}}
    more = {
        "run": run,
        "space": {"network": {"choice": nets}},
        "sampler": "random",
        "objective": "val_nll",
        "trials": 4,
        "seed": 3,
    }
    study = run_study(check(StudySpec, {**values(pruner=pruner), **more}), storage=URL)
    at_fault = [trial for trial in study.trials if trial.params["network"] == nets[0]]
    assert at_fault
    for trial in at_fault:
        assert trial.state.name == "FAIL"
        assert re.search(reason, trial.user_attrs["reason"])
        assert trial.user_attrs["log"]
    assert sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in study.trials) == 4


def test_a_trial_that_kills_its_workers_fails_after_five(monkeypatch):
    monkeypatch.setattr(leases, "is_dead", lambda worker: True)
    wanted = spec(trials=2, parallel=1)
    *doomed, last = desks(wanted, 6)
    assert [desk.next().number for desk in doomed] == [0] * 5
    assert last.release_lost_trials() == [0]
    trial = last.study.trials[0]
    host = socket.gethostname()
    assert trial.state.name == "FAIL"
    assert trial.user_attrs["reason"] == f"its worker died 5 times, the last on {host}: possibly out of memory"
    assert counts(account("toy", URL)) == {"FAIL": 1}
    run_worker("toy", URL)
    assert counts(account("toy", URL)) == {"COMPLETE": 2, "FAIL": 1}


def test_a_death_is_counted_once_whoever_dies_next():
    first, second, third = desks(spec(), 3)
    with dying() as die:
        for ticks in itertools.count(1):
            assert first.next().number == 0
            before = len(interruptions("toy", URL))
            try:
                die(ticks)
                second.release_lost_trials()
                die(0)
                break
            except Killed:
                third.release_lost_trials()
            assert len(interruptions("toy", URL)) - before <= 1
            assert counts(account("toy", URL)) == {"WAITING": 1}
    assert ticks > 4


@pytest.mark.slow
def test_a_study_whose_maker_was_killed_is_made_again():
    wanted = spec(epochs=1, enqueue=[{"recipe.lr": 3.0}])
    with dying() as die:
        for writes in itertools.count(1):
            die(writes)
            try:
                prepare_study(wanted, URL)
                break
            except Killed:
                pass
    assert writes > 10
    assert [t.system_attrs["fixed_params"] for t in prepare_study(wanted, URL).trials] == [{"recipe.lr": 3.0}]
    assert len(run_study(wanted, storage=URL).trials) == 3


def test_a_study_that_is_deleted_ends_its_workers():
    wanted = spec(heartbeat=0.02)
    study = prepare_study(wanted, URL)

    def delete_meanwhile(lease, *rest):
        optuna.delete_study(study_name="toy", storage=study._storage)
        return run_trial(lease, *rest)

    with pytest.raises(RunError, match=r"^the study 'toy' was deleted$"):
        run_worker("toy", URL, objective=delete_meanwhile)


def test_the_password_of_a_storage_stays_out_of_everything(tmp_path, postgres, monkeypatch, caplog):
    url = postgres.url()
    whole = trial_runner.run

    def run(config, folder, **options):
        if folder.name == "0001":
            raise ValueError(f"cannot reach {url} with {postgres.password!r}")
        return whole(config, folder, **options)

    monkeypatch.setattr(trial_runner, "run", run)
    wanted = spec(epochs=1)
    study = run_study(wanted, storage=url)
    assert re.search(r"with '\*\*\*' \(test_faults, line \d+\)$", study.trials[1].user_attrs["reason"])
    assert leaks(tmp_path, url, postgres.password) == []
    assert postgres.password not in caplog.text
