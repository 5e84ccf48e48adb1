"""A network with trained weights: measured before it is pruned, pruned at once, and exported by the same command."""

import json

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import subnet_search as ss
from subnet_search.cli import main
from subnet_search.extraction.config_file import check
from subnet_search.extractors import get_extractor

RECIPE = {"epochs": 2, "batch_size": 50, "lr": 0.05, "threads": 1, "device": "cpu"}
DATA = {"name": "digits", "limit": 600}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A file of trained weights, and their validation accuracy."""
    file = tmp_path_factory.mktemp("trained") / "dense.pt"
    dense = ss.extract("lenet5", DATA, "random", density=1.0, recipe=ss.Recipe(**{**RECIPE, "epochs": 8}))
    torch.save(dense.state_dict(), file)
    return str(file), dense.metrics["val_accuracy"], dense.metrics["test_accuracy"]


def config(trained, **extractor):
    network = {"name": "lenet5", "state": trained[0]}
    return check(ss.RunConfig, {"network": network, "data": DATA, "extractor": extractor, "recipe": RECIPE})


def test_the_result_before_pruning_comes_first(trained):
    seen = []
    subnet = ss.run(
        config(trained, name="magnitude", density=0.3),
        on_unpruned=lambda metrics: seen.append(metrics),
        on_step=lambda clock: seen.append("step") if clock.step == 0 else None,
    )
    assert seen == [{"unpruned_val_accuracy": trained[1]}, "step"]
    assert subnet.metrics["unpruned_val_accuracy"] == trained[1]
    assert subnet.metrics["unpruned_test_accuracy"] == trained[2]
    assert "unpruned_val_accuracy" not in ss.extract("lenet5", DATA, "random", density=0.3, recipe=ss.Recipe(**RECIPE)).metrics


@pytest.mark.parametrize("name", ["magnitude", "taylor"])
def test_what_is_trained_is_pruned_at_once(trained, name):
    def first_density(**extractor):
        seen = []
        ss.run(config(trained, name=name, density=0.3, **extractor), on_epoch=lambda epoch: seen.append(epoch.density))
        return seen[0]

    assert first_density() < 0.35
    assert first_density(start=0.75) == 1


def test_the_learning_rate_is_one_for_trained_weights(trained):
    def rate(**values):
        given = {**config(trained, name="magnitude", density=0.3).given(), "recipe": {"epochs": 1}, **values}
        return check(ss.RunConfig, given).resolve().recipe.lr

    assert rate() == 0.01
    assert rate(recipe={"epochs": 1, "lr": 0.2}) == 0.2
    assert rate(extractor="rigl") == get_extractor("rigl").published.recipe["lr"]
    assert rate(extractor="gumbel") == rate(extractor="gumbel", network="lenet5")  # only relevance is learned
    assert rate(network="lenet5") == ss.Recipe().lr


def test_start_is_stored_as_it_was_resolved(trained):
    wanted = config(trained, name="magnitude", density=0.3)
    assert wanted.resolve().extractor.start == 0
    assert wanted.resolve().resolve().extractor.start == 0
    assert config(trained, name="magnitude", density=0.3, start=0.5).resolve().extractor.start == 0.5
    target = check(ss.RunConfig, {**wanted.given(), "extractor": "magnitude", "unit": "channel", "target": {"flops": 0.5}})
    assert (target.resolve().extractor.start, target.resolve().extractor.density) == (0, 0.5)


def test_one_command_from_a_trained_network_to_a_faster_file(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["network.name=lenet5", f"network.state={trained[0]}", "data.name=digits", "data.limit=600", "extractor=magnitude"]
    words += ["unit=channel", "target={flops: 0.5}", "recipe.epochs=1", "recipe.threads=1", "recipe.device=cpu"]
    command = ["extract", *[part for word in words for part in ("-s", word)], "--out", "run", "--export", "compact"]
    with pytest.raises(SystemExit) as done:
        main(command)
    out, err = capsys.readouterr()
    assert done.value.code == 0, err
    assert err.splitlines()[0].startswith("before pruning: validation ")
    assert all(f"(before pruning {100 * value:.2f} %)" in out for value in trained[1:])
    assert "ms at batch 1 " in out
    assert (tmp_path / "run" / "compact.safetensors").is_file()
    assert ss.load_deployed(tmp_path / "run" / "compact.safetensors")(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    with pytest.raises(SystemExit):
        main(["extract", "--resume", "--out", "run", "--export", "compact", "--json"])  # finished: exports only
    assert json.loads(capsys.readouterr().out)["exports"]["compact"]["dense_macs"] > 0
    with pytest.raises(SystemExit) as done:
        main(["extract", "--export", "compct"])
    assert (done.value.code, capsys.readouterr().err.startswith("error: unknown format 'compct': did you mean 'compact'")) == (
        2,
        True,
    )


def test_a_module_is_trained_if_the_caller_says_so(caplog):
    torch.manual_seed(0)
    x = torch.randn(400, 4)
    y = (x[:, 0] > 0).long()
    net = nn.Linear(4, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[-1.0, 0, 0, 0], [1, 0, 0, 0]]))
        net.bias.zero_()
    recipe = ss.Recipe(epochs=1, threads=1, device="cpu")
    found = ss.extract(net, (x, y), "magnitude", density=0.5, trained=True, recipe=recipe)
    assert found.summary()["unpruned_val_accuracy"] == 1
    assert (found.origin.extractor["start"], found.origin.recipe["lr"]) == (0, 0.01)
    assert caplog.text == ""
    items = [(one, int(label)) for one, label in zip(x, y, strict=True)]
    ss.extract(net, DataLoader(items, 50), "magnitude", density=0.5, recipe=recipe)
    assert "the network seems to be trained" in caplog.text
    caplog.clear()
    other = ss.extract(net, (x, y), "magnitude", density=0.5, recipe=recipe)
    assert "the network seems to be trained (accuracy 1.00): pass trained=True" in caplog.text
    assert "unpruned_val_accuracy" not in other.summary()
    caplog.clear()
    ss.extract(nn.Linear(4, 2), (x, y), "magnitude", density=0.5, trained=False, recipe=recipe)
    assert caplog.text == ""
