"""The default number of threads: the environment, then the affinity and the quota of the cgroup, shared by torchrun."""

import io
import os

import joblib
import pytest
from joblib.externals.loky.backend import context

import subnet_search as ss
from subnet_search.extraction.config_file import check
from subnet_search.training import processors
from subnet_search.training.processors import default_threads, warn_if_busy, warn_if_shared

GROUPS = "/sys/fs/cgroup"
V1 = "/sys/fs/cgroup/cpu/cpu.cfs_{}_us"


@pytest.fixture(autouse=True)
def sixteen(monkeypatch):
    """A machine of 16 processors, all of them for this process, without a quota."""
    for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    files(monkeypatch, {})


def files(monkeypatch, found):
    """What is under /sys/fs/cgroup for joblib."""
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: str(path) in found if str(path).startswith(GROUPS) else exists(path))
    monkeypatch.setattr(context, "open", lambda path: io.StringIO(found[path]), raising=False)


def test_all_processors_of_the_machine():
    assert default_threads() == 16


def test_the_affinity(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3, 5}, raising=False)
    assert default_threads() == 3


@pytest.mark.parametrize(
    ("found", "threads"),
    [
        ({"/sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),  # 1.5 processors, rounded up
        ({"/sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"/sys/fs/cgroup/cpu.max": "max 100000\n"}, 16),
        ({V1.format("quota"): "250000\n", V1.format("period"): "100000\n"}, 3),
        ({V1.format("quota"): "-1\n", V1.format("period"): "100000\n"}, 16),  # no quota
    ],
)
def test_the_quota_of_the_cgroup(found, threads, monkeypatch):
    files(monkeypatch, found)
    assert default_threads() == threads


@pytest.mark.parametrize(("text", "threads"), [("3", 3), ("4,2", 4), ("64", 64), ("", 16), ("0", 16), ("many", 16)])
def test_the_environment_is_obeyed_where_it_is_a_number(text, threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert default_threads() == threads


@pytest.mark.parametrize(("together", "omp", "threads"), [(2, None, 8), (1000, None, 1), (4, "1", 4), (4, "3", 3), (1, "1", 1)])
def test_torchruns_processes_share_the_processors(together, omp, threads, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(together))
    if omp:
        monkeypatch.setenv("OMP_NUM_THREADS", omp)  # 1 among several is torchrun's own
    assert default_threads() == threads


def test_a_recipe_that_sets_threads_wins(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert ss.Recipe(device="cpu").resolve({}).threads == 3
    assert ss.Recipe(device="cpu", threads=5).resolve({}).threads == 5


def busy(monkeypatch, tmp_path, load, now):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    (tmp_path / "loadavg").write_text(f"{load} 0 0 {now}/100 1\n")
    monkeypatch.setattr(processors, "LOAD", tmp_path / "loadavg")


@pytest.mark.parametrize(
    ("load", "now", "threads", "says"),
    [
        (12.0, 20, 16, "recipe.threads=4 or OMP_NUM_THREADS=4"),
        (40.0, 50, 16, "recipe.threads=1 or"),
        (12.0, 20, 4, None),  # four are free
        (16.0, 1, 16, None),  # the load of an earlier run of this process
        (40.0, 50, 1, None),  # nothing to set
    ],
)
def test_a_busy_machine_is_one_line(load, now, threads, says, monkeypatch, tmp_path, caplog):
    busy(monkeypatch, tmp_path, load, now)
    warn_if_busy(threads)
    assert [says in record.getMessage() for record in caplog.records] == ([True] if says else [])


@pytest.mark.parametrize("threads", [None, 2])
def test_only_a_default_is_warned_about(threads, monkeypatch, tmp_path, caplog):
    busy(monkeypatch, tmp_path, 40.0, 50)
    recipe = {"epochs": 0, "device": "cpu"} | ({"threads": threads} if threads else {})
    monkeypatch.setattr(joblib, "cpu_count", lambda: 2)
    ss.run(check(ss.RunConfig, {"network": "lenet_300_100", "extractor": "random", "recipe": recipe}))
    assert ["other processes" in record.getMessage() for record in caplog.records] == ([] if threads else [True])


@pytest.mark.parametrize(
    ("workers", "threads", "says"), [(8, 4, "at most 4 workers, or recipe.threads=2"), (4, 4, None), (99, 1, None)]
)
def test_workers_with_more_threads_than_processors(workers, threads, says, caplog):
    warn_if_shared(workers, threads)
    assert [says in record.getMessage() for record in caplog.records] == ([True] if says else [])
