"""Two processes, half of every batch each: the same topology, the same weights and the same decisions on both."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from faults import FORKS
from toys import conv_bn, mlp, pictures, points, supernet

from subnet_search.core.errors import Interrupted, RunError, UserError
from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.config_file import check, read_config
from subnet_search.extraction.extract import run
from subnet_search.extractors import Clock
from subnet_search.training import train
from subnet_search.training.distributed import any_rank, average, check_equal, check_shards, from_first, local_first
from subnet_search.training.probe import Probe

pytestmark = pytest.mark.slow


def learn(name):
    more = {"weight_statistics": 0.5, "statistics_every": 2} if name == "redraw" else {}
    net = supernet(name, mlp(), epochs=3, batch_size=40, lr=1.0, **more)
    outcome = train(net, points(), 0)
    return {
        "masks": dict(net.masks),
        "state": net.state(),
        "loss": torch.tensor([epoch.train_loss for epoch in outcome.history]),
        "val": [epoch.metrics["val_accuracy"] for epoch in outcome.history],
    }


def normalised(**more):
    """A network with running statistics and dropout, 9 steps an epoch."""
    torch.manual_seed(0)
    net = supernet("redraw", conv_bn(), epochs=5, batch_size=12, lr=0.1)
    train(net, pictures(), 0, **more)
    return net.state()


def stopped(rank, folder):
    """Rank 1 alone is asked to stop, in the middle of the second epoch; both go on from its checkpoint."""
    asked = []

    def note(clock: Clock) -> None:
        asked.append(rank == 1 and clock.step >= 12)

    checkpoint = folder / "stopped"
    with pytest.raises(Interrupted, match="after step 20 of 45"):
        normalised(checkpoint=checkpoint, on_step=note, should_stop=lambda: asked[-1])
    assert (checkpoint.is_file(), len(asked)) == (True, 20)
    return normalised(checkpoint=checkpoint, resume=True)


def broken(rank, folder):
    """One image is not a number: only the rank that has it sees that."""
    data = points()
    data.train.inputs[3] = float("nan")
    train(supernet("redraw", mlp(), epochs=1, batch_size=40, lr=0.1), data, 0)


def patient(rank, folder):
    net = supernet("redraw", mlp(), epochs=30, batch_size=40, lr=0.5, patience=2)
    outcome = train(net, points(), 0)
    return {"epoch": outcome.epoch, "epochs": len(outcome.history), "state": net.state()}


def solved(rank, folder):
    """The last layer in closed form, after batch norm has got its statistics on rank 0."""
    torch.manual_seed(0)
    recipe = {"epochs": 0, "threads": 1, "device": "cpu", "readout": "ridge", "batch_size": 20}
    config = check(RunConfig, {"extractor": {"name": "random", "density": 0.5}, "recipe": recipe})
    subnet = run(config, module=conv_bn(), data=pictures(), init="kaiming_normal")
    return {"state": subnet.state_dict(), "val": subnet.metrics["val_accuracy"]}


def whole(rank, folder):
    """A run with its folder, and the same again."""
    config = check(RunConfig, {"network": "lenet_300_100", "recipe": {"epochs": 1, "threads": 1, "device": "cpu"}})
    records = [run(config, folder / "run", resume=again, densities=(0.1,)).summary() for again in (False, True)]
    with pytest.raises(UserError, match="already has a run"):
        run(config, folder / "run")
    files = sorted(path.name for path in (folder / "run").iterdir() if path.name != ".lock")
    return {"records": records, "files": files, "folder": str(folder / "run")}


def mean(rank, folder):
    """Small tensors go together, large ones alone; the layout in memory stays."""
    tensors = [torch.full((2, 3), 1.0 + rank), torch.tensor(5.0 * rank), torch.full((600, 500), 4.0 * rank)]
    turned = torch.arange(6.0).view(2, 3).t()
    average([*tensors, turned])
    return [*tensors, turned]


def one_mistaken(rank, folder):
    def make():
        if rank == 0:
            raise UserError("no")
        return rank

    return from_first(make)


def one_unprepared(rank, folder):
    """The first process looks before the others, and its mistake is theirs."""

    def make():
        raise UserError(f"not here, says {rank}")

    return local_first(make)


PROBING = {
    "snip": {"name": "snip"},
    "snip of 50": {"name": "snip", "images": 50},
    "grasp": {"name": "grasp", "temperature": 1.0},
    "iterative": {"name": "snip_iterative", "rounds": 4},
    "synflow": {"name": "synflow", "rounds": 20},
}


def scored(extractor):
    """The gradients that the first batch gives, and the topology that the method begins with."""
    whole = supernet(extractor, mlp(), epochs=0, batch_size=40)
    train(whole, points(), 0)
    probe = Probe(whole, points())
    return {
        "masks": dict(whole.masks),
        "first": probe.gradients(supernet("random", mlp()).weights),
        "second": probe.hessian_gradients(supernet("random", mlp()).weights),
    }


SCENES = {
    "gumbel": lambda rank, folder: learn("gumbel"),
    "redraw": lambda rank, folder: learn("redraw"),
    "snip": lambda rank, folder: learn("snip"),
    "probe": lambda rank, folder: train(supernet({"name": "snip", "images": 1}, mlp(), epochs=1), points(), 0),
    "undisturbed": lambda rank, folder: normalised(),
    "stopped": stopped,
    "broken": broken,
    "patient": patient,
    "solved": solved,
    "whole": whole,
    "mean": mean,
    "probes": lambda rank, folder: {key: scored(extractor) for key, extractor in PROBING.items()},
    "any": lambda rank, folder: [any_rank(rank == 1), any_rank(False)],
    "first": lambda rank, folder: from_first(lambda: f"told by {rank}"),
    "mistaken": one_mistaken,
    "ahead": lambda rank, folder: local_first(lambda: rank),
    "unprepared": one_unprepared,
    "strangers": lambda rank, folder: train(supernet("redraw", mlp(seed=rank), epochs=1, batch_size=40), points(), 0),
    "equal": lambda rank, folder: check_equal(lambda: {"a": torch.ones(2)}, 7),
    "uneven": lambda rank, folder: check_shards(7, "cpu"),
    "one gpu": lambda rank, folder: check_shards(8, "cuda:0"),
    "no gpus": lambda rank, folder: check_shards(8, "cuda") if not torch.cuda.is_available() else None,
}


def work(rank, folder):
    import conftest  # noqa: F401  the test-only extractor, in this process too

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for name, scene in SCENES.items():
        try:
            found = scene(rank, folder)
        except (UserError, RunError) as error:
            found = f"{type(error).__name__}: {error}"
        torch.save(found, folder / f"{name}.{rank}")
    dist.destroy_process_group()
    threads = {Path(task, "comm").read_text().strip() for task in Path("/proc/self/task").glob("*")}  # none without /proc
    torch.save(sorted(thread for thread in threads if "gloo" in thread), folder / f"threads.{rank}")


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What the two ranks came to, in every scene."""
    folder = tmp_path_factory.mktemp("ranks")
    ranks = [FORKS.Process(target=work, args=(rank, folder)) for rank in (0, 1)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0, 0]
    return {name: [torch.load(folder / f"{name}.{rank}") for rank in (0, 1)] for name in (*SCENES, "threads")}


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", ["gumbel", "redraw", "snip"])
def test_two_ranks_agree(name, seen):
    first, second = seen[name]
    assert_same(first["masks"], second["masks"])
    assert_same(first["state"], second["state"])
    assert torch.equal(first["loss"], second["loss"])
    assert first["val"] == second["val"]
    alone = learn(name)
    assert torch.allclose(alone["loss"], first["loss"], atol=1e-4)  # of the whole batch, not of a rank's half
    for key, value in alone["state"].items():
        assert torch.allclose(value.float(), first["state"][key].float(), atol=1e-4), key


