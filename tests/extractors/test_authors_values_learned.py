"""What the authors' own code says of a few weights, as numbers: relevance that is learned, scores before training, channels.

As test_authors_values.py. Repositories, and the commits that were run: N0ciple/ASLP b99575e, allenai/hidden-networks dddf2d0,
chrundle/biprop f709fc5, dchiji-ntt/iterand 90e0862, ksreenivasan/pruning_is_enough 8c4c9e8, RAIVNLab/STR cc74d38,
lolemacs/continuous-sparsification 5bd4039, tanayarora09/TLAB f5ac761, anonymous-NM-sparsity/NM-sparsity 3cebd6b,
mil-ad/snip 883c805, naver/force 7494eed, alecwangcq/GraSP f17d87a, ganguli-lab/Synaptic-Flow 9dfa57a,
he-y/filter-pruning-geometric-median 44fbab4, he-y/soft-filter-pruning 919c399, lmbxmu/HRank c03ac85,
NVlabs/Taylor_pruning 4b70120, RICE-EIC/Early-Bird-Tickets 4a16ae0, MingSun-Tse/Regularization-Pruning a404402,
Eric-mingjie/network-slimming b395dc0; read only: uber-research/deconstructing-lottery-tickets dbad201 (tensorflow).
"""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from toys import supernet

from subnet_search import Recipe
from subnet_search.data import Data, Split
from subnet_search.extractors import Clock, create
from subnet_search.extractors.methods.early_bird import distance
from subnet_search.extractors.methods.sr_ste import straight_through
from subnet_search.extractors.methods.taylor import importance
from subnet_search.structure.units_of_network import units_of
from subnet_search.tasks import Classification
from subnet_search.topology.scores import distances, filter_norms, map_ranks, scales
from subnet_search.topology.select import keep_global
from subnet_search.training import Supernet, train

NAME = "0.weight"
WEIGHTS = [[1.0, -2, 3, -4], [5, -6, 7, -8]]
SCORES = [[0.1, -0.8, 0.2, 0.7], [-0.3, 0.6, 0.4, -0.5]]
LOGITS = [[2.5, -2.5, 0.5, -0.5], [0, 1.5, 0, 3]]
UNIFORM = [[0.1, 0.9, 0.4, 0.6], [0.75, 0.2, 0.5001, 0.05]]
CHANGES = [[0.3, -0.3, 0, 0.1], [-0.02, 0.02, 1, -1]]


class Drawn(Clock):
    """A clock whose random numbers are UNIFORM."""

    def uniform(self, name, like):
        return torch.tensor(UNIFORM).view(like.shape)


START = Drawn(0, 20, 0)


def layer(extractor, relevance, weights=WEIGHTS):
    """A linear layer of eight weights without bias, and the relevance given."""
    module = nn.Sequential(nn.Linear(4, 2, bias=False))
    module[0].weight.data = torch.tensor(weights)
    net = supernet(extractor, module)
    net.relevance[NAME].data.copy_(torch.tensor(relevance))
    return net


def effective(net, clock=START):
    """The weights that a training step computes with."""
    return net.forward(torch.eye(4), clock).T


def close(found, expected, tolerance=1e-6):
    torch.testing.assert_close(found.detach(), torch.tensor(expected), rtol=tolerance, atol=tolerance)


# --- relevance of weights ---


@pytest.mark.parametrize(
    ("tau", "gradient"),
    [
        (1.0, [[0.3665353, -0.7330706, 1.1224902, -1.4966537], [1.4062498, -2.2427433, 2.625, -2.9976859]]),
        (0.5, [[0.685239, -1.3704777, 2.230011, -2.9733484], [1.3499999, -4.4423175, 5.249999, -5.9815154]]),
    ],
)
def test_gumbel(tau, gradient):
    """N0ciple/ASLP strategies/ASLP/layer_functions.py:linear_layer_forward with a scaling parameter of 1.5.

    Its exponential variables were 1 - u for keeping and u for dropping, so that their logs differ by logit u.
    """
    net = layer({"name": "gumbel", "temperature": tau}, LOGITS)
    net.scales[NAME].data.fill_(1.5)
    close(effective(net), [[1.5, 0, 4.5, 0], [7.5, -9, 10.5, -12]])
    effective(net).sum().backward()
    close(net.relevance[NAME].grad, gradient)
    assert net.scales[NAME].grad.item() == 2


