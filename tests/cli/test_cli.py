"""The installed command, as a user runs it: real data, exit codes, one line for every mistake, nothing lost.

`command` calls it in this process, which spares importing torch every time; `process` starts it as a shell does.
"""

import contextlib
import io
import json
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from subnet_search.cli import main
from subnet_search.cli.render import format

COMMAND = Path(sys.executable).with_name("subnet-search")
ROOT = Path(__file__).parents[2]
FAST = ["-s", "recipe.epochs=3", "-s", "recipe.threads=1", "-s", "network=lenet_300_100"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SUBNET_SEARCH_STORAGE", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])  # to which the command adds the folder


def process(*words, check=True, **options):
    done = subprocess.run([COMMAND, *map(str, words)], capture_output=True, text=True, timeout=300, **options)
    if check:
        assert done.returncode == 0, done.stderr
    return done


def command(*words, check=True):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    done = subprocess.CompletedProcess(words, stopped.value.code, out.getvalue(), err.getvalue())
    if check:
        assert done.returncode == 0, done.stderr
    return done


def mistake(*words, code=2, by=command):
    """What a failing command says: one line on standard error, nothing on standard output."""
    done = by(*words, check=False)
    assert done.returncode == code, done
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ")
    return done.stderr


def from_json(*words):
    return json.loads(command(*words, "--json").stdout)


def test_help_is_light():
    heavy = "import sys; from subnet_search.cli.app import app; print({'torch', 'optuna', 'torchvision'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True).stdout.strip() == "set()"
    for words in ([], ["extract"], ["evaluate"], ["methods"], ["data"], ["study"], ["study", "run"], ["study", "extract"]):
        text = process(*words, "--help").stdout
        assert "Usage: subnet-search" in text
        assert "Example:" in text or words in ([], ["study"])


def test_every_shipped_configuration_is_valid():
    from subnet_search import RunConfig
    from subnet_search.extraction.config_file import read_config
    from subnet_search.search import read_study

    assert all(read_config(RunConfig, path).resolve() for path in (ROOT / "configs").glob("*.yaml"))
    studies = list((ROOT / "studies").glob("*.yaml"))
    assert all(read_study(path).searched.words() for path in studies)
    assert all(path.read_text().split("\n")[0].endswith("?") for path in studies), "a study opens with its question"


def test_the_main_job_on_digits():
    config = ROOT / "configs" / "gumbel_digits.yaml"
    summary = from_json("extract", config, "-s", "extractor.density=0.3", "-s", "recipe.threads=1", "-s", "recipe.epochs=20")
    wanted = "extractor network data seed density layer_density val_accuracy test_accuracy steps passes seconds bytes "
    wanted += "dense_bytes sha256 subnetwork"
    assert set(wanted.split()) <= summary.keys()
    assert summary["val_accuracy"] > 0.9
    assert summary["test_accuracy"] > 0.9
    assert summary["density"] == pytest.approx(0.3, abs=1e-5)
    assert summary["bytes"] < 1.1 / 8 * summary["weights"] + 20_000
    folder = Path(summary["subnetwork"]).parent
    assert folder == Path("runs/gumbel_digits")
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml",
        "identity.json",
        "inputs.safetensors",
        "metrics.jsonl",
        "subnetwork.safetensors",
        "summary.json",
    }
    assert json.loads((folder / "summary.json").read_text()) == summary
    complete = yaml.safe_load((folder / "config.yaml").read_text())
    assert complete["extractor"]["density"] == 0.3
    assert complete["recipe"]["lr"] == 50.0
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == complete["recipe"]["epochs"]
    judged = from_json("evaluate", summary["subnetwork"], "--split", "test")
    assert judged["accuracy"] == pytest.approx(summary["test_accuracy"])
    assert judged["sha256"] == summary["sha256"]


def test_extract_again_takes_another_folder_and_gives_the_same():
    first = from_json("extract", *FAST)
    second = from_json("extract", *FAST)
    assert (first["subnetwork"], second["subnetwork"]) == (
        "runs/extract/subnetwork.safetensors",
        "runs/extract-2/subnetwork.safetensors",
    )
    assert first["sha256"] == second["sha256"]
    assert "runs/extract already has a run" in mistake("extract", *FAST, "--out", "runs/extract")


@pytest.mark.slow
def test_people_get_a_table_and_progress_on_standard_error():
    done = process("extract", *FAST)
    assert "validation accuracy" in done.stdout
    assert "sha256" in done.stdout
    assert re.search(r"epoch 3 .* trained; measuring the result", done.stderr)


