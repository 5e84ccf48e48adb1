"""A run folder is of one run: of one network and one data set, in one process at a time, and never without its result."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import subnet_search as ss
from subnet_search.cli import main
from subnet_search.core.errors import Interrupted, RunError, UserError
from subnet_search.core.tensor_files import load_tensors, save_tensors, write_atomically
from subnet_search.data import from_user
from subnet_search.extraction.config_file import check
from subnet_search.extraction.extract import run
from subnet_search.extraction.run_folder import CHECKPOINT, RunFolder
from subnet_search.structure.compact import difference_between


def data(seed=0, scale=1.0, shift=0.0):
    rng = torch.Generator().manual_seed(seed)
    inputs = torch.randn(80, 6, generator=rng)
    return from_user((scale * inputs + shift, (inputs[:, 0] > 0).long()))


def net(seed=0, hidden=8):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, 2))


def config(method="random", epochs=3, **more):
    recipe = {"epochs": epochs, "batch_size": 16, "threads": 1, "device": "cpu", "lr": 0.05}
    return check(ss.RunConfig, {"extractor": method, "recipe": recipe, **more})


def interrupted(folder, at=5, **more):
    steps = iter(range(1000))
    with pytest.raises(Interrupted):
        run(
            more.pop("config", config()),
            folder,
            should_stop=lambda: next(steps) == at,
            **{"module": net(), "data": data(), **more},
        )


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- identity ---

OTHERS = {
    "the network differs from": {"module": net(hidden=9)},
    "the network differs": {"module": nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))},
    "the network's weights differ from": {"module": net(seed=1)},
    "the network's initialisation differs from": {"init": "kaiming_normal"},
    "the data differ from": {"data": data(seed=1)},
    "the data differ": {"data": from_user((data().train.inputs, data().train.labels.flip(0)))},
}


@pytest.mark.parametrize("state", ["stopped", "finished"])
@pytest.mark.parametrize("said", OTHERS)
def test_a_run_is_not_resumed_with_something_else(tmp_path, state, said):
    if state == "stopped":
        interrupted(tmp_path / "run")
    else:
        run(config(), tmp_path / "run", module=net(), data=data())
    before = content(tmp_path / "run")
    with pytest.raises(UserError, match=f"cannot resume {tmp_path}/run: {said}"):
        run(config(), tmp_path / "run", resume=True, on_step=pytest.fail, **{"module": net(), "data": data(), **OTHERS[said]})
    assert content(tmp_path / "run") == before
    again = run(config(), tmp_path / "run", resume=True, module=net(), data=data())
    assert again.sha256 == run(config(), module=net(), data=data()).sha256


def test_a_network_is_the_same_one_after_it_was_made_again(tmp_path):
    """Its functions lie at other addresses, and its lazy layers have no weights before they are used."""

    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.factor = nn.Linear(6, 2), lambda x: 2 * x

        def extra_repr(self):
            return f"{self.factor} {object()!r}"

        def forward(self, x):
            return self.factor(self.layer(x))

    def made():
        made = Doubled()
        nn.init.ones_(made.layer.weight)
        nn.init.zeros_(made.layer.bias)
        return made

    interrupted(tmp_path / "run", module=made())
    assert run(config(), tmp_path / "run", resume=True, module=made(), data=data())


def test_files_behind_a_name_count(tmp_path, monkeypatch):
    import numpy as np

    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 255, (40, 8, 8), dtype=np.uint8)
    np.savez("a.npz", train_images=images, train_labels=np.arange(40) % 4)
    settings = config(network="lenet_300_100", data="npz:a.npz")
    steps = iter(range(100))
    with pytest.raises(Interrupted):
        run(settings, "run", should_stop=lambda: next(steps) == 2)
    np.savez("a.npz", train_images=images[::-1], train_labels=np.arange(40) % 4)
    with pytest.raises(UserError, match="cannot resume run: the data differ from the original run's"):
        run(settings, "run", resume=True)


def test_a_folder_of_before_continues(tmp_path):
    interrupted(tmp_path / "run")
    (tmp_path / "run" / "identity.json").unlink()
    again = run(config(), tmp_path / "run", resume=True, module=net(), data=data())
    assert again.sha256 == run(config(), module=net(), data=data()).sha256


def test_keys_that_have_come_since_have_their_defaults(tmp_path):
    interrupted(tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    written = yaml.safe_load(path.read_text())
    del written["recipe"]["label_smoothing"], written["extractor"]["allocation"]
    path.write_text(yaml.safe_dump(written))
    smooth = config()
    smooth = smooth.model_copy(update={"recipe": smooth.recipe.model_copy(update={"label_smoothing": 0.1})})
    with pytest.raises(UserError, match=r"recipe\.label_smoothing was 0\.0, now 0\.1"):
        run(smooth, tmp_path / "run", resume=True, module=net(), data=data())
    assert run(config(), tmp_path / "run", resume=True, module=net(), data=data())


# --- checkpoints say whose they are ---


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    interrupted(tmp_path / "one")
    interrupted(tmp_path / "two", config=config(seed=1))
    shutil.copy(tmp_path / "two" / CHECKPOINT, tmp_path / "one" / CHECKPOINT)
    with pytest.raises(UserError, match=r"one/checkpoint/state\.safetensors is a checkpoint of another run"):
        run(config(), tmp_path / "one", resume=True, module=net(), data=data(), on_step=pytest.fail)


def test_a_checkpoint_of_the_same_run_on_another_machine_is_taken(tmp_path):
    interrupted(tmp_path / "one")
    (tmp_path / "two" / "checkpoint").mkdir(parents=True)
    shutil.copy(tmp_path / "one" / CHECKPOINT, tmp_path / "two" / CHECKPOINT)
    seen = []
    found = run(config(), tmp_path / "two", resume=True, module=net(), data=data(), on_step=seen.append)
    assert found.sha256 == run(config(), module=net(), data=data()).sha256
    assert len(seen) < found.metrics["steps"]


@pytest.mark.parametrize("header", [{"progress": {"step": "x"}}, {"progress": None}, {}], ids=str)
def test_a_checkpoint_that_makes_no_sense(tmp_path, header):
    interrupted(tmp_path / "run")
    tensors, before = load_tensors(tmp_path / "run" / CHECKPOINT, "checkpoint")
    save_tensors(tmp_path / "run" / CHECKPOINT, tensors, {"run": before["run"], **header})
    with pytest.raises(UserError, match="is a checkpoint of another run"):
        run(config(), tmp_path / "run", resume=True, module=net(), data=data())


# --- one at a time ---


@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_whose_run_is_under_way_is_refused_at_once(tmp_path, resume):
    refused = []

    def another(_):
        before = content(tmp_path / "run")
        with pytest.raises(UserError, match=f"another run is using {tmp_path}/run: wait until it ends, or choose"):
            run(config(), tmp_path / "run", resume=resume, module=net(), data=data(), on_step=pytest.fail)
        refused.append(content(tmp_path / "run") == before)

    found = run(config(), tmp_path / "run", module=net(), data=data(), on_epoch=another)
    assert refused == [True] * 3
    assert found.sha256 == run(config(), module=net(), data=data()).sha256
    assert not (tmp_path / "run" / ".lock").exists()


def test_of_two_that_start_at_the_same_moment_one_wins(tmp_path):
    """Ten times: what is in the folder is of the one that won, and the other says so in one line."""
    for turn in range(10):
        folder, ended, barrier = tmp_path / str(turn), [], threading.Barrier(2)

        def one(seed, folder=folder, ended=ended, barrier=barrier):
            barrier.wait()
            try:
                ended.append((seed, run(config(seed=seed), folder, module=net(), data=data()).sha256))
            except UserError as error:
                ended.append((seed, str(error)))

        threads = [threading.Thread(target=one, args=(seed,)) for seed in (1, 2)]
        [thread.start() for thread in threads], [thread.join() for thread in threads]
        [(seed, sha256)] = [pair for pair in ended if len(pair[1]) == 64]
        [(_, said)] = [pair for pair in ended if len(pair[1]) != 64]
        assert said.startswith((f"another run is using {folder}", f"{folder} already has a run"))
        assert yaml.safe_load((folder / "config.yaml").read_text())["seed"] == seed
        assert json.loads((folder / "summary.json").read_text())["sha256"] == sha256
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 3


HOLDER = """
import sys, time
from pathlib import Path
from subnet_search.extraction.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])).locked():
    (Path(sys.argv[1]) / ".metrics.jsonl.1.tmp").write_text("half")
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_killed_process_leaves_no_lock(tmp_path):
    folder = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="another run is using"), RunFolder(folder).locked():
        pass
    with RunFolder(folder, leased=True).locked():  # whoever has a lease goes on
        assert (folder / ".metrics.jsonl.1.tmp").exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    with RunFolder(folder).locked():
        assert [path.name for path in folder.iterdir()] == [".lock"]  # what it had half written is gone too
    assert not folder.exists()