def test_two_ranks_have_one_readout(seen):
    first, second = seen["solved"]
    assert_same(first["state"], second["state"])
    alone = solved(0, None)
    assert_same(alone["state"], first["state"])
    assert alone["val"] == first["val"] == second["val"]


def test_two_ranks_find_the_gradients_of_one(seen):
    first, second = seen["probes"]
    for key, extractor in PROBING.items():
        alone = scored(extractor)
        for part in ("masks", "first", "second"):
            for name, value in alone[part].items():
                assert torch.equal(first[key][part][name], second[key][part][name]), (key, part, name)
                if part == "masks":  # the scores are far enough apart for rounding to change none
                    assert torch.equal(first[key][part][name], value), (key, name)
                else:
                    assert torch.allclose(first[key][part][name], value, atol=1e-6), (key, part, name)


def test_none_of_its_threads_outlives_the_group(seen):
    assert seen["threads"] == [[], []]  # else the interpreter aborts at its end, now and then


def test_one_rank_is_asked_to_stop_and_both_do(seen):
    assert_same(*seen["stopped"])
    assert_same(*seen["undisturbed"])
    assert_same(seen["stopped"][0], seen["undisturbed"][0])


def test_a_loss_that_is_no_number_on_one_rank(seen):
    first, second = seen["broken"]
    assert first == second
    with pytest.raises(RunError, match="the loss is nan at step") as alone:
        broken(0, None)
    assert first == f"RunError: {alone.value}"


