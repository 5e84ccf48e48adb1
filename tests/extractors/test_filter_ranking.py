"""Filter rankings by hand: which of four channels each criterion drops, and what none of them can rank."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from toys import pictures, points, run_config, supernet

from subnet_search import Recipe, RunConfig
from subnet_search.core.errors import UserError
from subnet_search.data import from_user
from subnet_search.extraction.config_file import check
from subnet_search.extractors import Clock, create
from subnet_search.extractors.methods._channel_ranking import channels
from subnet_search.extractors.methods.taylor import importance
from subnet_search.structure.channel_groups import couple
from subnet_search.structure.units_of_network import units_of
from subnet_search.topology.channels import Channels
from subnet_search.topology.scores import activity, distances, filter_norms, map_ranks, scales
from subnet_search.topology.select import NotANumber
from subnet_search.training import Supernet, train

FILTERS = torch.tensor([[3.0, 0], [2, 2], [3, 3], [6, 6]])
GAMMA = torch.tensor([0.5, -2.0, 1.0, 0.1])
LOOKING = create({"name": "hrank", "start": 0})
DATA_DRIVEN = ("apoz", "hrank")


def settings(name, epochs=0, **hyperparameters):
    recipe = {"epochs": epochs, "batch_size": 32, "threads": 1, "device": "cpu"}
    return check(
        RunConfig, {"extractor": {"name": name, **hyperparameters}, "recipe": recipe, "unit": "channel", "round_to": 1}
    )


def neurons():
    """Four hidden neurons whose filters are FILTERS, and scales of their batch norm GAMMA."""
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].weight.copy_(FILTERS)
        net[1].weight.copy_(GAMMA)
    return net


def maps(*weights_and_biases, reader=None):
    """Channels that are ReLU(w * image + b), read by a linear layer or by `reader`."""
    count = len(weights_and_biases)
    reader = reader or nn.Sequential(nn.Flatten(), nn.Linear(count * 64, 3))
    net = nn.Sequential(nn.Conv2d(1, count, 1), nn.ReLU(), reader)
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([w for w, _ in weights_and_biases]).view(count, 1, 1, 1))
        net[0].bias.copy_(torch.tensor([b for _, b in weights_and_biases]))
    return net


def watch(name, net, data, look, **hyperparameters):
    """Two epochs of five steps, a look after each step; channels first go after two steps, or in place of step 2."""
    method = create({"name": name, "start": 2, **hyperparameters})
    recipe = Recipe(epochs=2, batch_size=32, lr=0.1, threads=1, device="cpu").resolve({})
    units = units_of("channel", net, data.shape, round_to=1)
    train(Supernet(net, method, recipe, 0, units), data, 0, on_step=lambda clock: look())


def ranks_of(net, images):
    """What hrank measures on images."""
    view = supernet(LOOKING, net)
    view.units = units_of("channel", net, tuple(images.shape[1:]), round_to=1)
    view.forward(images, Clock(0, 1, 0))
    return LOOKING.measured(view)


def dropped(name, net, data, density, **more):
    mask = run_config(settings(name, density=density, **more), module=net, data=data).masks["0.weight"]
    return [index for index, lives in enumerate(mask.flatten(1).any(1).tolist()) if not lives]


# --- by weights alone ---


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("l1_filters", 0, 1),  # sums 3, 4, 6, 12
        ("l2_filters", 1, 0),  # norms 3, 2.8, 4.2, 8.5
        ("fpgm", 2, 1),  # sums of distances 11.9, 9.3, 8.7, 16.6
        ("bn_scale", 3, 0),  # 0.5, 2, 1, 0.1
    ],
)
def test_what_each_drops_first(name, first, second):
    data = points(40, 2, 2)
    assert dropped(name, neurons(), data, 0.75) == [first]
    assert dropped(name, neurons(), data, 0.5) == sorted([first, second])


def test_norms_of_filters():
    rows = {"w": torch.tensor([[3.0, -4.0], [0, 0]])}
    assert filter_norms(rows, 1)["w"].tolist() == [7, 0]
    assert filter_norms(rows, 2)["w"].tolist() == [5, 0]


def test_distances_to_those_that_live():
    rows = torch.tensor([[0.0, 0], [3, 4], [0, 1]])
    assert distances(rows, torch.tensor([True, True, False])).tolist() == pytest.approx([5, 5, 1 + 18**0.5])


def test_filters_dropped_before_do_not_hold_others_in_place():
    """Of 0, 1 and 10 the middle goes first; then 0 and 10 are at one distance, although 1 was next to 0."""
    net, name = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 2)), "0.weight"
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[0.0], [1], [10]]))
    view = SimpleNamespace(units=units_of("channel", net, (1,), round_to=1), weights={name: net[0].weight})
    view.masks = {name: torch.tensor([True, False, True])}
    assert create("fpgm").scores(view, Clock(0, 0, 0))[name].tolist() == [10, 10, 10]
    view.masks = {name: torch.tensor([True, True, True])}
    assert create("fpgm").scores(view, Clock(0, 0, 0))[name].tolist() == [11, 10, 19]


def test_a_channel_that_two_layers_compute_is_both_their_filters():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.out = nn.Linear(1, 2), nn.Linear(1, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.out(self.one(x) + self.two(x))

    net = Residual()
    with torch.no_grad():
        net.one.weight.copy_(torch.tensor([[1.0], [-2]]))
        net.two.weight.copy_(torch.tensor([[5.0], [3]]))
    units = Channels({n: p.shape for n, p in net.named_parameters() if p.dim() > 1}, couple(net, torch.ones(2, 1)).groups)
    weights = {name: net.get_parameter(name) for name in units.weights}
    [scores] = create("l1_filters").scores(SimpleNamespace(units=units, weights=weights), Clock(0, 0, 0)).values()
    assert scores.tolist() == [6, 5]


def test_a_channel_behind_two_batch_norms_has_their_mean_scale():
    assert scales({"w": torch.tensor([[1.0, -2.0], [3.0, 0.0]])})["w"].tolist() == [2, 1]


def test_rounds_drop_among_what_is_left():
    net, seen = neurons(), []
    watch("l1_filters", net, points(200, 2, 2), lambda: seen.append((net[3].weight != 0).any(0)), density=0.25, rounds=2, end=6)
    assert [int(alive.sum()) for alive in seen] == [4] * 1 + [2] * 4 + [1] * 5
    assert not (seen[-1] & ~seen[2]).any()


# --- by what channels give ---


def test_zero_activations():
    features = {"w": torch.tensor([[[0.0, 0], [1, 0]], [[0, 2], [3, 4]]])}  # two images, two channels, two positions
    assert activity(features)["w"].tolist() == [0.25, 0.75]


@pytest.mark.parametrize("batches", [1, 3])
def test_what_is_zero_most_often_goes_first(batches):
    """Never zero; zero where the image is darker than its mean; there and a little above; always zero."""
    channels = [(0.0, 1.0), (1.0, 0.0), (1.0, -0.5), (0.0, -1.0)]
    for density, gone in ((0.75, [3]), (0.5, [2, 3]), (0.25, [1, 2, 3])):
        net = maps(*channels)
        assert dropped("apoz", net, pictures(), density, epochs=2, start=batches - 1, batches=batches) == gone


@pytest.mark.parametrize("reader", [None, nn.Sequential(nn.Conv2d(3, 3, 8), nn.Flatten())], ids=["linear", "convolution"])
@pytest.mark.parametrize(("density", "gone"), [(0.67, [1]), (0.34, [1, 2])])
def test_what_has_the_lowest_rank_goes_first(reader, density, gone):
    """Maps of full rank, of rank zero, and of rank one (a constant)."""
    net = maps((1.0, 0.0), (0.0, -1.0), (0.0, 1.0), reader=reader)
    assert dropped("hrank", net, pictures(), density, epochs=1, start=0, batches=1) == gone


def test_ranks_are_those_of_the_library():
    rng = torch.Generator().manual_seed(0)
    thin = [torch.randn(5, 3, 6, k, generator=rng) @ torch.randn(5, 3, k, 6, generator=rng) for k in (1, 2, 6)]
    maps = torch.stack(thin, 2)  # (images, channels, maps, height, width), of ranks 1, 2 and 6
    assert map_ranks(maps).tolist() == [3, 3, 3]
    mixed = maps[:, 0].clone()  # as three channels
    mixed[:2, 1] = 0
    ranks = torch.tensor([[int(torch.linalg.matrix_rank(one)) for one in image] for image in mixed])
    assert map_ranks(mixed).tolist() == pytest.approx(ranks.float().mean(0).tolist())
    assert ranks.float().mean(0).tolist() == pytest.approx([1, 1.2, 6])


@pytest.mark.parametrize(
    ("first", "reader"),
    [
        (nn.Conv2d(1, 4, 1), nn.Sequential(nn.Flatten(), nn.Linear(4 * 64, 3))),
        (nn.Conv2d(1, 4, 1), nn.Sequential(nn.Conv2d(4, 3, 8), nn.Flatten())),
        (nn.Conv2d(1, 4, 1), nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 16, 3))),
    ],
)
def test_maps_are_what_is_read_put_together_as_it_was(first, reader):
    net, images = nn.Sequential(first, nn.ReLU(), reader), torch.randn(6, 1, 8, 8)
    expected = net[1](first(images)).detach()
    expected = reader[0](expected) if isinstance(reader[0], nn.MaxPool2d) else expected
    assert ranks_of(net, images)["0.weight"].tolist() == pytest.approx(map_ranks(expected).tolist())


def test_channels_that_are_one_have_the_mean_rank_of_their_maps():
    """A grouped convolution keeps or drops the channels at the same place of both its groups."""
    grouped = nn.Conv2d(2, 4, 1, groups=2)
    net = nn.Sequential(grouped, nn.ReLU(), nn.Conv2d(4, 3, 8), nn.Flatten())
    with torch.no_grad():
        grouped.weight.copy_(torch.tensor([1.0, 0, 0, 0]).view(4, 1, 1, 1))
        grouped.bias.copy_(torch.tensor([9.0, 1, 0, 1]))
    images = torch.randn(6, 2, 8, 8)
    assert ranks_of(net, images)["0.weight"].tolist() == [8 / 2, 1]


# --- by gradients ---


def test_importance_is_the_squared_sum_of_what_reads_a_channel():
    net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2))
    weights = {"0.weight": torch.ones(2, 1), "2.weight": torch.tensor([[1.0, 2], [3, 4]])}
    gradients = {"0.weight": torch.ones(2, 1), "2.weight": torch.tensor([[1.0, 0.5], [1, -1]])}
    view = SimpleNamespace(units=units_of("channel", net, (1,), round_to=1), weights=weights)
    assert importance(view, gradients)["0.weight"].tolist() == [16, 9]  # (1 + 3)^2 and (1 - 4)^2


def test_importance_is_the_derivative_by_a_gate_after_the_batch_norm():
    """As the paper has it; over the filter itself, whose scale the batch norm takes away, the sum would be nothing."""
    torch.manual_seed(0)
    first, norm, second = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 6)
    x, y, gate = torch.randn(16, 1, 8, 8), torch.arange(16) % 3, torch.ones(4, requires_grad=True)
    net = nn.Sequential(first, norm, nn.ReLU(), second, nn.Flatten())
    units = units_of("channel", net, (1, 8, 8), round_to=1)
    logits = second((norm(first(x)) * gate.view(1, 4, 1, 1)).relu()).flatten(1)
    nn.functional.cross_entropy(logits, y).backward()
    weights = {"0.weight": first.weight, "3.weight": second.weight}
    view = SimpleNamespace(units=units, weights=weights)
    found = importance(view, {name: weight.grad for name, weight in weights.items()})["0.weight"]
    assert found.tolist() == pytest.approx(gate.grad.square().tolist(), rel=1e-3)
    over_filters = (first.weight * first.weight.grad).flatten(1).sum(1).square()
    assert over_filters.max() < 1e-4 * found.min()


def test_an_untrained_network_is_measured_before_training():
    """Nothing reads the last neuron, so its importance is zero."""
    net = neurons()
    with torch.no_grad():
        net[3].weight[:, 3] = 0
    assert dropped("taylor", net, points(80, 2, 2), 0.75) == [3]


# --- when it is measured ---


@pytest.mark.parametrize(
    ("options", "measured"),
    [
        ({"start": 6, "batches": 3}, [4, 5, 6]),
        ({"start": 1, "batches": 5}, [0, 1]),
        ({"start": 2, "end": 8, "rounds": 2, "batches": 4}, [0, 1, 2, 5, 6, 7, 8]),
        ({"start": 2, "end": 4, "rounds": 2, "batches": 4}, [0, 1, 2, 3, 4]),
    ],
)
def test_the_batches_before_channels_are_dropped_are_measured(options, measured):
    method = create({"name": "hrank", **options})
    assert [step for step in range(10) if method.looks_at(Clock(step, 10, 0))] == measured


def test_scores_are_added_up_over_batches_and_begin_anew_with_every_round(monkeypatch):
    method = create({"name": "taylor", "start": 2, "end": 4, "rounds": 2, "batches": 2, "density": 0.25})
    batches = iter([1.0, 2, 4, 8])
    monkeypatch.setattr(type(method), "measured", lambda self, net: {"w": torch.full((4,), next(batches))})
    net, ranked = SimpleNamespace(memory={}, masks=None, units=None), []
    net.units = SimpleNamespace(keep=lambda scores, density, *_: ranked.append((scores["w"][0].item(), density)))
    for step in range(6):
        change = method.step(net, Clock(step, 6, 0))
        net.memory |= (change and change.memory) or {}
    assert ranked == [(1 + 2, 0.5), (4 + 8, 0.25)]


def test_nothing_is_trained_while_it_is_measured():
    net, seen = maps((1.0, 0.0), (0.5, 0.5)), []
    watch("taylor", net, pictures(200), lambda: seen.append(net[0].weight.detach().clone()), start=6, batches=3)
    moved = [not now.equal(before) for before, now in pairwise(seen)]
    assert moved == [True, True, True, False, False, False, *[True] * 3]  # what steps 1 to 9 did


# --- what cannot be ranked ---


@pytest.mark.parametrize("name", DATA_DRIVEN)
def test_feature_maps_need_training_steps(name):
    with pytest.raises(
        UserError, match=f"{name} looks at feature maps in training steps, and there are none: set recipe.epochs"
    ):
        run_config(settings(name), module=maps((1.0, 0.0), (2.0, 0.0)), data=pictures())


def test_without_batch_norms_there_are_no_scales():
    net = nn.Sequential(nn.Linear(10, 4), nn.ReLU(), nn.Linear(4, 3))
    with pytest.raises(
        UserError, match="bn_scale ranks channels by the scales of batch norms, and this network's channels have"
    ):
        run_config(settings("bn_scale"), module=net, data=points(60))


def test_channels_without_a_batch_norm_stay():
    net = nn.Sequential(nn.Linear(10, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    with torch.no_grad():
        net[1].weight.copy_(GAMMA)
    masks = run_config(settings("bn_scale", density=0.75), module=net, data=points(60)).masks
    assert masks["0.weight"].any(1).tolist() == [False, True, True, False]
    assert masks["3.weight"].any(1).all()
    with pytest.raises(UserError, match=r"bn_scale.scope must be global, as no batch norm ranks the channels of 3"):
        run_config(settings("bn_scale", scope="uniform"), module=net, data=points(60))


def test_without_relus_there_are_no_zeros():
    net = nn.Sequential(nn.Linear(10, 4), nn.Tanh(), nn.Linear(4, 3))
    with pytest.raises(UserError, match="apoz counts activations that are zero, and in this network none ever is"):
        run_config(settings("apoz", epochs=2), module=net, data=points(60))


@pytest.mark.parametrize(
    ("conv", "shape", "size"),
    [
        (nn.Conv2d, (1, 6, 8), 48),
        (nn.Conv1d, (1, 49), 49),  # a square number, but no map
    ],
)
def test_a_map_that_is_not_square_has_no_rank_here(conv, shape, size):
    net = nn.Sequential(conv(1, 4, 1), nn.ReLU(), conv(4, 2, 1), nn.Flatten(), nn.Linear(2 * size, 3))
    data = from_user((torch.randn(60, *shape), torch.arange(60) % 3))
    with pytest.raises(UserError, match=f"hrank needs square feature maps, and those of 0 are not: {size} numbers each"):
        run_config(settings("hrank", epochs=2, start=0), module=net, data=data)


def test_maps_that_are_not_finite():
    with pytest.raises(NotANumber, match="a feature map is not finite"):
        map_ranks(torch.tensor([[[[float("nan")]]]]))


def test_only_channels_have_filters():
    with pytest.raises(UserError, match="l1_filters does not support 'weight', only channel"):
        check(RunConfig, {"extractor": "l1_filters", "unit": "weight"})
    with pytest.raises(UserError, match="unit=channel"):
        channels(supernet("l1_filters"))
