"""Magnitudes of channels and blocks that compete over all layers: comparable by default, and no layer is emptied."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from toys import points, run_config

import subnet_search as ss
from subnet_search import Recipe, RunConfig
from subnet_search.data import load
from subnet_search.data.sources import Split
from subnet_search.extraction.config_file import check
from subnet_search.extractors import get_extractor
from subnet_search.topology.channels import Channels, Group, Slice
from subnet_search.topology.masks import Masks
from subnet_search.topology.scores import layer_adaptive, over_their_size
from subnet_search.topology.select import NotANumber, first_of_each
from subnet_search.topology.units import NM, Blocks, Units

CIFAR10, PRETRAINED = "SUBNET_SEARCH_CIFAR10", "SUBNET_SEARCH_PRETRAINED"
BY_MAGNITUDE = ["magnitude", "gmp", "lottery", "granet", "ac_dc"]
BY_FILTERS = ["l1_filters", "l2_filters", "fpgm", "group_lasso", "greg", "soft_filter_pruning"]
AS_PUBLISHED = ["slimming", "bn_scale", "taylor", "hrank", "apoz"]


def channels(**sizes):
    """Groups of channels, each with its own weight of two numbers a channel."""
    groups = [Group(name, size, (Slice(name, 0, torch.arange(size).view(-1, 1), False),)) for name, size in sizes.items()]
    return Channels({name: (size, 2) for name, size in sizes.items()}, groups)


# --- by hand ---


def test_joint_scores_count_the_tensors_of_a_group():
    """Scores 1 and 1 in both groups; b's channels are in two tensors, so they count twice and a loses its second one."""
    one = Slice("a", 0, torch.arange(2).view(-1, 1), False)
    both = (Slice("b", 0, torch.arange(2).view(-1, 1), False), Slice("c", 1, torch.arange(2).view(-1, 1), True))
    units = Channels({"a": (2, 2), "b": (2, 2), "c": (2, 2)}, [Group("a", 2, (one,)), Group("b", 2, both)])
    scores = {"a": torch.tensor([2.0, 1.0]), "b": torch.tensor([1.0, 2.0])}
    kept = {how: units.keep(scores, 0.75, normalise=how) for how in ("layer", "joint")}
    assert [mask.tolist() for mask in kept["layer"].values()] == [[True, True], [False, True]]
    assert [mask.tolist() for mask in kept["joint"].values()] == [[True, False], [True, True]]


def test_scores_over_their_size():
    """The root of the mean of 1, 1, 49 and 49 is 5."""
    assert over_their_size(torch.tensor([1.0, 1, 7, 7])).tolist() == pytest.approx([0.2, 0.2, 1.4, 1.4])
    assert over_their_size(1e-30 * torch.tensor([1.0, 1, 7, 7])).tolist() == pytest.approx([0.2, 0.2, 1.4, 1.4])
    assert over_their_size(torch.zeros(3)).tolist() == [0, 0, 0]


def test_the_dead_and_the_infinite_do_not_count_in_a_size():
    alive = torch.tensor([True, True, False, True])
    assert over_their_size(torch.tensor([1.0, 7, 90, torch.inf]), alive).tolist() == pytest.approx([0.2, 1.4, 18, torch.inf])
    assert over_their_size(torch.full((2,), torch.inf)).tolist() == [torch.inf, torch.inf]


def test_layer_adaptive_scores():
    """Squares 1, 4, 9, 4: over 18, 13, 9 and 17; of the two equal ones the first is the higher."""
    found = layer_adaptive(torch.tensor([[1.0, 2], [3, 2]]))
    assert found.flatten().tolist() == pytest.approx([1 / 18, 4 / 13, 1, 4 / 17])
    assert layer_adaptive(torch.tensor([[10.0, 20], [30, 20]])).tolist() == found.tolist()
    assert layer_adaptive(torch.tensor([3.0, 1, 2]), torch.tensor([False, True, True])).tolist() == pytest.approx([0, 1 / 5, 1])
    assert layer_adaptive(torch.zeros(2)).tolist() == [0, 0]


def test_the_first_of_each_layer_come_before_all_others():
    scores = {"a": torch.tensor([5.0, 9, 7]), "b": torch.tensor([1.0, 2, 0])}
    found = first_of_each(scores, {"a": 1, "b": 2})  # by 9 - 0, and 1
    assert {name: score.tolist() for name, score in found.items()} == {"a": [5, 19, 7], "b": [11, 12, 0]}
    there = {"a": torch.tensor([True, False, True]), "b": torch.tensor([False, False, True])}
    found = first_of_each(scores, {"a": 1, "b": 2}, there)
    assert {name: score.tolist() for name, score in found.items()} == {"a": [5, 9, 17], "b": [1, 2, 10]}


