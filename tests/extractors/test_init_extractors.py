"""Topologies found before training: SNIP, iterative SNIP and FORCE, GraSP, SynFlow, and the control that shuffles."""

import copy
import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from toys import mlp, points, run_config, supernet, units

from subnet_search import Masks, RunConfig
from subnet_search.artifact.mask_file import save_masks
from subnet_search.core.errors import UserError
from subnet_search.data import Data, Split
from subnet_search.extraction.config_file import check
from subnet_search.extractors import Clock, create
from subnet_search.nets import initialise, prunable
from subnet_search.topology.scores import gradient_flow, saliency
from subnet_search.topology.select import count
from subnet_search.training import train
from subnet_search.training.probe import Probe


def eight_weights():
    """One linear layer of eight weights, and four images that are all (1, 2, 3, 4): three of class 0, one of class 1.

    Both logits are 22, so each class has probability 1/2.
    """
    net = nn.Sequential(nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[7, 5, 1, 0.5], [6, -2, 4, 2]]))
    split = Split(torch.tensor([[1.0, 2, 3, 4]]).repeat(4, 1), torch.tensor([0, 0, 0, 1]))
    return net, Data("given", split, split, 2)


def two_layers():
    """Eight weights in two layers, some of them negative."""
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, -2], [3, 5]]))
        net[1].weight.copy_(torch.tensor([[6.0, -1], [1, 2]]))
    return net, points(40, inputs=2, classes=2)


def found(extractor, net, data):
    """The topology before any training: a list of rows for every layer."""
    whole = supernet(extractor, copy.deepcopy(net), epochs=0)
    train(whole, data, 0)
    return [mask.int().tolist() for mask in whole.masks.values()]


def config(name, epochs=0, seed=0, recipe=None, **settings):
    recipe = {"epochs": epochs, "batch_size": 30, "threads": 1, "device": "cpu", **(recipe or {})}
    return check(RunConfig, {"extractor": {"name": name, **settings}, "recipe": recipe, "seed": seed})


def begun(name, net=None, **settings):
    """The subnetwork with which training would begin."""
    return run_config(config(name, **settings), module=net or mlp(), data=points())


def test_snip_of_eight_weights():
    # The gradient is (1/2 - 3/4) x = -x/4 for the first row and x/4 for the second, so 4 |g * w| = |w * x|:
    #   7 10  3  2
    #   6  4 12  8     The highest four: 12, 10, 8, 7. By |w| alone they would be 7, 6, 5, 4.
    net, data = eight_weights()
    whole = supernet("snip", net)
    scores = saliency(whole.weights, Probe(whole, data).gradients(whole.weights))
    assert (4 * scores["0.weight"]).tolist() == [[7, 10, 3, 2], [6, 4, 12, 8]]
    assert found({"name": "snip", "density": 0.5}, net, data) == [[[1, 1, 0, 0], [0, 0, 1, 1]]]


def test_snip_inverted():
    net, data = eight_weights()  # the lowest four: 2, 3, 4, 6
    assert found({"name": "snip", "density": 0.5, "invert": True}, net, data) == [[[0, 0, 1, 1], [1, 1, 0, 0]]]


def test_grasp_of_eight_weights():
    # H g = (-15/4, 15/4) x (see test_probe.py), so the scores w * (H g) are 15/4 times
    #   -7 -10  -3  -2
    #    6  -4  12   8     The highest four: 12, 8, 6, -2. The paper drops the highest of these with the other sign.
    net, data = eight_weights()
    whole = supernet("grasp", net)
    scores = gradient_flow(whole.weights, Probe(whole, data).hessian_gradients(whole.weights))
    assert torch.allclose(scores["0.weight"] / 3.75, torch.tensor([[-7.0, -10, -3, -2], [6, -4, 12, 8]]))
    assert found({"name": "grasp", "density": 0.5}, net, data) == [[[0, 0, 0, 1], [1, 0, 1, 1]]]


def test_grasp_inverted():
    net, data = eight_weights()  # the lowest four: -10, -7, -4, -3
    assert found({"name": "grasp", "density": 0.5, "invert": True}, net, data) == [[[1, 1, 1, 0], [0, 1, 0, 0]]]