def test_milliseconds_beside_the_dense_network():
    words = ["-s", "network=small_conv", "-s", "extractor=l1_filters", "-s", "target={flops: 0.3}", "-s", "recipe.epochs=2"]
    done = command("extract", *words, "--out", "channels")
    assert "l1_filters by channel on small_conv, digits" in done.stdout
    text = command("evaluate", "channels/subnetwork.safetensors", "--latency").stdout
    assert re.search(r"ms at batch 16 +[\d.]+ \([\d.]+ to [\d.]+\) +[\d.]+ \([\d.]+ to [\d.]+\) +[\d.]+x", text)
    assert "without dead channels" in text
    assert "alternating with the dense network, 1 CPU thread" in text
    rows = from_json("evaluate", "channels/subnetwork.safetensors", "--latency")["latency"]
    assert [row["batch"] for row in rows] == [1, 16, 256]
    assert "latency" not in from_json("evaluate", "channels/subnetwork.safetensors")


def interrupted(*words, after):
    """Start a command, send it Ctrl-C once the file `after` has two lines, and return what it said."""
    process = subprocess.Popen([COMMAND, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not any(path.read_text().count("\n") >= 2 for path in Path().glob(after)):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    return process.returncode, err


@pytest.mark.slow
def test_ctrl_c_keeps_everything():
    slow = ["-s", "recipe.epochs=15", "-s", "recipe.threads=1", "-s", "network=lenet5"]
    whole = from_json("extract", *slow, "--out", "whole")
    code, said = interrupted("extract", *slow, "--out", "part", after="part/metrics.jsonl")
    assert code == 130
    last = said.splitlines()[-1]
    assert re.fullmatch(r"stopped after step \d+ of \d+; continue with: subnet-search extract --resume --out part", last)
    resumed = from_json(*last.rpartition("subnet-search ")[2].split())
    assert resumed["sha256"] == whole["sha256"]


def study_file(**more):
    run = {"network": "lenet_300_100", "recipe": {"epochs": 3}}
    values = {"name": "toy", "run": run, "space": {"extractor": ["temperature"]}, "trials": 3, **more}
    Path("toy.yaml").write_text(yaml.safe_dump(values))
    return "toy.yaml"


@pytest.mark.slow
def test_printed_commands_name_the_storage_of_the_file():
    done = command("study", "run", study_file(storage="sqlite:///other.db", trials=1))
    assert done.stdout.splitlines()[-1] == "Extract it with: subnet-search study extract toy --storage sqlite:///other.db"


@pytest.mark.slow
def test_a_study_from_the_command_line():
    done = command("study", "run", study_file())
    assert "[3/3] trial 2 complete" in done.stderr
    assert "Best: trial" in done.stdout
    (row,) = from_json("study", "list")
    assert {"name", "states", "best"} <= row.keys()
    trials = from_json("study", "trials", "toy")
    assert all({"number", "state", "values", "params", "density", "sha256", "seconds", "reason"} <= t.keys() for t in trials)
    assert from_json("study", "show", "toy")["states"] == {"COMPLETE": 3}
    best = from_json("study", "best", "toy")
    assert from_json("study", "trial", "toy", best["number"])["config"]["recipe"]["epochs"] == 3
    again = from_json("study", "extract", "toy", "--best", "--out", "runs/best")
    assert again["same"] is True
    assert again["sha256"] == best["sha256"]
    for words in (["list"], ["show", "toy"], ["trials", "toy"], ["trial", "toy", 0], ["best", "toy"]):
        assert command("study", *words).stdout
    command("study", "run", "toy", "--trials", "4")
    assert len(from_json("study", "trials", "toy")) == 4
    assert from_json("study", "worker", "toy", "--trials", "5") == {"name": "toy", "ran": [4]}
    assert command("study", "worker", "toy").stdout == "nothing to run: toy is finished or was stopped\n"


@pytest.mark.slow
def test_ctrl_c_leaves_no_trial_running():
    slow = {"network": "lenet5", "recipe": {"epochs": 60}}
    code, said = interrupted("study", "run", study_file(run=slow), after="runs/trials/*/0000/metrics.jsonl")
    assert code == 130
    assert said.splitlines()[-1].endswith("continue with: subnet-search study run toy.yaml")
    states = [trial["state"] for trial in from_json("study", "trials", "toy")]
    assert states == ["WAITING"]


@pytest.mark.long
def test_ctrl_c_stops_all_workers():
    slow = {"network": "lenet5", "recipe": {"epochs": 60}}
    words = ["study", "run", study_file(run=slow, trials=4), "--workers", "2"]
    code, _ = interrupted(*words, after="runs/trials/*/0001/metrics.jsonl")
    assert code == 130
    states = [trial["state"] for trial in from_json("study", "trials", "toy")]
    assert "RUNNING" not in states
    assert states.count("WAITING") == 2


def test_methods_and_data(monkeypatch):
    rows = from_json("methods")
    names = [method["name"] for method in rows]
    monkeypatch.setattr(format.console, "width", 80)
    lines = command("methods").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    for row in rows:  # one line each
        assert any(line.split()[0] == row["name"] and row["summary"] in line for line in lines if line.startswith("  "))
    assert {"gumbel", "supermask", "edge_popup", "random"} <= set(names)
    for words, name in {
        "Rigging the Lottery": "rigl",
        "SR-STE": "sr_ste",
        "1911.13299": "edge_popup",
        "GraNet": "granet",
    }.items():
        assert from_json("methods", words)["name"] == name
    slimming = command("methods", "network slimming").stdout  # a paper of two methods
    assert [line.split()[0] for line in slimming.splitlines() if line.startswith("  ")] == ["bn_scale", "slimming"]
    gumbel = from_json("methods", "gumbel")
    density = next(field for field in gumbel["hyperparameters"] if field["name"] == "density")
    assert density == {
        "name": "density",
        "type": "float or none",
        "default": None,
        "domain": "0.05 to 0.5, log",
        "help": density["help"],
    }
    assert "z = 1[m + L > 0]" in command("methods", "gumbel").stdout
    assert {"digits", "fashion_mnist", "cifar10"} <= {row["name"] for row in from_json("data")}
    assert from_json("data", "digits")["train"] == 1294


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["extract", "none.yaml"], "no such file: none.yaml"),
        (["extract", "-s", "extractor.density=0"], "extractor.density: input should be greater than 0, got 0"),
        (["extract", "-s", "extractor.density=1.4"], "less than or equal to 1, got 1.4 (-s extractor.density)"),
        (["extract", "-s", "network=lenet"], "did you mean 'lenet5'"),
        (["extract", "-s", "data=digit"], "did you mean 'digits'"),
        (["extract", "-s", "extractor=gumbell"], "did you mean 'gumbel'"),
        (["extract", "-s", "recpe.lr=1"], "unknown key 'recpe': did you mean 'recipe'"),
        (["extract", "-s", "recipe.lr"], "-s takes KEY=VALUE, got 'recipe.lr'"),
        (["extract", "-s", "recipe.device=cuda:9"], "the device 'cuda:9' is not available"),
        (["extract", "--resume"], "no run to resume in runs/extract"),
        (["extract", "--weights", "all"], "weights: input should be 'values' or 'seed', got 'all' (-s weights)"),
        (["extract", "--bar"], "No such option: --bar"),
        (["extrct"], "No such command 'extrct'"),
        (["evaluate", "none.safetensors"], "no such subnetwork file: none.safetensors"),
        (["methods", "gumbell"], "did you mean 'gumbel'"),
        (["data", "npz:none.npz"], "no such data file: none.npz"),
        (["study", "show", "quick"], "no studies yet: runs/studies.db does not exist"),
        (["study", "run", "none.yaml"], "no such file: none.yaml"),
        (["study", "list", "--storage", "nonsense"], "not a storage URL: 'nonsense'"),
        (["study", "worker", "toy"], "no studies yet"),
    ],
)
def test_mistakes_are_one_line(words, message):
    assert message in mistake(*words)
    assert not Path("runs").exists()