def test_eight_channels_of_two_scales():
    """Raw, `a` is left the one that each group keeps; over their size, both keep their upper half."""
    units, scores = channels(a=4, b=4), {"a": torch.tensor([1.0, 2, 4, 5]), "b": torch.tensor([500.0, 400, 200, 100])}
    raw = units.keep(scores, 0.5)
    assert (raw["a"].tolist(), raw["b"].tolist()) == ([False, False, False, True], [True, True, True, False])
    kept = units.keep(scores, 0.5, normalise="layer")
    assert (kept["a"].tolist(), kept["b"].tolist()) == ([False, False, True, True], [True, True, False, False])
    uniform = units.keep(scores, 0.5, "uniform", normalise="layer")
    assert uniform["a"].equal(kept["a"])
    assert uniform["b"].equal(kept["b"])


def test_channels_at_zero_go_before_the_weak_of_another_layer():
    """Of `a`, one of four is not zero; over its size it is 2, those of `b` 0.8 to 1.2."""
    units, scores = channels(a=4, b=4), {"a": torch.tensor([0.0, 0, 0, 4]), "b": torch.tensor([5.0, 6, 7, 8])}
    kept = units.keep(scores, 5 / 8, normalise="layer")
    assert (kept["a"].tolist(), kept["b"].tolist()) == ([False, False, False, True], [True, True, True, True])


def test_channels_that_went_do_not_count_in_the_scale_of_the_rest():
    """Of `a`, 3 and 1 live, of `b` all of 30, 20, 20, 10: over their size 1.3, 0.4 and 1.4, 0.9, 0.9, 0.5."""
    units, scores = channels(a=4, b=4), {"a": torch.tensor([0.0, 0, 3, 1]), "b": torch.tensor([30.0, 20, 20, 10])}
    among = Masks({"a": torch.tensor([False, False, True, True]), "b": torch.ones(4, dtype=torch.bool)})
    kept = units.keep(scores, 0.5, among=among, normalise="layer")
    assert (kept["a"].tolist(), kept["b"].tolist()) == ([False, False, True, False], [True, True, True, False])


def test_a_group_with_one_large_channel_is_not_emptied_to_it():
    """The others of `a` are below the upper half of `b`; a quarter of the density, 2 of 40, it keeps all the same."""
    units = channels(a=40, b=40)
    scores = {"a": torch.cat([torch.tensor([1000.0]), torch.linspace(1, 2, 39)]), "b": torch.linspace(10, 20, 40)}
    kept = units.keep(scores, 0.25, normalise="layer")
    assert kept["a"].nonzero().flatten().tolist() == [0, 39]
    assert kept["b"].nonzero().flatten().tolist() == list(range(22, 40))
    assert int(units.keep(units.comparable(scores), 0.25)["a"].sum()) == 1  # without that


def test_blocks_of_two_scales():
    """Raw, the layer of small weights dies; layer-adaptive scores leave it its highest, and the lower edge its own."""
    blocks = Blocks({"a": (2, 8), "b": (2, 8)}, 2)  # four blocks each
    scores = {"a": torch.tensor([[1.0, 2, 4, 3]]), "b": torch.tensor([[100.0, 400, 300, 200]])}
    raw = blocks.keep(scores, 0.5)
    assert (raw["a"].any().item(), raw["b"].all().item()) == (False, True)
    kept = blocks.keep(scores, 0.5, normalise="layer")
    assert (kept["a"].tolist(), kept["b"].tolist()) == ([[False, False, True, True]], [[False, True, True, False]])


def test_a_small_layer_of_blocks_keeps_one():
    blocks = Blocks({"large": (16, 64), "small": (2, 4)}, 2)  # 256 blocks, and 2
    scores = {name: torch.ones(shape) for name, shape in blocks.shapes.items()}
    kept = blocks.keep(scores, 0.05, normalise="layer")
    assert kept.kept == round(0.05 * 258)
    assert int(kept["small"].sum()) >= 1


@pytest.mark.parametrize("units", [Units({"a": (2, 4), "b": (2, 4)}), NM({"a": (2, 4), "b": (2, 4)}, 2, 4)])
def test_single_weights_and_patterns_compete_by_raw_scores(units):
    scores = {"a": torch.rand(2, 4, generator=torch.Generator().manual_seed(0)), "b": 100 * torch.eye(2, 4) + 0.5}
    for density in (0.1, 0.25, 0.5):
        raw, kept = units.keep(scores, density), units.keep(scores, density, normalise="layer")
        assert all(raw[name].equal(kept[name]) for name in scores)