def test_what_killed_writers_left_is_removed_by_the_next(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    mine = os.getppid()  # a process that lives
    names = [f".file.{gone.pid}.tmp", f".file.{mine}.tmp", f".other.{gone.pid}.tmp", ".file.tmp"]
    for name in names:
        (tmp_path / name).write_bytes(b"half")
    write_atomically(tmp_path / "file", b"whole")
    assert {path.name for path in tmp_path.iterdir()} == {"file", *names[1:]}
    interrupted(tmp_path / "run")
    left = tmp_path / "run" / "checkpoint" / f".state.safetensors.{gone.pid}.tmp"
    left.write_bytes(b"half")
    run(config(), tmp_path / "run", resume=True, module=net(), data=data())
    assert not left.exists()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=f"cannot write {tmp_path}/file/run"):
        run(config(), tmp_path / "file" / "run", module=net(), data=data(), on_step=pytest.fail)


# --- what a file stores of the weights ---


@pytest.mark.parametrize("method", ["magnitude", "biprop", "iterand", "lottery"])
def test_a_seed_that_will_not_make_the_weights_is_refused_before_training(tmp_path, method):
    settings = config(method, weights="seed")
    with pytest.raises(UserError, match=rf"{method} (trains|changes) weights, so a seed .*weights='values'"):
        run(settings, tmp_path / "run", module=net(), init="kaiming_normal", data=data(), on_step=pytest.fail)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("state", ["stopped", "finished"])