def test_edge_popup():
    """allenai/hidden-networks utils/conv_type.py:GetSubnet of |scores|, k = 0.5, and the gradient through w * mask."""
    net = layer({"name": "edge_popup", "density": 0.5}, SCORES)
    close(effective(net), [[0.0, -2, 0, -4], [0, -6, 0, -8]])
    effective(net).sum().backward()
    close(net.relevance[NAME].grad, [[1.0, 2, 3, -4], [-5, -6, 7, 8]])


def test_biprop():
    """chrundle/biprop utils/conv_type.py:GetQuantnet_binary with prune_rate 0.5 (the fraction kept), times sign(w)."""
    net = layer({"name": "biprop", "density": 0.5}, SCORES)
    close(effective(net), [[0.0, -5, 0, -5], [0, -5, 0, -5]])
    effective(net).sum().backward()
    close(net.relevance[NAME].grad, [[1.0, 2, 3, -4], [-5, -6, 7, 8]])


def test_iterand():
    """dchiji-ntt/iterand models/networks/sparse_modules.py:GetSubnet at sparsity 0.5, and rerandomize_ with rate 1.

    Their pruned weights 1, -2, 5 and -8 became what was drawn; ours are drawn among the four.
    """
    net = layer({"name": "iterand", "density": 0.5, "every": 5, "redraw": 1.0}, SCORES)
    close(effective(net), [[0.0, 0, 3, -4], [0, -6, 7, 0]])
    redrawn = net.extractor.step(net, Clock(5, 20, 0)).weights[NAME].flatten().tolist()
    assert [redrawn[i] for i in (2, 3, 5, 6)] == [3, -4, -6, 7]
    assert sorted(redrawn[i] for i in (0, 1, 4, 7)) == [-8, -2, 1, 5]


def test_gem_miner():
    """ksreenivasan/pruning_is_enough utils/conv_type.py:SubnetConv (hc_iter) and utils/net_utils.py:prune (BottomK, a half)."""
    net = layer({"name": "gem_miner", "density": 0.25, "rounds": 2, "until": 10}, [[0.9, 0.1, 0.6, 0.2], [0.3, 0.7, 0.4, 0.55]])
    close(effective(net), [[1.0, 0, 3, 0], [0, -6, 0, -8]])
    effective(net).sum().backward()
    close(net.relevance[NAME].grad, WEIGHTS)
    changes = [net.extractor.step(net, Clock(step, 20, 0)) for step in range(10)]
    net.apply(next(change for change in changes if change))
    assert net.masks[NAME].int().tolist() == [[1, 0, 1, 0], [0, 1, 0, 1]]
    net.relevance[NAME].data.copy_(torch.tensor([[0.1, 0.9, 0.2, 0.9], [0.95, 0.7, 0.99, 0.3]]))
    close(effective(net), [[0.0, 0, 0, 0], [0, -6, 0, 0]])
    assert net.final()[NAME].int().tolist() == [[0, 0, 0, 0], [0, 1, 0, 1]]


def test_str():
    """RAIVNLab/STR utils/conv_type.py:sparseFunction with s = -1, and its gradients for weights of 1 to 8 in the loss."""
    net = layer("str", [[-1.0]], [[0.5, -0.1, 0.4, -0.6], [0.2, 0.3, -0.3, 0.05]])
    close(effective(net), [[0.2310586, 0, 0.1310586, -0.3310586], [0, 0.0310586, -0.0310586, 0]])
    (effective(net) * torch.arange(1.0, 9).view(2, 4)).sum().backward()
    close(net.weights[NAME].grad, [[1.0, 0, 3, 4], [0, 6, 7, 0]])
    assert net.relevance[NAME].grad.item() == pytest.approx(0.1966119, abs=1e-6)


