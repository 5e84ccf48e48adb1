"""The plan of a run: what it would do, without training or writing."""

import pytest
import torch
from torch import nn

import subnet_search as ss
from subnet_search.extraction.config_file import check
from subnet_search.extraction.dry_run import dry_run, layers_of
from subnet_search.nets import prunable


def config(**changes):
    recipe = {"epochs": 2, "batch_size": 32, "device": "cpu", "threads": 1, **changes.pop("recipe", {})}
    return check(ss.RunConfig, {"network": "lenet5", "data": {"name": "digits", "limit": 200}, "recipe": recipe, **changes})


def test_a_run_and_its_plan_agree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wanted = config(extractor={"name": "magnitude", "density": 0.3})
    plan = dry_run(wanted)
    assert list(tmp_path.iterdir()) == []
    subnet = ss.run(wanted)
    record = subnet.summary()
    assert plan["config"] == wanted.resolve().dump()
    assert plan["steps"] == {"epochs": 2, "per_epoch": 5, "total": record["steps"]}
    assert plan["density"] == "0.3 of 130,500 prunable weights: 39,150 are kept, 91,350 pruned"
    assert record["kept"] == 39_150
    assert sum(row["size"] for row in plan["layers"] if row["pruned"] == "prunable") == record["weights"]
    assert plan["memory"]["parameters"] == subnet.dense_bytes()
    assert plan["data"] == "180 training and 20 validation items, in memory"


def test_the_layers_and_why_they_are_left_whole():
    net = nn.Sequential(nn.Embedding(7, 4), nn.Conv1d(4, 4, 3, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 2))
    rows, biases = layers_of(net, prunable(net))
    assert [(row["name"], row["type"], row["shape"], row["pruned"]) for row in rows] == [
        ("0", "Embedding", "7x4", "left whole: an embedding"),
        ("1", "Conv1d", "4x4x3", "prunable"),
        ("2", "BatchNorm1d", "4", "left whole: normalisation"),
        ("3", "Linear", "2x4", "prunable"),
    ]
    assert biases == 4 + 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"extractor": "gumbel"}, "chosen by gumbel, of 130,500 prunable weights"),
        (
            {"extractor": {"name": "magnitude", "density": 0.5}, "unit": "channel"},
            "0.5 of 570 channels that hold 130,500 weights: about 285 are kept",
        ),
        (
            {"extractor": "magnitude", "unit": "channel", "target": {"flops": 0.5}},
            "0.5 of the network's multiply-accumulates; there are 570 channels that hold 130,500 weights",
        ),
        ({"extractor": {"name": "magnitude", "density": 0.25}, "unit": "2:4"}, "0.25 of 130,500 prunable weights: "),
        ({"extractor": {"name": "magnitude", "density": 0.5}, "unit": "block:10"}, "0.5 of "),
    ],
)
def test_the_density_in_words(changes, says):
    assert dry_run(config(**changes))["density"].startswith(says)


@pytest.mark.parametrize(("optimizer", "copies"), [({"optimizer": "adam"}, 2), ({}, 1), ({"momentum": 0.0}, 0)])
def test_the_memory_of_the_optimizer(optimizer, copies):
    memory = dry_run(config(extractor={"name": "snip", "density": 0.3}, recipe=optimizer))["memory"]
    numbers = 130_500 + 20 + 50 + 500 + 10
    assert memory["gradients"] == memory["parameters"] == 4 * numbers
    assert memory["optimizer"] == copies * 4 * numbers
    assert memory["masks"] == 2 * 130_500  # masks of units, and of weights: one byte each
    assert memory["total"] == sum(memory[key] for key in memory if key not in ("total", "batch"))


def test_activations_are_what_a_batch_keeps():
    class Plain:
        leading, directions = "mae", {"mae": "minimize"}

        def loss(self, network, batch):
            return network(batch["x"]).square().mean()

        def metrics(self, network, batch):
            return {"mae": network(batch["x"]).abs().mean()}

    from subnet_search.extraction.dry_run import activations
    from subnet_search.extractors import Clock
    from subnet_search.tasks import create_task
    from subnet_search.training import Recipe, Supernet

    net = nn.Sequential(nn.Linear(8, 16, bias=False), nn.Sigmoid(), nn.Linear(16, 4, bias=False))
    task, recipe = create_task(Plain()), Recipe(batch_size=10, device="cpu", threads=1).resolve({})
    supernet = Supernet(net, ss.RunConfig(extractor="snip").extractor, recipe, 0, task=task)
    data = ss.load_data({"x": torch.randn(40, 8)}, task)
    # The inputs (10, 8), the output of the sigmoid (10, 16), which the next layer keeps too, and the output (10, 4).
    assert activations(supernet, data, recipe, Clock(0, 10, 0)) == 4 * (80 + 160 + 40)


def test_what_a_run_refuses_is_refused():
    with pytest.raises(ss.UserError, match="epochs"):
        dry_run(config(extractor={"name": "magnitude", "density": 0.3}, recipe={"epochs": -1}))
    with pytest.raises(ss.UserError, match="gmp"):
        dry_run(config(extractor={"name": "gmp", "end": 9000}))
