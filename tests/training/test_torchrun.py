"""`torchrun -m subnet_search extract`, as a user runs it: one run on two processes."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from subnet_search.artifact import Subnetwork
from subnet_search.extraction.config_file import read_config
from subnet_search.extraction.extract import RunConfig, run

TORCHRUN = [Path(sys.executable).with_name("torchrun"), "--nproc-per-node", "2", "-m", "subnet_search", "extract"]
# 7 steps an epoch, so that no multiple of ten steps, where ranks ask each other whether to stop, ends one
SMALL = ["network=lenet_300_100", "data={name: digits, limit: 400}", "recipe.batch_size=50", "recipe.threads=1"]
METHODS = {
    "gumbel": ["extractor={name: gumbel, density: 0.3}", "recipe.epochs=4"],
    "rigl": ["extractor={name: rigl, density: 0.2, every: 7}", "recipe.epochs=8", "recipe.lr=0.05"],
    "snip": ["extractor={name: snip, density: 0.1}", "recipe.epochs=8", "recipe.lr=0.05"],
}
BROKEN = ["-s", "extractor=random", "-s", "recipe.lr=1e30"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def overrides(settings):
    return [word for setting in settings for word in ("-s", setting)]


def on_two(*words, check=True):
    done = subprocess.run([*TORCHRUN, *map(str, words)], capture_output=True, text=True, timeout=300)
    if check:
        assert done.returncode == 0, done.stderr
    return done


def ours(said):
    """What the processes themselves wrote on standard error; torchrun reports their end at length."""
    return [line for line in said.splitlines() if re.match(r"(error|warning|stopped|epoch)\b", line)]


@pytest.mark.long  # what two processes find is in test_distributed.py, and the command with rigl below
@pytest.mark.parametrize("name", ["gumbel", "snip"])
def test_two_processes_do_one_run(name):
    settings = [*SMALL, *METHODS[name]]
    done = on_two(*overrides(settings), "--json")
    summary = json.loads(done.stdout)  # one document and nothing else, or this raises
    assert ours(done.stderr) == []
    assert_is_that_of_one_process(summary, settings, Path("runs/extract"))


def assert_is_that_of_one_process(summary, settings, folder):
    assert summary["processes"] == 2
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml",
        "identity.json",
        "inputs.safetensors",
        "metrics.jsonl",
        "subnetwork.safetensors",
        "summary.json",
    }
    assert json.loads((folder / "summary.json").read_text()) == summary
    two = Subnetwork.load(summary["subnetwork"])
    assert two.sha256 == summary["sha256"]
    one = run(read_config(RunConfig, None, settings))
    assert one.metrics["processes"] == 1
    assert two.density == one.density
    assert two.masks.overlap(one.masks) > 0.95
    for key in ("val_accuracy", "test_accuracy"):
        assert summary[key] == pytest.approx(one.metrics[key], abs=0.06)
    assert summary["steps"] == one.metrics["steps"]


def stopped(number, *words):
    """Start a run, send torchrun a signal once two epochs are over, and return what the run said last."""
    process = subprocess.Popen([*TORCHRUN, *words, "--out", "part"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (path := Path("part/metrics.jsonl")).is_file() or path.read_text().count("\n") < 2:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    out, said = process.communicate(timeout=120)
    assert (out, process.returncode) == ("", 1)
    assert "subnet_search/" not in said  # no traceback of ours
    return ours(said)


@pytest.mark.long
def test_a_stopped_run_goes_on_to_the_same_bits():
    settings = [*SMALL, *METHODS["rigl"], "recipe.epochs=40"]
    words = overrides(settings)
    whole = json.loads(on_two(*words, "--out", "whole", "--json").stdout)
    assert_is_that_of_one_process(whole, settings, Path("whole"))
    (said,) = stopped(signal.SIGTERM, *words, "--json")
    found = re.fullmatch(r"stopped after step (\d+) of 280; continue with: torchrun (.*) extract (--resume --out part)", said)
    assert found
    assert int(found[1]) % 10 == 0
    assert found[2] == "--nproc-per-node 2 -m subnet_search"
    resumed = json.loads(on_two(*found[3].split(), "--json").stdout)
    assert resumed["sha256"] == whole["sha256"]
    assert resumed["val_accuracy"] == whole["val_accuracy"]
    assert Path("part/metrics.jsonl").read_text().count("\n") == 40


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["-s", "data=npz:none.npz"], 2, "no such data file: none.npz"),
        (["none.yaml"], 2, "no such file: none.yaml"),
        ([*BROKEN, "--out", "nan"], 1, "the loss is nan at step 2"),
        (["--out", "taken/run"], 1, "cannot write taken/run"),
    ],
)
def test_an_error_is_one_line(words, code, message):
    Path("taken").write_text("a file")
    done = on_two(*overrides(SMALL), *words, check=False)
    assert (done.returncode, done.stdout) == (1, "")  # torchrun's own
    (said,) = ours(done.stderr)
    assert said.startswith(f"error: {message}")
    assert set(re.findall(r"exitcode +: (-?\d+)", done.stderr)) == {str(code)}
    assert "subnet_search/" not in done.stderr
    assert not list(Path().glob("runs/*"))


@pytest.mark.long
def test_a_process_that_is_killed_ends_the_run():
    words = overrides([*SMALL, *METHODS["rigl"], "recipe.epochs=3000"])
    process = subprocess.Popen([*TORCHRUN, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not Path("runs/extract/metrics.jsonl").is_file():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    subprocess.run(["kill", "-9", children[-1]], check=True)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert [line for line in ours(said) if line.startswith("error: lost the connection to another process")] == ours(said)[-1:]
    assert Path("runs/extract/checkpoint/state.safetensors").is_file()


@pytest.mark.slow
def test_half_of_what_torchrun_sets(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    done = subprocess.run([sys.executable, *TORCHRUN[3:]], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: WORLD_SIZE is set, but other variables of torchrun are missing: ")
    assert done.stderr.count("\n") == 1