def test_synflow_of_eight_weights():
    # Each weight times what reaches it and what leaves it (row sums of |W1| are 3 and 8, column sums of |W2| 7 and 3):
    #   1*7 2*7     7 14        6*3 1*8    18  8
    #   3*3 5*3     9 15        1*3 2*8     3 16       Both layers sum to 45, the network's output: nothing is lost.
    net, data = two_layers()
    whole = supernet("synflow", net)
    scores = saliency(whole.weights, Probe(whole, data).flow_gradients(whole.weights))
    assert [score.tolist() for score in scores.values()] == [[[7, 14], [9, 15]], [[18, 8], [3, 16]]]
    kept = found({"name": "synflow", "density": 0.5, "rounds": 1}, net, data)  # 18, 16, 15, 14
    assert kept == [[[0, 1], [0, 1]], [[1, 0], [0, 1]]]


def test_synflow_in_two_rounds():
    # 8 * sqrt(3/8) = 4.9: the first round keeps five, 18 16 15 14 9. Then the row sums of |W1| are 2 and 8 and the column
    # sums of |W2| 6 and 2, and the scores are 12, 6 and 10 in the first layer and 12 and 16 in the second.
    # Three stay: 16, and of the rest the two of 12. In one round they would be 18, 16 and 15.
    net, data = two_layers()
    settings = {"name": "synflow", "density": 3 / 8}
    assert found({**settings, "rounds": 1}, net, data) == [[[0, 0], [0, 1]], [[1, 0], [0, 1]]]
    assert found({**settings, "rounds": 2}, net, data) == [[[0, 1], [0, 0]], [[1, 0], [0, 1]]]


def test_synflow_inverted():
    net, data = two_layers()  # the lowest four: 3, 7, 8, 9
    settings = {"name": "synflow", "density": 0.5, "rounds": 1, "invert": True}
    assert found(settings, net, data) == [[[1, 0], [1, 0]], [[0, 1], [1, 0]]]


def test_synflow_needs_no_data_and_no_signs():
    first = begun("synflow")
    negated = mlp()
    with torch.no_grad():
        for weight in prunable(negated).values():
            weight.mul_(-1)
    assert begun("synflow", negated).masks.same(first.masks)
    other = run_config(config("synflow"), module=mlp(), data=points(seed=9))
    assert other.masks.same(first.masks)
    assert not run_config(config("snip"), module=mlp(), data=points(seed=9)).masks.same(begun("snip").masks)


def scripted(rounds, masks=()):
    """A network of eight weights that are all 1, and a probe that gives these gradients, round by round."""
    expected = iter(masks)

    def gradients(weights, index, images):
        if index:
            assert weights["w"].int().tolist() == next(expected)
        return {"w": torch.tensor([float(digit) for digit in rounds[index]])}

    weights = {"w": torch.ones(8)}
    net = SimpleNamespace(weights=weights, masks=Masks.ones(weights), units=units(weights))
    return net, SimpleNamespace(gradients=gradients)


@pytest.mark.parametrize(
    ("revive", "expected"),
    [
        (False, [0, 0, 1, 1, 0, 0, 0, 0]),  # of the four that live, those with 3 and 4
        (True, [0, 0, 0, 0, 0, 0, 1, 1]),  # of all eight, those with 7 and 8, which were dead
    ],
)
def test_force_brings_weights_back_and_iterative_snip_does_not(revive, expected):
    # Two rounds to a quarter: 8 -> 4 -> 2. The first finds 8 7 6 5 highest; looked at again, the order is reversed.
    net, probe = scripted(["87654321", "12345678"], [[1, 1, 1, 1, 0, 0, 0, 0]])
    change = create({"name": "snip_iterative", "rounds": 2, "density": 0.25, "revive": revive}).begin(
        net, Clock(0, 10, 0), probe
    )
    assert change.masks["w"].int().tolist() == expected


def test_densities_of_the_rounds():
    # Three rounds to an eighth: 8 -> 4 -> 2 -> 1, by the same gradients.
    first = [1, 1, 1, 1, 0, 0, 0, 0]
    net, probe = scripted(["87654321"] * 3, [first, [1, 1, 0, 0, 0, 0, 0, 0]])
    change = create({"name": "snip_iterative", "rounds": 3, "density": 0.125}).begin(net, Clock(0, 10, 0), probe)
    assert change.masks["w"].int().tolist() == [1, 0, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("revive", [False, True])
@pytest.mark.parametrize("invert", [False, True])
def test_one_round_is_snip(revive, invert):
    iterative = begun("snip_iterative", rounds=1, revive=revive, invert=invert, density=0.2)
    assert iterative.masks.same(begun("snip", invert=invert, density=0.2).masks)


def test_rounds_and_revival_make_a_difference():
    snip, iterative = begun("snip"), begun("snip_iterative", rounds=10)
    force = begun("snip_iterative", rounds=10, revive=True)
    assert not iterative.masks.same(snip.masks)
    assert not force.masks.same(iterative.masks)


@pytest.mark.parametrize(("name", "more"), [("snip", {}), ("grasp", {}), ("synflow", {"rounds": 1})])
def test_inverted_keeps_what_is_dropped_otherwise(name, more):
    highest, lowest = (begun(name, density=0.5, invert=invert, **more).masks for invert in (False, True))
    assert (highest & lowest).kept == 0
    assert (highest | lowest).kept == 416


def narrow(depth):
    """`depth` hidden layers of ten, the shape in which layers die."""
    layers = [nn.Linear(10, 10) for _ in range(depth)]
    net = nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())], nn.Linear(10, 3))
    initialise(net, "kaiming_normal", 0)
    return net