def test_sr_ste():
    """NM-sparsity devkit/sparse_ops/sparse_ops.py:Sparse, 2 of 4, decay 0.1: forward, and backward of 1 to 8."""
    weight = torch.tensor([[1.0, -2, 3, -4], [5, -6, 0.7, 8]], requires_grad=True)
    computed = weight * straight_through(weight, torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]]).bool(), 0.1)
    (computed * torch.arange(1.0, 9).view(2, 4)).sum().backward()
    close(computed, [[0.0, 0, 3, -4], [0, -6, 0, 8]])
    close(weight.grad, [[1.1, 1.8, 3, 4], [5.5, 6, 7.07, 8]])
    net = SimpleNamespace(weights={"weight": weight}, units=units_of("2:4", nn.Linear(4, 2), (4,)))
    assert create("sr_ste").finish(net)["weight"].int().tolist() == [[0, 0, 1, 1], [0, 1, 0, 1]]


@pytest.mark.parametrize(
    ("s_init", "gates"),
    [
        (0.0, [[1.148885, 0.851115, 1.0, 1.0499583], [0.9900004, 1.0099998, 1.4621172, 0.5378829]]),
        (0.1, [[1.0942196, 0.8106178, 0.9524187, 1.0], [0.9428949, 0.9619426, 1.3925477, 0.5122897]]),
        (-0.5, [[1.521538, 1.1271832, 1.3243606, 1.3905234], [1.3111175, 1.3376039, 1.9363704, 0.7123509]]),
    ],
)
def test_gates_of_continuous_sparsification(s_init, gates):
    """lolemacs/continuous-sparsification models/layers.py:SoftMaskedConv2d.compute_mask at temperature 1."""
    net = layer({"name": "continuous_sparsification", "s_init": s_init, "final_beta": 1.0}, CHANGES)
    close(net.extractor.sample(net, START)[NAME], gates)


def test_scores_between_rounds_of_continuous_sparsification():
    """lolemacs/continuous-sparsification models/layers.py:SoftMaskedConv2d.prune at temperature 10, from 0 and from 0.1."""
    for s_init, after in ((0.0, [[0.0, -3, 0, 0], [-0.2, 0, 0, -10]]), (0.1, [[0.1, -3, 0, 0.1], [-0.2, 0.1, 0.1, -10]])):
        method = {"name": "continuous_sparsification", "s_init": s_init, "final_beta": 10.0, "rounds": 2, "until": 10}
        net = layer(method, CHANGES)
        changes = [net.extractor.step(net, Clock(step, 20, 0)) for step in range(10)]
        close(next(change for change in changes if change).relevance[NAME], after)


@pytest.mark.parametrize(
    ("logits", "gradient", "density", "balanced"),
    [
        ([0.0] * 8, [3.0, 4, 0, 0, 0, 0, 0, 0], 0.25, [4.767767, 5.767767, *[1.767767] * 6]),
        ([0.0] * 8, [3.0, 4, 0, 0, 0, 0, 0, 0], 0.5, [3.0, 4, 0, 0, 0, 0, 0, 0]),  # within 1.1 of what was asked for
        (
            [1.0, -1, 2, 0, 0, -3, 0.5, -0.5],
            [0.3, -0.4, 0, 0, 1.2, 0, 0, 0],
            0.25,
            [0.7477723, 0.0477724, 0.239117, 0.5693607, 1.7693608, 0.1028873, 0.5352075, 0.5352075],
        ),
    ],
)
def test_concrete_balances_gradients(logits, gradient, density, balanced):
    """tanayarora09/TLAB search/concrete.py:FrozenConcrete.optimize_step, its first, with gradbalance."""
    net = layer({"name": "concrete", "density": density}, torch.tensor(logits).view(2, 4).tolist())
    net.relevance[NAME].grad = torch.tensor(gradient).view(2, 4)
    with torch.no_grad():
        net.extractor.adjust(net, START)
    close(net.relevance[NAME].grad.flatten(), balanced)


def test_concrete_divergence():
    """tanayarora09/TLAB search/concrete.py:KldLogit._compute_loss with reverse_kld."""
    sparse, dense = torch.tensor([[0.5, 0.5, -0.5], [0, 1, 2]]), torch.tensor([[1.0, 0, -1], [0.5, 2, 0]])
    assert create("concrete").follows_dense
    assert Classification().distance(dense, sparse, 1.0).item() == pytest.approx(0.5313901, abs=1e-6)


# --- before training ---