@pytest.mark.parametrize(("first", "then"), [("seed", "values"), ("values", "seed")])
def test_what_is_stored_may_change_on_resume(tmp_path, state, first, then):
    begun, changed = config("gumbel", weights=first), config("gumbel", weights=then)
    given = {"module": net(), "init": "kaiming_normal", "data": data()}
    if state == "stopped":
        interrupted(tmp_path / "run", config=begun, **given)
    else:
        run(begun, tmp_path / "run", densities=(0.2,), **given)
    densities = (0.2,) if state == "finished" else ()
    found = run(changed, tmp_path / "run", resume=True, densities=densities, **given)
    for path in (tmp_path / "run").glob("subnetwork*.safetensors"):
        tensors, header = load_tensors(path, "file")
        assert header["weights"] == then
        assert any(name.startswith("kept.") for name in tensors) == (then == "values")
        assert ss.Subnetwork.load(path)
    assert found.sha256 == run(begun, **given).sha256
    assert found.metrics["bytes"] == (tmp_path / "run" / "subnetwork.safetensors").stat().st_size
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["weights"] == then


def test_the_command_line_saves_the_other_way(tmp_path, monkeypatch, capsys):
    """A folder that was begun when nobody asked beforehand whether a seed would make the weights."""
    monkeypatch.chdir(tmp_path)
    settings = config("magnitude", epochs=1, network="lenet_300_100", data={"name": "digits", "limit": 60}).resolve()
    steps = iter(range(10))
    with pytest.raises(Interrupted):
        run(settings, "run", should_stop=lambda: next(steps) == 1)
    path = Path("run/config.yaml")
    path.write_text(path.read_text().replace("weights: values", "weights: seed"))
    for words, code in (([], 2), (["--weights", "values"], 0), (["-s", "weights=values"], 0)):
        with pytest.raises(SystemExit) as ended:
            main(["extract", "--resume", "--out", "run", *words])
        assert ended.value.code == code
        told = capsys.readouterr()
        assert code == 0 or "magnitude trains weights, so a seed cannot generate them" in told.err
    assert ss.Subnetwork.load("run/subnetwork.safetensors")


