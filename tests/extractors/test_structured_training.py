"""Structured methods that prepare a network for what it loses: penalties, projections and masks worked out by hand."""

import pytest
import torch
from torch import nn
from toys import points, run_config

from subnet_search import Recipe, RunConfig, UserError
from subnet_search.extraction.config_file import check
from subnet_search.extractors import Clock, create
from subnet_search.extractors.methods.early_bird import distance
from subnet_search.extractors.methods.sr_ste import straight_through
from subnet_search.nets import prunable
from subnet_search.structure.units_of_network import units_of
from subnet_search.training import Supernet, train

FILTERS = torch.tensor([[3.0, -4.0], [0.5, 0.0], [1.0, 0.0], [0.0, 2.0]])  # norms 5, 0.5, 1, 2


def hidden(norm=True, inputs=2, channels=4):
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(channels)] if norm else []
    return nn.Sequential(nn.Linear(inputs, channels), *middle, nn.ReLU(), nn.Linear(channels, 3))


def supernet(extractor, net, unit="channel", **recipe):
    method = create(extractor)
    inputs = next(iter(prunable(net).values())).shape[1]
    units = units_of(unit, net, (inputs,), round_to=1 if unit == "channel" else None)
    settings = Recipe(**{"threads": 1, "device": "cpu", "epochs": 6, "batch_size": 32, "lr": 0.05, **recipe})
    return Supernet(net, method, settings.resolve({}), 0, units)


def at(step, total=100):
    return Clock(step, total, 0)


def step(net, number):
    """The change of a step of 100, made."""
    with torch.no_grad():
        change = net.extractor.step(net, at(number))
    if change:
        net.apply(change)
    return change


def with_filters(extractor):
    net = hidden()
    net[0].weight.data.copy_(FILTERS)
    return supernet(extractor, net)


def with_scales(extractor, scales=(3.0, -1.0, 0.5, 2.0)):
    net = hidden()
    net[1].weight.data.copy_(torch.tensor(scales))
    return supernet(extractor, net)


def test_slimming():
    net = with_scales({"name": "slimming", "strength": 0.01})
    penalty = net.extractor.penalty(net, at(49))
    assert penalty.item() == pytest.approx(0.01 * 6.5)
    penalty.backward()
    assert net.net[1].weight.grad.tolist() == pytest.approx([0.01, -0.01, 0.01, 0.01])
    assert step(net, 49) is None
    step(net, 50)
    assert net.masks["0.weight"].tolist() == [True, False, False, True]
    assert net.extractor.penalty(net, at(50)) is None  # of the first step after channels are dropped


def test_a_channel_behind_two_norms_is_ranked_by_their_mean():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.out = nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(4, 3)
            self.first, self.second = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

        def forward(self, x):
            x = self.first(self.a(x))
            return self.out(x + self.second(self.b(x)))

    module = Residual()
    module.first.weight.data.copy_(torch.tensor([4.0, 1.0, 1.0, 2.0]))
    module.second.weight.data.copy_(torch.tensor([-1.0, 0.0, 5.0, 1.0]))
    net = supernet({"name": "slimming", "strength": 1}, module)
    step(net, 50)  # means 2.5, 0.5, 3, 1.5
    [mask] = net.masks.values()
    assert mask.tolist() == [True, False, True, False]
    assert net.extractor.penalty(net, at(49)).item() == 15


def bare():
    return hidden(norm=False)


def half_normed():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 3))


@pytest.mark.parametrize("name", ["slimming", "early_bird"])
def test_channels_without_a_norm_stay(name):
    net = supernet(name, half_normed())
    net.net[1].weight.data.copy_(torch.tensor([3.0, -1.0, 0.5, 2.0]))
    net.apply(net.extractor.begin(net, at(0), None))
    step(net, 50)  # half of six
    assert net.masks["0.weight"].tolist() == [True, False, False, False]
    assert net.masks["3.weight"].tolist() == [True, True]