def one_layer():
    net = nn.Sequential(nn.Linear(4, 2, bias=False))
    net[0].weight.data = torch.tensor([[7, 5, 1, 0.5], [6, -2, 4, 2]])
    return net, torch.tensor([[1.0, 2, 3, 4]]).repeat(4, 1), [0, 0, 0, 1]


def two_layers(first=((1.0, -2), (3, 5)), second=((6.0, -1), (1, 2)), relu=True):
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU() if relu else nn.Identity(), nn.Linear(2, 2, bias=False))
    net[0].weight.data, net[2].weight.data = torch.tensor(first), torch.tensor(second)
    return net, torch.tensor([[1.0, 0.5], [-1, 1], [0.5, -0.2], [0.1, 0.3]]), [0, 1, 1, 0]


def found(extractor, net, images, labels):
    """The topology before any training, of a batch of all images."""
    split = Split(images, torch.tensor(labels))
    whole = supernet(extractor, net, epochs=0)
    train(whole, Data("given", split, split, 2), 0)
    return [mask.int().tolist() for mask in whole.masks.values()]


def test_snip():
    """mil-ad/snip snip.py:SNIP, which draws weights anew before it measures: here it did not."""
    assert found({"name": "snip", "density": 0.5}, *one_layer()) == [[[1, 1, 0, 0], [0, 0, 1, 1]]]
    assert found({"name": "snip", "density": 0.5}, *two_layers()) == [[[0, 0], [1, 1]], [[0, 1], [0, 1]]]
    assert found({"name": "snip", "density": 0.25}, *two_layers()) == [[[0, 0], [0, 1]], [[0, 0], [0, 1]]]


FORCE = ((-3.0, 4), (2, 3)), ((2.0, 4), (-2, -2))


@pytest.mark.parametrize(
    ("extractor", "expected"),
    [
        ({"name": "snip"}, [[[0, 1], [0, 1]], [[0, 0], [0, 0]]]),
        ({"name": "snip_iterative", "rounds": 2}, [[[0, 1], [0, 0]], [[1, 0], [0, 0]]]),
        ({"name": "snip_iterative", "rounds": 2, "revive": True}, [[[1, 1], [0, 0]], [[0, 0], [0, 0]]]),
    ],
)
def test_force(extractor, expected):
    """naver/force pruning/pruning_algos.py:iterative_pruning, prune_method 1 and 3, in two steps to 2 of 8; mil-ad/snip."""
    assert found({"density": 2 / 8, **extractor}, *two_layers(*FORCE)) == expected


@pytest.mark.parametrize(
    ("density", "expected"), [(4 / 8, [[[0, 0], [0, 1]], [[1, 1], [0, 1]]]), (5 / 8, [[[1, 0], [0, 1]], [[1, 1], [0, 1]]])]
)
def test_grasp(density, expected):
    """alecwangcq/GraSP pruner/GraSP.py:GraSP, ratios 5/8 and 4/8, which remove one weight fewer; linear layers not re-drawn.

    Two images a class, whose halves it puts through one after the other.
    """
    net, images, _ = two_layers()
    images = images[[0, 2, 1, 3]]
    assert found({"name": "grasp", "density": density}, net, images, [0, 1, 0, 1]) == expected


@pytest.mark.parametrize(
    ("density", "rounds", "expected"),
    [
        (0.5, 1, [[[0, 1], [0, 1]], [[1, 0], [0, 1]]]),
        (0.375, 1, [[[0, 0], [0, 1]], [[1, 0], [0, 1]]]),
        (0.375, 2, [[[0, 1], [0, 0]], [[1, 0], [0, 1]]]),
        (0.25, 100, [[[0, 1], [0, 0]], [[1, 0], [0, 0]]]),
    ],
)
def test_synflow(density, rounds, expected):
    """ganguli-lab/Synaptic-Flow Pruners/pruners.py:SynFlow.score and mask, exponential schedule of prune.py, global."""
    assert found({"name": "synflow", "density": density, "rounds": rounds}, *two_layers(relu=False)) == expected


# --- channels ---

FILTERS = torch.tensor([[3.0, 0], [2, 2], [3, 3], [6, 6]])
GAMMA = {"a": torch.tensor([[0.5, -2, 1, 0.1]]), "b": torch.tensor([[0.3, 0.7, -0.9, 0.2]])}  # (norms, channels)


