"""Extractors that learn relevance: each by hand on eight weights, then what is peculiar to it."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from toys import accuracy, conv_bn, mlp, pictures, points, run_config, supernet

from subnet_search import Masks, Recipe, RunConfig
from subnet_search.core.errors import UserError
from subnet_search.extractors import Clock, create
from subnet_search.tasks import Classification
from subnet_search.topology.masks import alive
from subnet_search.topology.select import count
from subnet_search.topology.units import Units
from subnet_search.training import train

NAME = "0.weight"
EIGHT = [[1.0, -2.0, 3.0, -4.0], [5.0, -6.0, 7.0, -8.0]]  # (out, in)
SHAPES = {NAME: (2, 4)}
START = Clock(0, 10, 0)


def layer(extractor, relevance=None, weights=EIGHT, **recipe):
    """One linear layer without bias, with the weights and the relevance given."""
    module = nn.Sequential(nn.Linear(len(weights[0]), len(weights), bias=False))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor(weights))
    net = supernet(extractor, module, **recipe)
    if relevance is not None:
        with torch.no_grad():
            net.relevance[NAME].copy_(torch.tensor(relevance))
    return net


def effective(net, clock=START):
    """The weights that a training step computes with: what comes out when ones go in, one at a time."""
    return net.forward(torch.eye(net.weights[NAME].shape[1]), clock).T


def gradients(net, clock=START):
    """Of the sum of the effective weights, with respect to relevance and weights."""
    effective(net, clock).sum().backward()
    return net.relevance[NAME].grad, net.weights[NAME].grad


def assert_close(tensor, expected):
    torch.testing.assert_close(tensor.detach(), torch.tensor(expected), rtol=1e-5, atol=1e-6)


def settings(name, recipe=None, **hyperparameters):
    recipe = Recipe(**{"epochs": 4, "batch_size": 32, "threads": 1, "device": "cpu", **(recipe or {})})
    return RunConfig(extractor={"name": name, **hyperparameters}, recipe=recipe, seed=0)


# Biprop


def test_biprop_by_hand():
    # Top four of |s|: 0.8 (w = -2), 0.7 (-4), 0.6 (-6) and 0.5 (-8), so alpha = (2 + 4 + 6 + 8) / 4 = 5.
    net = layer({"name": "biprop", "density": 0.5}, [[0.1, -0.8, 0.2, 0.7], [-0.3, 0.6, 0.4, -0.5]])
    assert_close(effective(net), [[0.0, -5.0, 0.0, -5.0], [0.0, -5.0, 0.0, -5.0]])
    # With dL/dw_hat = 1 everywhere, ds = w sign(s), for pruned weights as well.
    relevance, weights = gradients(net)
    assert_close(relevance, [[1.0, 2.0, 3.0, -4.0], [-5.0, -6.0, 7.0, 8.0]])
    assert weights is None


def test_biprop_evaluates_what_it_trains():
    net = layer({"name": "biprop", "density": 0.5}, [[0.1, -0.8, 0.2, 0.7], [-0.3, 0.6, 0.4, -0.5]])
    assert_close(net.evaluator()(torch.eye(4)).T, [[0.0, -5.0, 0.0, -5.0], [0.0, -5.0, 0.0, -5.0]])


def test_biprop_has_no_sign_for_a_weight_of_zero():
    # Kept are 0 and -4: alpha = (0 + 4) / 2 = 2.
    net = layer({"name": "biprop", "density": 0.25}, [[0.9, 0, 0, 0.8], [0, 0, 0, 0]], [[0.0, 1, 2, -4], [5, 6, 7, 8]])
    assert_close(effective(net), [[0.0, 0.0, 0.0, -2.0], [0.0, 0.0, 0.0, 0.0]])


def test_biprop_leaves_one_magnitude_a_layer():
    subnet = run_config(settings("biprop", density=0.3), module=conv_bn(), data=pictures())
    for name, weight in subnet.effective_weights().items():
        kept = weight[subnet.masks[name]].abs()
        torch.testing.assert_close(kept, kept.mean().expand_as(kept), rtol=1e-6, atol=0)


# IteRand


def test_iterand_by_hand():
    # Kept are the four highest scores, with their sign: 4, 3, 2 and 1, on the weights 1, -2, 3 and -4.
    net = layer({"name": "iterand", "density": 0.5, "every": 5, "redraw": 1.0}, [[4.0, 3, 2, 1], [0, -1, -2, -9]])
    assert_close(effective(net), [[1.0, -2.0, 3.0, -4.0], [0.0, 0.0, 0.0, 0.0]])
    relevance, _ = gradients(net)
    assert_close(relevance, EIGHT)  # ds = w
    # Every pruned weight is re-drawn, and only the values 5, -6, 7 and -8 are there to draw from.
    drawn = [net.extractor.step(net, Clock(5, 10, seed)).weights[NAME] for seed in range(20)]
    assert all(new[0].tolist() == EIGHT[0] for new in drawn)
    assert all(sorted(new[1].tolist()) == [-8, -6, 5, 7] for new in drawn)
    assert len({tuple(new[1].tolist()) for new in drawn}) > 5


def test_iterand_redraws_some_pruned_weights_and_keeps_the_layers_values():
    net = supernet({"name": "iterand", "density": 0.4, "redraw": 0.1, "every": 0.1}, mlp(hidden=400))
    kept = net.final()
    change = net.extractor.step(net, Clock(10, 100, 0))
    for name, weight in net.weights.items():
        new = change.weights[name]
        assert torch.equal(new[kept[name]], weight[kept[name]])
        assert torch.equal(new.flatten().sort().values, weight.detach().flatten().sort().values)
    pruned = ~kept["0.weight"]
    moved = (change.weights["0.weight"] != net.weights["0.weight"])[pruned].float().mean().item()
    assert moved == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize(
    ("every", "total", "redrawn"),
    [
        (3, 10, [3, 6, 9]),
        (1, 5, [1, 2, 3, 4]),  # steps stay as they are
        (0.01, 10, [2, 4, 6, 8]),  # a fraction is at least a quarter of a short run, rounded down,
        (0.01, 50, [10, 20, 30, 40]),  # or ten steps
        (0.3, 50, [15, 30, 45]),
    ],
)
def test_iterand_redraws_at_its_interval(every, total, redrawn):
    net = layer({"name": "iterand", "every": every})
    assert [step for step in range(total) if net.extractor.step(net, Clock(step, total, 0))] == redrawn


# Gem-Miner


def test_gem_miner_by_hand():
    net = layer({"name": "gem_miner", "density": 0.25, "rounds": 2}, [[0.9, 0.1, 0.6, 0.2], [0.3, 0.7, 0.4, 0.5]])
    assert_close(effective(net), [[1.0, 0.0, 3.0, 0.0], [0.0, -6.0, 0.0, 0.0]])  # 1[s > 1/2]
    relevance, _ = gradients(net)
    assert_close(relevance, EIGHT)  # straight through
    # Of ten steps five are searched, in rounds that end at steps 2 and 5. After the first, 8 * sqrt(1/4) = 4 live:
    # scores 0.9, 0.7, 0.6 and 0.5, the last of which is off for now.
    change = net.extractor.step(net, Clock(2, 10, 0))
    assert change.learn is None
    assert change.masks[NAME].tolist() == [[True, False, True, False], [False, True, False, True]]
    net.apply(change)
    with torch.no_grad():
        net.relevance[NAME].copy_(torch.tensor([[0.1, 0.9, 0.2, 0.9], [0.9, 0.7, 0.9, 0.3]]))
    assert_close(effective(net), [[0.0, 0.0, 0.0, 0.0], [0.0, -6.0, 0.0, 0.0]])  # what died stays dead
    net.relevance[NAME].grad = None
    assert_close(gradients(net)[0], [[1.0, 0.0, 3.0, 0.0], [0.0, -6.0, 0.0, -8.0]])
    # After the second, 8 / 4 = 2 live: 0.7 and 0.3, with their own weights although 0.3 was off.
    change = net.extractor.step(net, Clock(5, 10, 0))
    assert (change.learn, change.rewind) == ("weights", "schedule")
    net.apply(change)
    assert net.weights[NAME].tolist() == [[0, 0, 0, 0], [0, -6, 0, -8]]


def test_gem_miner_keeps_scores_between_0_and_1():
    net = layer({"name": "gem_miner"}, [[-0.5, 0.5, 1.5, 1.0], [0.0, 0.25, -9.0, 9.0]])
    with torch.no_grad():
        net.extractor.adjust(net, START)
    assert_close(net.relevance[NAME], [[0.0, 0.5, 1.0, 1.0], [0.0, 0.25, 0.0, 1.0]])


def test_gem_miner_meets_its_density_after_every_round():
    net = supernet({"name": "gem_miner", "density": 0.1, "rounds": 4, "until": 0.5}, epochs=4, batch_size=32)
    kept = {}
    train(net, points(400), 0, on_step=lambda clock: kept.setdefault(net.masks.kept, clock.step))
    total = net.masks.numel
    assert kept == {total: 0, **{count(0.1 ** (r / 4), total): 22 * r // 4 - 1 for r in (1, 2, 3, 4)}}  # once as many are done


# CTS-KL


def test_concrete_by_hand():
    net = layer({"name": "concrete", "density": 0.25, "temperature": 0.5})
    # Gates are sigma(a + logit(u) / tau), and a = log(1/4 / 3/4) = -log 3 at first.
    noise = START.uniform(NAME, net.weights[NAME])
    gate = 1 / (1 + ((1 - noise) / noise) ** 2 * 3)
    assert_close(effective(net), (torch.tensor(EIGHT) * gate).tolist())
    # Soft gates have exact gradients: dz/da = z (1 - z).
    assert_close(gradients(net)[0], (torch.tensor(EIGHT) * gate * (1 - gate)).tolist())


def test_concrete_reverse_divergence_by_hand():
    # Sparse (1/4, 3/4), dense (1/2, 1/2): 1/4 log(1/2) + 3/4 log(3/2).
    found = Classification().distance(torch.zeros(1, 2), torch.tensor([[0.0, math.log(3)]]), 1.0)
    assert found.item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    # It is not symmetric: the forward divergence would be 1/2 log(2) + 1/2 log(2/3).
    assert found.item() != pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), rel=0.05)
    assert create("concrete").follows_dense
    assert not create({"name": "concrete", "loss": "task"}).follows_dense


@pytest.mark.parametrize(("density", "added"), [(0.25, 5 / math.sqrt(8)), (0.5, 0.0)])
def test_concrete_balances_the_cost_with_the_loss(density, added):
    # All logits 0, so half are expected to live and c = 1/4 for each of eight weights: |c| = sqrt(8) / 4. The loss's
    # gradient (3, 4, 0, ...) has norm 5, and lambda c = 5 / |c| / 4 = 5 / sqrt(8). Half is within 1.1 of half: no cost.
    net = layer({"name": "concrete", "density": density}, [[0.0] * 4] * 2)
    net.relevance[NAME].grad = torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0] * 4])
    with torch.no_grad():
        net.extractor.adjust(net, START)
    assert_close(net.relevance[NAME].grad, [[3 + added, 4 + added, added, added], [added] * 4])


def test_concrete_comes_to_its_density_before_it_is_ranked():
    net = supernet({"name": "concrete", "density": 0.2, "until": 1.0}, epochs=12, batch_size=32)
    expected = []

    def look(clock):
        if net.relevance:
            total = sum(a.sigmoid().sum().item() for a in net.relevance.values())
            expected.append(total / net.masks.numel)

    train(net, points(400), 0, on_step=look)
    assert 0.1 < sum(expected[-30:]) / 30 < 0.3


# Continuous sparsification


def test_continuous_sparsification_by_hand():
    # s_0 = 0, so gates are 2 sigma(beta s), and beta = 1 at the first step. sigma(log 3) = 3/4, sigma(-log 3) = 1/4.
    up, down = math.log(3), -math.log(3)
    net = layer("continuous_sparsification", [[0.0, up, down, 0.0], [up, 0.0, 0.0, down]])
    assert_close(effective(net), [[1.0, -3.0, 1.5, -4.0], [7.5, -6.0, 7.0, -4.0]])
    relevance, weights = gradients(net)
    assert_close(weights, [[1.0, 1.5, 0.5, 1.0], [1.5, 1.0, 1.0, 0.5]])  # the gates
    # ds = 2 w beta sigma (1 - sigma): 2 w / 4 at 0, 2 w 3/16 at +-log 3.
    assert_close(relevance, [[0.5, -0.75, 1.125, -2.0], [1.875, -3.0, 3.5, -3.0]])
    penalty = net.extractor.model_copy(update={"strength": 0.5}).penalty(net, START)
    assert penalty.item() == pytest.approx(0.5 * (4 * 1 + 2 * 1.5 + 2 * 0.5))  # the sum of the gates
    # In the end H(s), with all gates at 2: where s = 0 it counts as kept.
    assert net.final()[NAME].tolist() == [[True, True, False, True], [True, True, True, False]]
    assert_close(net.evaluator()(torch.eye(4)).T, [[2.0, -4.0, 0.0, -8.0], [10.0, -12.0, 14.0, 0.0]])


def test_continuous_sparsification_begins_at_the_weights_themselves():
    net = layer({"name": "continuous_sparsification", "s_init": -0.3})
    assert_close(effective(net), EIGHT)


def test_continuous_sparsification_hardens_and_resets_between_rounds():
    # Of ten steps, eight are searched: a round from 0 to 3 (beta 1 to 8 in three factors of 2), one from 4 to 7.
    chosen = {"name": "continuous_sparsification", "final_beta": 8.0, "rounds": 2, "until": 8, "s_init": 0.01}
    net = layer(chosen, [[0.5, -0.5, 0.0, 0.001], [0.01, -1.0, 1.0, -0.001]])
    method, shift = net.extractor, 1 + math.exp(-0.01)  # 1 / sigma(s_0)
    for step, beta in enumerate([1, 2, 4, 8, 1, 2, 4, 8]):
        assert_close(method.sample(net, Clock(step, 10, 0))[NAME][0, :1], [shift / (1 + math.exp(-0.5 * beta))])
    assert [step for step in range(10) if method.step(net, Clock(step, 10, 0))] == [4, 8]
    change = method.step(net, Clock(4, 10, 0))
    assert (change.masks, change.learn, change.rewind) == (None, None, "schedule")
    assert_close(change.relevance[NAME], [[0.01, -4.0, 0.0, 0.008], [0.01, -8.0, 0.01, -0.008]])  # min(8 s, 0.01)


@pytest.mark.parametrize("rewind", ["weights", "none"])
def test_continuous_sparsification_rewinds_the_weights_it_keeps(rewind):
    chosen = {"name": "continuous_sparsification", "density": 0.3, "rewind": rewind, "rewind_to": 5, "until": 30}
    net = supernet(chosen, epochs=4, batch_size=32)
    before, after = {}, {}

    def look(clock):
        if clock.step == 4:  # five steps are done
            before.update({name: weight.detach().clone() for name, weight in net.weights.items()})
        if clock.step == 29:  # and now thirty
            after.update({name: weight.detach().clone() for name, weight in net.weights.items()})

    train(net, points(400), 0, on_step=look)
    same = [torch.equal(after[name], 2 * before[name] * net.masks[name]) for name in before]  # gates are 1 / sigma(0)
    assert same == [rewind == "weights"] * 2


# STR


def test_str_by_hand():
    # sigma(0) = 1/2 is taken off every |w|, and a weight below is gone.
    net = layer("str", [[0.0]], [[1.0, -1.5, 0.25, -0.5], [2.0, 0.0, 0.5, -3.0]])
    assert_close(effective(net), [[0.5, -1.0, 0.0, 0.0], [1.5, 0.0, 0.0, -2.5]])
    relevance, weights = gradients(net)
    assert_close(weights, [[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 1.0]])
    # ds = -sigma'(0) * (sum of signs of the living) = -1/4 * (1 - 1 + 1 - 1) = 0; without the first weight, 1/4.
    assert_close(relevance, [[0.0]])
    net = layer("str", [[0.0]], [[0.1, -1.5, 0.25, -0.5], [2.0, 0.0, 0.5, -3.0]])
    assert_close(gradients(net)[0], [[0.25]])


def test_str_gradients_are_those_of_the_soft_threshold():
    net = supernet({"name": "str", "s_init": -1.0}, mlp())
    x = torch.randn(7, 10, generator=torch.Generator().manual_seed(0))
    net.forward(x, START).square().sum().backward()
    weights = {name: weight.detach().clone().requires_grad_() for name, weight in net.weights.items()}
    thresholds = {name: s.detach().clone().requires_grad_() for name, s in net.relevance.items()}
    soft = {n: w.sign() * torch.relu(w.abs() - thresholds[n].sigmoid()) for n, w in weights.items()}
    assert 0 < sum(alive(w.detach() != 0) for w in soft.values()) < net.masks.numel
    torch.func.functional_call(net.net, soft, (x,)).square().sum().backward()
    for name, weight in net.weights.items():
        torch.testing.assert_close(weight.grad, weights[name].grad)
        torch.testing.assert_close(net.relevance[name].grad, thresholds[name].grad)


def test_str_keeps_all_weights_of_a_density_alive():
    weights = [[1.0, -0.4, 0.3, -0.2], [0.1, 0.05, 0.7, -0.6]]
    net = layer({"name": "str", "density": 0.25}, [[0.0]], weights)  # threshold 1/2: 1 and 0.7 become 0.5 and 0.2
    assert_close(net.evaluator()(torch.eye(4)).T, [[0.5, 0.0, 0.0, 0.0], [0.0, 0.0, 0.2, 0.0]])
    # Five are more than pass. The smallest of them is 0.3, so 0.15 is taken off instead.
    net = layer({"name": "str", "density": 0.625}, [[0.0]], weights)
    assert_close(net.evaluator()(torch.eye(4)).T, [[0.85, -0.25, 0.15, 0.0], [0.0, 0.0, 0.55, -0.45]])
    assert net.final().kept == 5


def test_str_finds_its_own_density():
    subnet = run_config(settings("str", {"lr": 0.05}, s_init=-2.0), module=mlp(), data=points())
    assert 0 < subnet.density < 1
    for name, weight in subnet.effective_weights().items():
        assert torch.equal(weight != 0, subnet.masks[name])  # what is kept is above its threshold


def test_str_decay_raises_the_threshold():
    net = supernet("str", epochs=3, batch_size=32, lr=0.01, weight_decay=0.1, label_smoothing=0.0)
    assert all(s.shape == (1, 1) for s in net.relevance.values())
    train(net, points(300), 0)
    assert all(s.item() > -5 for s in net.relevance.values())


# What they share


@pytest.mark.parametrize(
    "chosen",
    [
        {"name": "gem_miner", "density": 0.3, "until": 20},
        {"name": "concrete", "density": 0.3, "until": 20},
        {"name": "concrete", "density": 0.3, "until": 20, "loss": "task"},
        {"name": "continuous_sparsification", "density": 0.3, "until": 20},
        {"name": "continuous_sparsification", "until": 20, "rewind": "none"},
        {"name": "str", "density": 0.3, "until": 20},
    ],
    ids=lambda chosen: "-".join(map(str, chosen.values())),
)
def test_weights_are_trained_in_fixed_masks_after_the_search(chosen):
    net = supernet(chosen, epochs=4, batch_size=32)
    seen = []

    def look(clock):
        seen.append((net.learns, net.masks, {name: w.detach().clone() for name, w in net.weights.items()}))

    outcome = train(net, points(400), 0, on_step=look)
    assert outcome.steps == len(seen) == 44
    assert [learns for learns, _, _ in seen] == [net.extractor.learns] * 19 + ["weights"] * 25
    assert net.masks.same(seen[19][1])
    for name, weight in net.weights.items():
        assert not weight[~net.masks[name]].any()
        assert (weight != seen[19][2][name])[net.masks[name]].any()
    if "density" in chosen:
        assert net.masks.kept == count(0.3, net.masks.numel)


@pytest.mark.parametrize("name", ["gem_miner", "concrete"])
def test_a_ticket_begins_at_the_initial_weights(name):
    net = supernet({"name": name, "density": 0.3, "until": 20}, epochs=4, batch_size=32)
    initial = {key: weight.detach().clone() for key, weight in net.weights.items()}

    looked = []

    def look(clock):
        if clock.step == 19:
            looked.append([torch.equal(w, initial[key] * net.masks[key]) for key, w in net.weights.items()])

    train(net, points(400), 0, on_step=look)
    assert looked == [[True, True]]
    assert not torch.equal(net.weights["0.weight"], initial["0.weight"] * net.masks["0.weight"])


@pytest.mark.parametrize("name", ["gem_miner", "concrete", "continuous_sparsification"])
def test_search_and_training_each_have_the_whole_schedule(name):
    rates = []
    net = supernet({"name": name, "until": 0.5}, epochs=4, batch_size=32, schedule="cosine")
    factor = type(net.recipe).rate

    def noted(recipe, progress):
        rates.append(progress)
        return factor(recipe, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(net.recipe), "rate", noted)
        train(net, points(400), 0)
    assert rates[0] == 0
    assert len(rates) == 44
    assert rates[21] > 0.4  # 1 where search and training are of one length; rounds begin anew
    assert min(rates[22:]) == rates[22] < 0.1  # the change comes after 22 steps
    assert rates[-1] > 0.9


@pytest.mark.parametrize("rescale", ["none", "learned"])
@pytest.mark.parametrize(
    "chosen",
    [
        {"name": "biprop"},
        {"name": "continuous_sparsification", "until": 1.0},
        {"name": "str", "s_init": -2.0},
        {"name": "str", "density": 0.7, "s_init": -1.0, "until": 1.0},
    ],
    ids=lambda chosen: chosen["name"],
)
def test_gates_of_any_size_reach_the_artifact(chosen, rescale):
    data, module = points(), mlp()
    subnet = run_config(settings(**chosen, rescale=rescale, recipe={"scale_lr": 0.1}), module=module, data=data)
    measured = accuracy(subnet.on(module), data.val)
    assert measured == pytest.approx(subnet.metrics["val_accuracy"])


@pytest.mark.parametrize("chosen", [{"name": "biprop"}, {"name": "iterand"}, {"name": "str"}], ids=lambda c: c["name"])
def test_no_epochs_give_the_topology_of_the_first_scores(chosen):
    subnet = run_config(settings(**chosen, recipe={"epochs": 0}), module=mlp(), data=points())
    assert 0 < subnet.density < 1


@pytest.mark.parametrize(
    ("chosen", "steps", "message"),
    [
        ({"name": "gem_miner", "rounds": 9, "until": 4}, 10, "gem_miner: 9 rounds do not fit into 4 steps"),
        ({"name": "gem_miner", "until": 11}, 10, "gem_miner.until: step 11 is after the end of the run of 10 steps"),
        (
            {"name": "continuous_sparsification", "rounds": 5, "until": 4},
            10,
            "continuous_sparsification: 5 rounds do not fit into 4 steps",
        ),
        (
            {"name": "continuous_sparsification", "rewind_to": 8, "until": 7},
            10,
            "continuous_sparsification.until: step 7 is before the start, step 8",
        ),
        ({"name": "concrete", "until": 0}, 10, "concrete.until: step 0 is before the start, step 1"),
        ({"name": "str", "density": 0.5, "until": 12}, 10, "str.until: step 12 is after the end of the run of 10 steps"),
        ({"name": "iterand", "every": 300}, 10, "iterand.every: an interval of 300 steps is longer than the run of 10"),
        *(
            ({"name": name, "density": 0.5}, 0, "this method works while it trains, and recipe.epochs is 0")
            for name in ("gem_miner", "concrete", "continuous_sparsification", "str")
        ),
    ],
)
def test_what_cannot_be_is_said_before_training(chosen, steps, message):
    with pytest.raises(UserError, match=message):
        create(chosen).check(Units(SHAPES), Clock(0, steps, 0))


@pytest.mark.parametrize("name", ["biprop", "iterand"])
def test_a_density_that_leaves_a_layer_without_weights_is_refused(name):
    shapes = {str(index): (2, 5) for index in range(4)}
    with pytest.raises(UserError, match=r"density 0.05 keeps 2 of 40 weights, fewer than the network's 4 layers"):
        create({"name": name, "density": 0.05}).check(Units(shapes), START)


@pytest.mark.parametrize(
    "chosen",
    [
        {"name": "biprop", "rescale": "dynamic"},
        {"name": "iterand", "redraw": 0.0},
        {"name": "gem_miner", "rounds": 0},
        {"name": "concrete", "loss": "mse"},
        {"name": "concrete", "temperature": 0.0},
        {"name": "continuous_sparsification", "final_beta": 0.5},
        {"name": "continuous_sparsification", "rewind": "schedule"},
        {"name": "str", "density": 1.5},
    ],
    ids=lambda chosen: "-".join(map(str, chosen.values())),
)
def test_values_out_of_bounds_are_refused(chosen):
    with pytest.raises(ValidationError):
        create(chosen)


def test_an_empty_layer_has_no_smallest_weight():
    net = layer("str", [[0.0]])
    assert not net.extractor.gates(net, Masks({NAME: torch.zeros(2, 4, dtype=torch.bool)}))[NAME].any()