@pytest.mark.parametrize(
    ("extractor", "module", "said"),
    [
        (
            "slimming",
            bare,
            "slimming ranks channels by the scales of batch norms, and this network's channels have none",
        ),
        ("early_bird", bare, "early_bird ranks channels by the scales of batch norms"),
        (
            {"name": "slimming", "density": 0.4},
            half_normed,
            r"density 0\.4 cannot be met: channels without a batch norm stay, which leaves at least 0\.5",
        ),
        (
            {"name": "slimming", "scope": "uniform"},
            half_normed,
            "slimming.scope must be global, as no batch norm ranks the channels of 3, which all stay",
        ),
    ],
)
def test_scales_that_are_not_there(extractor, module, said):
    net = supernet(extractor, module())
    with pytest.raises(UserError, match=said):
        net.extractor.check_network(net)


def test_group_lasso():
    net = with_filters({"name": "group_lasso", "strength": 0.1})
    net.net[0].weight.data[1] = 0
    penalty = net.extractor.penalty(net, at(49))
    assert penalty.item() == pytest.approx(0.1 * (5 + 0 + 1 + 2))
    penalty.backward()  # each filter's direction; none where there is no direction
    assert net.net[0].weight.grad.flatten().tolist() == pytest.approx([0.06, -0.08, 0, 0, 0.1, 0, 0, 0.1])
    step(net, 50)
    assert net.masks["0.weight"].tolist() == [True, False, False, True]
    assert net.extractor.penalty(net, at(50)) is None


@pytest.mark.parametrize("name", ["slimming", "group_lasso"])
def test_a_strong_penalty_draws_what_it_is_on_to_zero(name):
    sizes = []
    for strength in (0.0, 0.1):
        net = supernet({"name": name, "strength": strength, "start": 1.0}, hidden(inputs=10, channels=16))
        train(net, points(400), 0)
        found = net.norms["0.weight"][0] if name == "slimming" else net.weights["0.weight"]
        sizes.append(found.abs().sum().item())
    assert sizes[1] < sizes[0] / 2


def test_growing_regularisation():
    net = with_filters({"name": "greg", "start": 10, "end": 50, "every": 10})
    assert net.extractor.penalty(net, at(9)) is None
    step(net, 10)
    assert net.memory["0.weight"].tolist() == [False, True, True, False]
    squares = 0.5**2 + 1**2
    for number, factor in ((19, 0), (20, 1 / 3), (29, 1 / 3), (30, 2 / 3), (40, 1), (49, 1)):
        assert net.extractor.penalty(net, at(number)).item() == pytest.approx(factor / 2 * squares)
    net.net[0].weight.data[0] = 0  # what was chosen stays chosen
    step(net, 50)
    assert net.masks["0.weight"].tolist() == [True, False, False, True]
    assert net.extractor.penalty(net, at(50)) is None


def test_a_penalty_grows_by_delta_up_to_its_ceiling():
    greg = create({"name": "greg", "start": 10, "end": 90, "every": 5, "delta": 0.4, "ceiling": 0.9})
    assert [greg.factor(at(number)) for number in (14, 15, 20, 25, 90)] == pytest.approx([0, 0.4, 0.8, 0.9, 0.9])


def test_a_penalty_needs_time_to_grow():
    net = hidden()
    method = create({"name": "greg", "start": 10, "end": 20, "every": 10})
    with pytest.raises(UserError, match=r"greg\.every: a penalty cannot grow every 10 steps between step 10 and step 20"):
        method.check(units_of("channel", net, (2,)), at(0))


def test_chosen_channels_are_small_when_they_are_dropped():
    net = supernet({"name": "greg", "ceiling": 2.0}, hidden(inputs=10, channels=16))
    norms = []

    def look(clock):
        if clock.step == net.extractor._phase(clock)[1] - 2:  # they are dropped after the next step
            chosen = net.memory["0.weight"]
            assert net.masks["0.weight"].all()
            norms.extend(net.weights["0.weight"][mask].norm().item() for mask in (chosen, ~chosen))

    train(net, points(400), 0, on_step=look)
    assert norms[0] < norms[1] / 5
    assert net.masks["0.weight"].tolist() == (~net.memory["0.weight"]).tolist()