def test_scores_that_are_no_numbers_are_still_refused():
    scores = {"a": torch.tensor([1.0, torch.nan, 2, 3]), "b": torch.ones(4)}
    with pytest.raises(NotANumber):
        channels(a=4, b=4).keep(scores, 0.5, normalise="layer")


# --- by every method ---


@pytest.mark.parametrize(("names", "default"), [(BY_MAGNITUDE + BY_FILTERS, "layer"), (AS_PUBLISHED, "none")])
def test_what_is_normalised_by_default(names, default):
    assert {name: get_extractor(name).model_fields["normalise"].default for name in names} == dict.fromkeys(names, default)


def two_scales():
    """Two hidden layers of 16, the first one's weights and the second one's inputs a thousand times smaller."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    with torch.no_grad():
        net[0].weight.mul_(1e-3)
        net[4].weight.mul_(10)
    return net


@pytest.mark.parametrize("name", BY_MAGNITUDE + BY_FILTERS)
def test_no_method_empties_a_layer_of_small_weights(name):
    """The learning rate is too small for weights to move: what is kept, the scores alone decide."""
    kept = {}
    for normalise in ("layer", "none"):
        more = {"strength": 0} if name == "group_lasso" else {}
        more |= {"delta": 1e-9} if name == "greg" else {}
        settings = {
            "extractor": {"name": name, "density": 0.5, "scope": "global", "normalise": normalise, **more},
            "recipe": {"epochs": 10, "batch_size": 32, "lr": 1e-9, "threads": 1, "device": "cpu"},
            "unit": "channel",
            "round_to": 1,
        }
        found = run_config(check(RunConfig, settings), module=two_scales(), data=points(100, 6, 3))
        kept[normalise] = [int(found.masks[layer].flatten(1).any(1).sum()) for layer in ("0.weight", "2.weight")]
    assert min(kept["layer"]) >= 5
    assert kept["none"][0] <= 2


# --- on real data ---

ON_CIFAR10 = [
    pytest.mark.skipif(not os.environ.get(CIFAR10), reason=f"{CIFAR10} does not name an npz file of CIFAR-10"),
    pytest.mark.skipif(not os.environ.get(PRETRAINED), reason=f"{PRETRAINED} does not name a folder with resnet20-12fca82f.th"),
]


def on_cifar10(test):
    for mark in ON_CIFAR10:
        test = mark(test)
    return test


def half_of_resnet20(images, judged):
    """A function from a method to half the operations of the trained ResNet-20: fine-tuned on `images`, tested on `judged`."""
    statistics = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}  # ImageNet's, as the weights were trained
    data = load({"name": f"npz:{os.environ[CIFAR10]}", "limit": images, **statistics})
    test = data.test()
    data = replace(data, _test=lambda: Split(test.inputs[:judged], test.labels[:judged]))
    network = {"name": "resnet20", "state": str(Path(os.environ[PRETRAINED]) / "resnet20-12fca82f.th")}

    def extract(extractor, epochs, batch_size=64, **method):
        recipe = Recipe(
            epochs=epochs, batch_size=batch_size, lr=0.02, schedule="cosine", weight_decay=1e-4, threads=1, device="cpu"
        )
        half = {"density": 0.5, "start": 0, "unit": "channel", "target": {"flops": 0.5}}
        return ss.extract(network, data, extractor, **method, **half, recipe=recipe)

    return extract


@pytest.mark.long
@on_cifar10
def test_one_scale_keeps_the_stages_of_a_trained_resnet():
    """29 steps at half the operations: 58.3 % by magnitude over all layers, 34.9 % by raw magnitude."""
    extract = half_of_resnet20(images=1000, judged=500)
    found = {how: extract("magnitude", 1, 32, normalise=how).metrics["test_accuracy"] for how in ("layer", "none")}
    assert found["layer"] > found["none"] + 0.1, found


@pytest.mark.long
@on_cifar10
def test_half_the_operations_of_a_trained_resnet():
    """Over all layers or of each its share, by magnitude or by norms: within 3 points of the best after one epoch."""
    extract = half_of_resnet20(images=4000, judged=2000)
    accuracies, trained = {}, {}
    for name in ("magnitude", "l1_filters", "l2_filters", "fpgm"):
        for scope in ("global", "uniform"):
            masks = extract(name, 0, scope=scope).masks
            same = str([mask.nonzero().tolist() for mask in masks.values()])
            if same not in trained:  # some keep the same channels, and so come to the same accuracy
                trained[same] = extract(name, 1, scope=scope).metrics["test_accuracy"]
            accuracies[f"{name}, {scope}"] = trained[same]
    print(accuracies)
    assert min(accuracies.values()) >= max(accuracies.values()) - 0.03, accuracies