@pytest.mark.parametrize(("depth", "density"), [(6, 0.02), (12, 0.02), (12, 0.03), (20, 0.02), (20, 0.03)])
def test_synflow_keeps_every_layer_where_snip_does_not(depth, density):
    net = narrow(depth)
    snip, synflow = (begun(name, net, density=density) for name in ("snip", "synflow"))
    assert snip.masks.kept == synflow.masks.kept == count(density, synflow.masks.numel)
    assert synflow.metrics["collapsed"] == []
    assert snip.metrics["collapsed"]


def test_synflow_at_its_limit_keeps_one_path():
    # Twelve layers of 100 weights and one of 30, thirteen weights kept: one in each layer, and they meet.
    net = narrow(12)
    masks = list(begun("synflow", net, density=13 / 1230).masks.values())
    assert [int(mask.sum()) for mask in masks] == [1] * 13
    paths = [mask.nonzero()[0].tolist() for mask in masks]  # (output, input)
    assert all(before[0] == after[1] for before, after in pairwise(paths))


def layer_counts(subnet):
    return {name: int(mask.sum()) for name, mask in subnet.masks.items()}


@pytest.mark.parametrize("source", ["snip", "random", {"name": "synflow", "rounds": 5}])
def test_shuffled_keeps_the_count_of_every_layer(source):
    shuffled = begun("shuffled", source=source)
    name, more = (source, {}) if isinstance(source, str) else (source["name"], {"rounds": 5})
    plain = begun(name, **more)
    assert layer_counts(shuffled) == layer_counts(plain)
    assert not shuffled.masks.same(plain.masks)
    assert all(not torch.equal(shuffled.masks[layer], mask) for layer, mask in plain.masks.items())
    before = prunable(mlp())
    assert all(torch.equal(shuffled.weights[layer], before[layer] * mask) for layer, mask in shuffled.masks.items())


def test_a_permutation_is_uniform():
    """Over many seeds every one of eight places is kept as often: 400 draws of two in eight, 100 each, give or take."""
    net, data = eight_weights()
    times = torch.zeros(2, 4)
    for seed in range(400):
        whole = supernet({"name": "shuffled", "density": 0.25}, net, seed, epochs=0)
        train(whole, data, seed)
        assert whole.masks.kept == 2
        times += whole.masks["0.weight"]
        net, _ = eight_weights()
    assert ((times - 100).abs() < 4 * math.sqrt(400 * 0.25 * 0.75)).all()


def test_layers_are_permuted_apart(tmp_path):
    net = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10))
    half = (torch.arange(100) < 50).view(10, 10)
    save_masks(tmp_path / "same.safetensors", Masks({"0.weight": half, "2.weight": half}))
    masks = begun("shuffled", net, source=str(tmp_path / "same.safetensors")).masks
    assert [int(mask.sum()) for mask in masks.values()] == [50, 50]
    assert not torch.equal(masks["0.weight"], masks["2.weight"])


def test_shuffled_with_neither_is_the_method_itself():
    assert begun("shuffled", source="grasp", permute=False).sha256 == begun("grasp").sha256


def test_redrawn_weights_keep_the_masks_and_the_deviation():
    net = mlp(40, 200, 10)
    with torch.no_grad():
        net[0].weight.mul_(7)  # each layer has a scale of its own
        net[2].weight.add_(3)  # the mean goes, the deviation stays
    data = points(inputs=40, classes=10)
    snip = run_config(config("snip", density=1.0), module=net, data=data)
    plain = run_config(config("shuffled", source="snip", density=0.3, permute=False), module=net, data=data)
    drawn = run_config(config("shuffled", source="snip", density=0.3, permute=False, redraw=True), module=net, data=data)
    assert drawn.masks.same(plain.masks)
    dense = run_config(config("shuffled", density=1.0, redraw=True), module=net, data=data)
    for name, weight in dense.weights.items():
        given = snip.weights[name]
        assert not (weight == given).any()
        slack = 4 * given.std().item() / math.sqrt(2 * weight.numel())  # four standard errors
        assert weight.std().item() == pytest.approx(given.std().item(), abs=slack)
        assert weight.mean().item() == pytest.approx(0, abs=4 * given.std().item() / math.sqrt(weight.numel()))
        assert torch.equal(drawn.weights[name], weight * drawn.masks[name])  # the draw does not look at the mask
    assert all(torch.equal(drawn.state[name], value) for name, value in plain.state.items())  # biases stay