def test_soft_filter_pruning():
    net = with_filters({"name": "soft_filter_pruning", "every": 10, "end": 90})
    read = net.weights["3.weight"].clone()
    assert step(net, 9) is None
    step(net, 10)
    assert net.weights["0.weight"].tolist() == [[3, -4], [0, 0], [0, 0], [0, 2]]
    assert net.weights["3.weight"].equal(read)
    assert net.masks["0.weight"].all()
    net.net[0].weight.data[1] = 9  # it has grown since
    step(net, 20)
    assert net.weights["0.weight"].tolist() == [[3, -4], [9, 9], [0, 0], [0, 0]]
    step(net, 90)
    assert net.masks["0.weight"].tolist() == [True, True, False, False]
    assert step(net, 95) is None


def test_zero_filters_go_on_being_trained():
    net = supernet({"name": "soft_filter_pruning", "every": 5, "end": 1.0}, hidden(inputs=10, channels=8))
    zero, seen = [], []

    def look(clock):
        filters = net.weights["0.weight"]
        if clock.next.step % 5 == 0:
            zero.append(int((filters == 0).all(1).sum()))
        elif clock.next.step % 5 == 1 and net.masks["0.weight"].all():
            seen.append(clock.step)
            assert filters.any(1).all()  # all have moved

    train(net, points(400), 0, on_step=look)  # 66 steps; the change after 65 drops filters and sets none to zero
    assert zero[:-1] == [4] * 12
    assert seen == list(range(0, 65, 5))
    assert net.masks["0.weight"].sum() == 4


def block(extractor):
    net = nn.Sequential(nn.Linear(4, 2, bias=False))
    net[0].weight.data.copy_(torch.tensor([[1.0, -3.0, 0.0, 0.2], [2.0, 2.0, 0.2, 0.4]]))
    return supernet(
        {"name": "weight_unification", "start": 10, "end": 60, "every": 10, "rho": 0.1, **extractor}, net, "block:2"
    )


def test_weight_unification():
    net = block({})
    assert net.extractor.penalty(net, at(9)) is None
    step(net, 10)
    first = torch.tensor([[2.0, -2, 0, 0], [2, 2, 0, 0]])  # mean |w| is 2, and 0.2, which is the lower half
    assert net.memory["z.0.weight"].equal(first)
    assert net.extractor.penalty(net, at(10)).item() == pytest.approx(0.1 / 2 * (1 + 1 + 0.04 + 0.04 + 0.16))
    assert step(net, 19) is None
    net.weights["0.weight"].data.copy_(torch.tensor([[2.0, -2, 0, 0], [2, 2, 4, 4]]))
    step(net, 20)  # W + U is W; its means are 2 and 2, of which the first lives; U = W - Z
    assert net.memory["z.0.weight"].equal(first)
    assert net.memory["u.0.weight"].tolist() == [[0, 0, 0, 0], [0, 0, 4, 4]]
    assert net.extractor.penalty(net, at(20)).item() == pytest.approx(0.1 / 2 * (8**2 + 8**2))  # W - Z + U
    step(net, 30)  # W + U: means 2 and 4
    z, u = [[0, 0, 0, 0], [0, 0, 4, 4]], [[2, -2, 0, 0], [2, 2, 4, 4]]
    assert net.memory["z.0.weight"].tolist() == z
    assert net.memory["u.0.weight"].tolist() == u