def channel_net(extractor, filters=FILTERS, gamma=None):
    module = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    module[0].weight.data = filters.clone()
    if gamma is not None:
        module[1].weight.data = gamma.clone()
    recipe = Recipe(threads=1, device="cpu", epochs=1).resolve({})
    return Supernet(module, create(extractor), recipe, 0, units_of("channel", module, (2,), round_to=1))


def test_fpgm():
    """he-y/filter-pruning-geometric-median pruning_cifar10.py:Mask.get_filter_similar: the two of lowest sum go."""
    sums = distances(FILTERS, torch.ones(4, dtype=torch.bool))
    close(sums, [11.9442719, 9.3071358, 8.6568542, 16.6076989], 1e-6)
    net = channel_net("fpgm")
    assert net.units.keep(net.extractor.scores(net, Clock(0, 0, 0)), 0.5)[NAME].tolist() == [True, False, False, True]


def test_soft_filter_pruning():
    """he-y/soft-filter-pruning pruning_cifar10_resnet.py:Mask.get_filter_codebook, compress_rate 0.5 and 0.75."""
    for density, zero in ((0.5, [0, 1]), (0.75, [1])):
        net = channel_net({"name": "soft_filter_pruning", "density": density, "every": 20})
        net.apply(net.extractor.step(net, Clock(20, 100, 0)))
        expected = [[0.0, 0.0] if index in zero else row for index, row in enumerate(FILTERS.tolist())]
        assert net.weights[NAME].tolist() == expected


def test_hrank():
    """lmbxmu/HRank rank_generation.py:get_feature_hook, two images of four maps."""
    maps = torch.zeros(2, 4, 3, 3)  # the last map stays zero
    maps[:, 0], maps[:, 1] = torch.eye(3), 1
    maps[0, 2], maps[1, 2, 0, 0] = torch.tensor([[1.0, 2, 3], [2, 4, 6], [0, 0, 1]]), 1
    assert map_ranks(maps.unsqueeze(2)).tolist() == [3, 1, 1.5, 0]


def test_slimming():
    """Eric-mingjie/network-slimming main.py:updateBN, s = 1e-4: what it adds to the gradients of scales."""
    net = channel_net("slimming", gamma=torch.tensor([0.5, -2, 0, 0.1]))
    net.extractor.penalty(net, Clock(0, 100, 0)).backward()
    close(net.net[1].weight.grad, [1e-4, -1e-4, 0, 1e-4], 1e-9)


def test_early_bird_masks():
    """RICE-EIC/Early-Bird-Tickets main.py:EarlyBird.pruning, a quarter and a half of eight, and one more, go."""
    for kept, expected in ((5, [1, 1, 1, 0, 0, 1, 1, 0]), (3, [0, 1, 1, 0, 0, 0, 1, 0])):
        assert torch.cat(list(keep_global(scales(GAMMA), kept).values())).int().tolist() == expected


def test_early_bird_distances():
    """RICE-EIC/Early-Bird-Tickets main.py:EarlyBird.put and cal_dist, the last three of five masks of ten channels."""
    first, later = [1, 1, 1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 1, 0, 0, 0, 0]
    masks = torch.tensor([first, first, later, later, later]).bool()
    largest = [distance(masks[end - 3 : end]) for end in (3, 4, 5)]
    assert largest == pytest.approx([0.2, 0.2, 0])


def test_greg():
    """MingSun-Tse/Regularization-Pruning pruner/reg_pruner.py: _pick_pruned_wg, three times _greg_1, and _apply_reg."""
    filters = torch.tensor([[3.0, -4], [0.5, 0], [1, 0], [0, 2]])
    net = channel_net({"name": "greg", "delta": 1e-4, "every": 1, "start": 30, "end": 70}, filters)
    net.apply(net.extractor.step(net, Clock(30, 100, 0)))
    assert net.memory[NAME].tolist() == [False, True, True, False]
    net.extractor.penalty(net, Clock(33, 100, 0)).backward()
    close(net.weights[NAME].grad, [[0.0, 0], [1.5e-4, 0], [3e-4, 0], [0, 0]], 1e-9)