def test_the_seed_draws_the_permutation_and_the_weights():
    one, again, other = (begun("shuffled", redraw=True, seed=seed, source="synflow") for seed in (1, 1, 2))
    assert one.sha256 == again.sha256
    assert not one.masks.same(other.masks)
    assert layer_counts(one) == layer_counts(other)


def test_a_source_with_hyperparameters_and_a_density_over_them():
    source = {"name": "snip", "density": 0.3, "invert": True}
    given = begun("shuffled", source=source, permute=False)
    assert given.masks.same(begun("snip", density=0.3, invert=True).masks)
    overruled = begun("shuffled", source=source, density=0.05, permute=False)
    assert overruled.masks.same(begun("snip", density=0.05, invert=True).masks)


@pytest.mark.parametrize("kind", ["masks", "subnetwork"])
def test_a_source_in_a_file(kind, tmp_path):
    path = tmp_path / f"{kind}.safetensors"
    # Found while it trained: a method whose topology only a file can hand on.
    gmp = run_config(config("gmp", epochs=2, density=0.2), module=mlp(), data=points())
    if kind == "masks":
        save_masks(path, gmp.masks)
    else:
        gmp.save(path)
    plain = begun("shuffled", source=str(path), permute=False)
    assert plain.masks.same(gmp.masks)
    assert all(torch.equal(plain.weights[n], w * gmp.masks[n]) for n, w in prunable(mlp()).items())  # not the file's
    shuffled = begun("shuffled", source=str(path))
    assert layer_counts(shuffled) == layer_counts(gmp)
    assert not shuffled.masks.same(gmp.masks)


def test_a_shuffled_topology_is_trained_and_stays():
    begin, end = (begun("shuffled", source="snip", epochs=epochs) for epochs in (0, 3))
    assert end.masks.same(begin.masks)
    assert end.metrics["probe_steps"] == 1
    assert end.sha256 != begin.sha256


@pytest.mark.parametrize("source", ["gmp", "lottery", "granet", "ac_dc", "supermask", {"name": "gumbel"}])
def test_a_source_that_finds_its_topology_in_training(source):
    name = source if isinstance(source, str) else source["name"]
    with pytest.raises(UserError, match=f"shuffled: {name} finds its topology while it trains; give the file that it wrote"):
        begun("shuffled", source=source, epochs=2)


def test_a_file_of_another_network(tmp_path):
    path = tmp_path / "other.safetensors"
    save_masks(path, Masks.ones(prunable(mlp(hidden=31))))
    with pytest.raises(UserError, match=r"other\.safetensors holds the masks of another network"):
        begun("shuffled", source=str(path))


def test_a_density_with_a_file(tmp_path):
    path = tmp_path / "some.safetensors"
    save_masks(path, Masks.ones(prunable(mlp())))
    with pytest.raises(UserError, match=r"shuffled: the density is that of .*some\.safetensors; leave it out"):
        begun("shuffled", source=str(path), density=0.1)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("snipp", "unknown extractor 'snipp': did you mean 'snip'"),
        ({"density": 0.1}, "an extractor is a name or"),
        ({"name": "snip", "density": 0}, "density: input should be greater than 0, got 0"),
        ({"name": "snip", "densty": 0.1}, r"densty\b(?!.*permute)"),  # snip has no such key, and no key `permute`
        ("none.safetensors", "no such .* file: none.safetensors"),
    ],
)
def test_a_source_that_is_none(source, message):
    with pytest.raises(UserError, match=message) as caught:
        begun("shuffled", source=source)
    assert len(str(caught.value).splitlines()) == 1


def test_a_checkpoint_is_no_source(tmp_path):
    from subnet_search.core.tensor_files import save_tensors

    save_tensors(tmp_path / "state.safetensors", {"net.a": torch.ones(3)}, {"format": 1, "progress": {}})
    with pytest.raises(UserError, match=r"state\.safetensors holds no masks"):
        begun("shuffled", source=str(tmp_path / "state.safetensors"))