def test_a_unified_block_is_trained_as_one_magnitude():
    net = block({})
    step(net, 10)
    assert net.extractor.penalty(net, at(59)) is not None
    change = step(net, 60)
    assert change.reset_optimizer
    assert net.extractor.penalty(net, at(60)) is None
    assert change.masks["0.weight"].tolist() == [[True, False]]
    assert net.weights["0.weight"].tolist() == [[2, -2, 0, 0], [2, 2, 0, 0]]
    net.weights["0.weight"].grad = torch.ones(2, 4)
    net.extractor.adjust(net, at(59))
    assert net.weights["0.weight"].grad.equal(torch.ones(2, 4))
    net.extractor.adjust(net, at(60))
    assert net.weights["0.weight"].grad.tolist() == [[0.5, -0.5, 0, 0], [0.5, 0.5, 0, 0]]  # (1 - 1 + 1 + 1) / 4


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_blocks_share_a_magnitude_in_the_end(optimizer):
    recipe = {"epochs": 6, "batch_size": 32, "threads": 1, "device": "cpu", "optimizer": optimizer, "lr": 0.01}
    config = check(RunConfig, {"extractor": "weight_unification", "unit": "block:2", "recipe": recipe})
    subnet = run_config(config, module=hidden(inputs=10, channels=16), data=points(400))
    magnitudes = {}
    for name, weight in subnet.effective_weights().items():
        if name.endswith(".weight") and weight.dim() == 2:
            rows, columns = (weight.shape[0] // 2 * 2, weight.shape[1] // 2 * 2)
            blocks = weight[:rows, :columns].reshape(rows // 2, 2, -1, 2).transpose(1, 2).reshape(-1, 4).abs()
            magnitudes[name] = blocks
    assert magnitudes.keys() == {"0.weight", "3.weight"}
    found = torch.cat(list(magnitudes.values()))
    assert torch.allclose(found, found[:, :1].expand_as(found), rtol=1e-5, atol=0)
    assert 0.3 < (found == 0).all(1).float().mean() < 0.7
    assert len(found[:, 0].unique()) > 10  # and not all the same one


def test_mask_distance():
    masks = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)
    assert distance(masks) == 0.5  # two of four differ from the second, none from the first
    assert distance(masks[[0, 2]]) == 0


def test_early_bird_draws_when_the_mask_is_stable():
    net = with_scales({"name": "early_bird", "every": 2, "window": 3, "strength": 0.01})
    net.apply(net.extractor.begin(net, at(0), None))
    scales = net.net[1].weight.data
    for number, order in ((2, [3, 1, 0, 2]), (4, [3, 1, 0, 2]), (6, [0, 1, 2, 3]), (8, [0, 1, 2, 3])):
        scales.copy_(torch.tensor(order).float())
        assert step(net, number).masks is None
        assert step(net, number + 1) is None
        assert net.extractor.penalty(net, at(number)).item() == pytest.approx(0.06)
    assert net.memory["masks"].int().tolist() == [[1, 0, 0, 1], [0, 0, 1, 1], [0, 0, 1, 1]]
    step(net, 10)  # three times the same
    assert net.masks["0.weight"].tolist() == [False, False, True, True]
    assert net.extractor.penalty(net, at(11)) is None
    assert step(net, 12) is None
    assert step(net, 50) is None


def test_early_bird_draws_the_last_mask_when_none_is_stable():
    net = with_scales({"name": "early_bird", "every": 2, "until": 9})
    net.apply(net.extractor.begin(net, at(0), None))
    for number in range(2, 9, 2):
        net.net[1].weight.data.copy_(torch.tensor([3.0, 2, 1, 0] if number % 4 else [0.0, 1, 2, 3]))
        assert step(net, number).masks is None
    step(net, 9)
    assert net.masks["0.weight"].tolist() == [False, False, True, True]


def test_early_bird_draws_long_before_the_end():
    net = supernet({"name": "early_bird", "every": 3, "until": 60}, hidden(inputs=10, channels=16), lr=0.01)
    train(net, points(400), 0)
    assert 15 <= int(net.memory["drawn"]) < 60
    assert net.masks["0.weight"].sum() == 8


WEIGHTS = [0.5, -2.0, 1.0, 0.1, 0.0, 3.0, 3.0, 1e-40]  # the largest two of each four: 1 and 2, 5 and 6


def test_the_straight_through_gate():
    weight = torch.tensor([WEIGHTS], requires_grad=True)
    mask = torch.tensor([[0, 1, 1, 0, 0, 1, 1, 0]], dtype=torch.bool)
    gate = straight_through(weight, mask, 0.1)
    assert gate.equal(mask.float())
    (weight * gate * torch.arange(1.0, 9)).sum().backward()
    decay = [0.1 * 0.5, 0, 0, 0.1 * 0.1, 0, 0, 0, 0]
    straight = [1, 2, 3, 4, 0, 6, 7, 0]  # none where 1 / w is none
    assert weight.grad[0].tolist() == pytest.approx([a + b for a, b in zip(straight, decay, strict=True)])


def test_sr_ste():
    net = nn.Sequential(nn.Linear(8, 1, bias=False))
    net[0].weight.data.copy_(torch.tensor([WEIGHTS]))
    net = supernet({"name": "sr_ste", "decay": 0.01}, net, "2:4")
    kept = [False, True, True, False, False, True, True, False]
    assert net.final()["0.weight"].tolist() == [kept]
    inputs = torch.arange(1.0, 9)[None]
    logits = net.forward(inputs, at(0))
    assert logits.item() == pytest.approx(-2 * 2 + 1 * 3 + 3 * 6 + 3 * 7)
    logits.backward()
    expected = [1 + 0.01 * 0.5, 2, 3, 4 + 0.01 * 0.1, 0, 6, 7, 0]
    assert net.weights["0.weight"].grad.tolist()[0] == pytest.approx(expected)
    assert net.evaluator()(inputs).item() == logits.item()


def test_sr_ste_below_n_of_m():
    net = nn.Sequential(nn.Linear(8, 1, bias=False))
    net[0].weight.data.copy_(torch.tensor([WEIGHTS]))
    net = supernet({"name": "sr_ste", "density": 0.375}, net, "2:4")  # three, of those that 2:4 leaves
    assert net.final()["0.weight"].tolist() == [[False, True, False, False, False, True, True, False]]


def test_sr_ste_trains_what_it_drops():
    net = supernet("sr_ste", hidden(inputs=12, channels=16), "2:4")
    before, first = net.weights["0.weight"].detach().clone(), net.final()
    outcome = train(net, points(400, inputs=12), 0)
    assert net.weights["0.weight"].ne(before).all()
    assert not net.final().same(first)
    assert net.final()["0.weight"].view(16, 3, 4).sum(2).eq(2).all()
    assert outcome.val["accuracy"] > 0.7


def test_sr_ste_is_for_n_of_m():
    with pytest.raises(UserError, match="sr_ste does not support 'weight', only n:m"):
        check(RunConfig, {"extractor": "sr_ste", "unit": "weight"})
    assert check(RunConfig, {"extractor": "sr_ste"}).unit == "2:4"
    config = check(RunConfig, {"extractor": {"name": "sr_ste", "density": 0.7}, "unit": "2:4", "recipe": {"epochs": 1}})
    with pytest.raises(UserError, match=r"2:4 keeps at most 0\.5"):
        run_config(config, module=hidden(inputs=12, channels=16), data=points(100, inputs=12))


@pytest.mark.parametrize("name", ["slimming", "group_lasso", "greg", "soft_filter_pruning", "early_bird"])
def test_half_of_the_channels_go_and_the_rest_learns(name):
    net = supernet(name, hidden(inputs=10, channels=16))
    outcome = train(net, points(400), 0)
    assert net.masks["0.weight"].sum() == 8
    assert outcome.val["accuracy"] > 0.6
    assert not net.weights["3.weight"][:, ~net.masks["0.weight"]].any()
