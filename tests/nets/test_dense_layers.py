"""Layers that are left dense, with every method and unit."""

import pytest
import torch
from torch import nn

import subnet_search as ss
from subnet_search.core.errors import UserError
from subnet_search.extractors import extractor_names, get_extractor

X = torch.randn(80, 3, 8, 8, generator=torch.Generator().manual_seed(0))
DATA = X, (X.mean((1, 2, 3)) > 0).long()
RECIPE = ss.Recipe(epochs=2, batch_size=8, lr=0.01, device="cpu", threads=1)
UNITS = {"weight": "weight", "channel": "channel", "n:m": "2:4", "block": "block:4"}
MORE = {"shuffled": {"source": "snip"}, "lottery": {"rounds": 1}}


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 16),
        nn.ReLU(),
        nn.Linear(16, 4),
    )


def combinations():
    for name in extractor_names():
        for kind in get_extractor(name).paradigm.units:
            if not get_extractor(name).dynamic:
                yield pytest.param(
                    name, UNITS[kind], marks=[pytest.mark.slow] * (kind != get_extractor(name).paradigm.units[0])
                )


@pytest.mark.parametrize(("name", "unit"), list(combinations()))
def test_a_layer_is_left_dense(name, unit):
    settings = {"density": 0.5} if get_extractor(name).has_density() else {}
    more = {"round_to": 1} if unit == "channel" else {}
    before = net()
    subnet = ss.extract(
        before, DATA, name, recipe=RECIPE, unit=unit, dense_layers=["8"], **more, **settings, **MORE.get(name, {})
    )
    assert "8.weight" not in subnet.masks
    assert bool(subnet.state["8.weight"].all())
    assert subnet.state["8.weight"].shape == (16, 16)
    assert {row["name"]: row["why"] for row in subnet.metrics["left_whole"]} == {"8.weight": "in dense_layers"}
    asked, reached = subnet.metrics["asked"], subnet.metrics["reached"]
    assert asked is None or abs(reached - asked) < 0.13  # blocks and channels of so small a network are coarse
    counted = sum(mask.numel() for mask in subnet.masks.values())
    assert counted == sum(p.numel() for n, p in before.named_parameters() if p.dim() > 1 and n != "8.weight")


@pytest.mark.parametrize(
    ("patterns", "kept"),
    [
        (["3", "10"], {"0.weight", "8.weight"}),
        (["?"], {"10.weight"}),
        (["10.weight"], {"0.weight", "3.weight", "8.weight"}),
        ([], {"0.weight", "3.weight", "8.weight", "10.weight"}),
    ],
)
def test_names_and_patterns(patterns, kept):
    assert set(ss.extract(net(), DATA, "random", density=0.5, recipe=RECIPE, dense_layers=patterns).masks) == kept


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["fc"], r"unknown layer of Sequential 'fc' \(dense_layers\): valid: 0, 10, 3, 8$"),
        (["*"], "dense_layers leaves no weight of Sequential to prune"),
    ],
)
def test_mistakes_are_one_line(patterns, message):
    with pytest.raises(UserError, match=message):
        ss.extract(net(), DATA, "random", density=0.5, recipe=RECIPE, dense_layers=patterns)


def test_a_target_of_parameters_counts_all_layers():
    subnet = ss.extract(net(), DATA, "random", target={"parameters": 0.5}, recipe=RECIPE, dense_layers=["8"])
    numel = {name: p.numel() for name, p in net().named_parameters() if p.dim() > 1}
    assert subnet.masks.kept + numel["8.weight"] == pytest.approx(0.5 * sum(numel.values()), abs=1)


def test_channels_that_a_dense_layer_computes_or_reads_stay():
    subnet = ss.extract(net(), DATA, "random", density=0.5, unit="channel", round_to=1, recipe=RECIPE, dense_layers=["3"])
    assert all(bool(mask.any(0).all()) for name, mask in subnet.masks.items() if name == "8.weight")
    with pytest.raises(UserError, match="no channels that can be removed; layers that are not pruned read or compute them"):
        ss.extract(net(), DATA, "random", density=0.5, unit="channel", recipe=RECIPE, dense_layers=["3", "8"])