def test_both_lose_patience_at_once(seen):
    first, second = seen["patient"]
    assert (first["epoch"], first["epochs"]) == (second["epoch"], second["epochs"])
    assert first["epochs"] == first["epoch"] + 2 < 30
    assert_same(first["state"], second["state"])


def test_a_run_has_one_folder(seen):
    first, second = seen["whole"]
    assert first["files"] == second["files"]
    assert set(first["files"]) >= {"config.yaml", "metrics.jsonl", "summary.json", "subnetwork.safetensors", "curve.json"}
    (before, after), (elsewhere, told) = first["records"], second["records"]
    assert before == after == told  # a finished run is read by one rank
    assert before["sha256"] == elsewhere["sha256"]
    for key in ("val_accuracy", "val_nll", "test_accuracy", "density"):
        assert before[key] == elsewhere[key]
    assert before["processes"] == 2
    config = read_config(RunConfig, f"{first['folder']}/config.yaml")
    assert config.recipe.processes == 2
    with pytest.raises(
        UserError,
        match="processes is 2, but the number of processes is 1: start with torchrun --nproc-per-node 2 -m subnet_search",
    ):
        run(config, first["folder"], resume=True)
    alone = read_config(RunConfig, f"{first['folder']}/config.yaml", ["recipe.processes=1"])
    with pytest.raises(UserError, match=r"cannot resume .*: recipe.processes was 2, now 1"):
        run(alone, first["folder"], resume=True)


def test_a_probe_that_cannot_be_shared(seen):
    assert seen["probe"] == ["UserError: a batch of 1 items cannot be split equally over 2 processes"] * 2


def test_a_mean_over_ranks(seen):
    for tensors in seen["mean"]:
        assert [float(t.mean()) for t in tensors[:3]] == [1.5, 2.5, 2.0]
        assert torch.equal(tensors[3], torch.arange(6.0).view(2, 3).t())


def test_what_one_rank_knows_is_told_to_all(seen):
    assert seen["any"] == [[True, False]] * 2
    assert seen["first"] == ["told by 0"] * 2
    assert seen["mistaken"] == ["UserError: no"] * 2
    assert seen["ahead"] == [0, 1]
    assert seen["unprepared"] == ["UserError: not here, says 0"] * 2


def test_ranks_that_differ_are_named(seen):
    text = "RunError: the networks of process 1 and process 0 differ after step 0"
    assert seen["strangers"] == [text] * 2
    assert seen["equal"] == [None, None]


def test_what_cannot_be_shared_is_refused(seen):
    assert seen["uneven"] == ["UserError: a batch of 7 images cannot be split equally over 2 processes; 6 or 8 can"] * 2
    assert (
        seen["one gpu"]
        == ["UserError: recipe.device: 2 processes cannot share cuda:0; set cuda, so that each uses its own GPU"] * 2
    )
    if not torch.cuda.is_available():
        assert seen["no gpus"] == ["UserError: 2 processes need 2 GPUs, found 0; or set -s recipe.device=cpu"] * 2