@pytest.mark.slow
def test_a_network_with_too_few_classes():
    Path("three_outputs.py").write_text(
        "from torch import nn\ndef small(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n"
    )
    assert mistake("extract", "-s", "network=three_outputs:small").startswith(
        "error: three_outputs:small has 3 outputs, but the data has 10 classes; the function gets this number as num_classes"
    )


def test_a_loss_that_is_no_number():
    words = ["extract", "-s", "extractor=random", "-s", "recipe.lr=1e30", *FAST]
    assert re.search(r"the loss is (nan|inf) at step \d+", mistake(*words, code=1))


def test_a_folder_that_cannot_be_written():
    Path("taken").write_text("a file")
    assert "cannot write taken/run" in mistake("extract", *FAST, "--out", "taken/run", code=1)


@pytest.mark.slow
def test_a_full_disk():
    """A limit on file sizes stands in for it: the checkpoint, 0.5 MB, does not fit; what was there stays."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # noqa: E731
    done = process("extract", *FAST, "--json", check=False, preexec_fn=limit)
    assert done.returncode == 1
    assert re.fullmatch(r"error: cannot write runs/extract/checkpoint/state\.safetensors: .*\n", done.stderr)
    assert [path.name for path in Path("runs/extract/checkpoint").iterdir()] == []
    assert Path("runs/extract/config.yaml").exists()


def test_damaged_files():
    summary = from_json("extract", *FAST)
    path = Path(summary["subnetwork"])
    content = path.read_bytes()
    path.write_bytes(content[:-3])
    assert "is not a readable subnetwork file (damaged or truncated)" in mistake("evaluate", path)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "is damaged: its content does not match its hash" in mistake("evaluate", path)


def test_json_errors_leave_standard_output_empty():
    done = process("study", "best", "toy", "--json", check=False)
    assert (done.returncode, done.stdout) == (2, "")


def test_a_closed_pipe_is_no_traceback():
    done = subprocess.run(f"{COMMAND} methods --json | head -1", shell=True, capture_output=True, text=True)
    assert done.stdout == "[\n"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [[], ["study"]])
def test_a_command_without_arguments_shows_its_help(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    out, err = capsys.readouterr()
    assert (ended.value.code, err) == (0, "")
    assert out.startswith("Usage: subnet-search")
    assert out.count("\n") > 10