def test_taylor():
    """NVlabs/Taylor_pruning layers/gate_layer.py:GateLayer before a ReLU, and method 22 of pruning_engine.py: (w * grad)^2."""
    module = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    module[0].weight.data = torch.tensor([[1.0, 2], [-1, 1], [0.5, -1]])
    module[2].weight.data = torch.tensor([[1.0, -2, 3], [-1, 0.5, 1]])
    images, labels = torch.tensor([[1.0, 0.5], [-1, 1], [0.5, -0.2], [2, -1]]), torch.tensor([0, 1, 1, 0])
    nn.functional.cross_entropy(module(images), labels).backward()
    weights = {"0.weight": module[0].weight, "2.weight": module[2].weight}
    view = SimpleNamespace(units=units_of("channel", module, (2,), round_to=1), weights=weights)
    scores = importance(view, {name: weight.grad for name, weight in weights.items()})["0.weight"]
    close(scores, [0.0018697, 0.0035144, 0.0227474], 1e-7)


def test_norms_of_filters():
    """MingSun-Tse/Regularization-Pruning pruner/reg_pruner.py:_get_score, the mean |w| of two weights each."""
    filters = {"w": torch.tensor([[3.0, -4], [0.5, 0], [1, 0], [0, 2]])}
    close(filter_norms(filters, 1)["w"] / 2, [3.5, 0.25, 0.5, 1])


# --- what the changes of topology beside the step brought along: penalty, gate, factor, count ---


@pytest.mark.parametrize(("s_init", "total"), [(0.0, 8.0499582), (0.1, 7.6669307), (-0.5, 10.6610489)])
def test_penalty_of_continuous_sparsification(s_init, total):
    """lolemacs/continuous-sparsification main.py, its training loop, adds up SoftMaskedConv2d.mask, divided by sigma(s_0).

    At s_0 = 0 that is twice the sum of sigma(s).
    """
    method = {"name": "continuous_sparsification", "s_init": s_init, "final_beta": 1.0, "strength": 1.0}
    net = layer(method, CHANGES)
    assert net.extractor.penalty(net, START).item() == pytest.approx(total, abs=1e-5)


def test_gates_of_concrete():
    """tanayarora09/TLAB models/LotteryLayers.py:sample_concrete, tau = 2/3: sigma(a + L / tau), and its gradient."""
    logits = [[2.5, -2.5, 0.5, -0.5], [0, 1.5, 0, -2.197225]]
    net = layer({"name": "concrete", "temperature": 2 / 3}, logits)
    gates = net.extractor.sample(net, START)[NAME]
    close(gates, [[0.3109168, 0.6890832, 0.472977, 0.527023], [0.8386096, 0.3590611, 0.50015, 0.0013398]])
    (gates * torch.arange(1.0, 9).view(2, 4)).sum().backward()
    close(net.relevance[NAME].grad, [[0.2142475, 0.4284951, 0.7478092, 0.997079], [0.6767178, 1.3808173, 1.75, 0.0107041]])


def test_supermask_differentiates_the_factor():
    """N0ciple/ASLP strategies/supermask/layer_functions.py:linear_layer_forward with weight_rescale.

    masked_networks.py:MaskedDense of uber-research/deconstructing-lottery-tickets has the same formula, in tensorflow, and
    no stop_gradient; in torch it gave the same gradients. Four of eight are drawn: the factor is 2.
    """
    net = layer("supermask", LOGITS)
    close(effective(net), [[2.0, 0, 6, 0], [0, -12, 0, -16]])
    effective(net).sum().backward()
    given = [[0.490726, 0.0701037, 2.5850406, -0.7050111], [3.75, -1.0440254, 4.75, -0.4969432]]
    close(net.relevance[NAME].grad, given)


def test_edge_popup_keeps_the_exact_total_where_the_authors_round_each_layer_up():
    """allenai/hidden-networks utils/conv_type.py:GetSubnet, k = 0.3: int(0.7 * 8) go, so their top 3 of 8 stay.

    Ours is 0.3 * 8 to the nearest, 2, and at k = 3/8, where nothing is rounded, the same three.
    """
    kept = {k: layer({"name": "edge_popup", "density": k}, SCORES).final()[NAME].int().tolist() for k in (0.3, 0.375)}
    assert kept[0.375] == [[0, 1, 0, 1], [0, 1, 0, 0]]
    assert sum(map(sum, kept[0.3])) == 2