def test_a_result_is_saved_whatever_was_asked_for(tmp_path, monkeypatch, caplog):
    """A method that says it leaves weights alone, and does not."""
    monkeypatch.setattr("subnet_search.extractors.methods.biprop.Biprop.changes_weights", False)
    settings = config("biprop", weights="seed")
    found = run(settings, tmp_path / "run", module=net(), init="kaiming_normal", data=data())
    assert ss.Subnetwork.load(tmp_path / "run" / "subnetwork.safetensors").sha256 == found.sha256
    assert "was saved with weights=values: trained weights cannot" in caplog.text


# --- checks look at the run's own inputs ---


def test_a_few_inputs_stay_in_the_run_folder_and_never_in_the_file(tmp_path):
    given = data(scale=40.0, shift=100.0)
    found = run(config(), tmp_path / "run", module=net(), data=given)
    kept, _ = load_tensors(tmp_path / "run" / "inputs.safetensors", "file")
    assert kept["inputs"].equal(given.train.inputs[:8])
    names = load_tensors(tmp_path / "run" / "subnetwork.safetensors", "file")[0]
    assert {name.split(".")[0] for name in names} == {"mask", "kept", "state"}
    loaded = ss.Subnetwork.load(tmp_path / "run" / "subnetwork.safetensors")
    for subnet in (found, loaded):
        assert subnet.inputs(11).equal(torch.cat([kept["inputs"], kept["inputs"][:3]]))
        assert (subnet.origin.low, subnet.origin.high) == (given.train.inputs.min().item(), given.train.inputs.max().item())
    shutil.move(tmp_path / "run" / "subnetwork.safetensors", tmp_path / "alone")
    drawn = ss.Subnetwork.load(tmp_path / "alone").inputs(200)
    assert drawn.min() >= given.train.inputs.min()
    assert drawn.max() <= given.train.inputs.max()
    assert drawn.mean() == pytest.approx((loaded.origin.low + loaded.origin.high) / 2, rel=0.1)


def test_images_range_from_black_to_white(tmp_path):
    images = torch.randint(50, 60, (60, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    given = from_user((images, torch.arange(60) % 2), mean=[0.2], std=[0.5])
    flat = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 2))
    origin = run(config(epochs=1), module=flat, data=given).origin
    assert (origin.dtype, origin.low, origin.high) == ("float32", pytest.approx(-0.4), pytest.approx(1.6))


def test_whole_numbers_are_drawn_as_such():
    origin = run(config(epochs=1), module=net(), data=data()).origin
    drawn = origin.model_copy(update={"dtype": "int64", "low": 3.0, "high": 5.0}).inputs(50)
    assert drawn.dtype == torch.int64
    assert set(drawn.unique().tolist()) == {3, 4, 5}


class Wrapped(nn.Module):
    """Says what its layers say as long as inputs are small: larger ones leave the range that was tried."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        out = self.inner(x)
        return out + (x.abs().amax(1, keepdim=True) > 50).float() * out.abs().max()


def test_an_export_is_checked_at_the_scale_of_the_data(tmp_path, monkeypatch):
    """What is exported here differs where only the run's own inputs are, so N(0, 1) would not show it."""
    from subnet_search.deploy import export as exporting

    run(config("magnitude", epochs=1), tmp_path / "run", module=net(), data=data(scale=40.0, shift=100.0))
    loaded = ss.Subnetwork.load(tmp_path / "run" / "subnetwork.safetensors")
    assert difference_between(loaded.on(net()), Wrapped(loaded.on(net())), torch.randn(7, 6)) == 0
    make = exporting.make
    monkeypatch.setattr(exporting, "make", lambda *given: replace(made := make(*given), runs=Wrapped(made.runs)))
    with pytest.raises(RunError, match="not exported: the logits of state-dict differ"):
        exporting.export(loaded, "state-dict", tmp_path / "file", network=net(), seconds=0)
    assert not (tmp_path / "file").exists()
