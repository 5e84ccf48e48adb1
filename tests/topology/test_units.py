"""Units by hand: eight weights, pooled, chosen and expanded."""

import pytest
import torch
from torch import nn

from subnet_search.core.errors import UserError
from subnet_search.structure.channel_groups import couple
from subnet_search.topology.channels import Channels, Group, Slice
from subnet_search.topology.masks import Masks
from subnet_search.topology.units import NM, Blocks, Units, parse

WEIGHTS = {"w": (2, 4)}
SCORES = {"w": torch.tensor([[0.9, 0.1, 0.8, 0.7], [0.2, 0.3, 0.1, 0.4]])}


def bits(text):
    return torch.tensor([[mark == "1" for mark in row] for row in text.split()])


@pytest.mark.parametrize(
    ("text", "kind", "numbers"),
    [
        ("weight", "weight", ()),
        ("channel", "channel", ()),
        ("2:4", "n:m", (2, 4)),
        ("1:16", "n:m", (1, 16)),
        ("block:16", "block", (16,)),
    ],
)
def test_a_unit_as_users_write_it(text, kind, numbers):
    assert parse(text) == (kind, numbers)


@pytest.mark.parametrize("text", ["", "filter", "4:2", "4:4", "0:4", "2:", "2:4:8", "block", "block:1", "block:x", "-1:4"])
def test_what_is_no_unit(text):
    with pytest.raises(UserError, match="a unit is weight, channel, n:m such as 2:4, or block:size such as block:16, got"):
        parse(text)


# --- n:m ---


def test_two_of_four_are_the_highest_of_each_group():
    masks = NM(WEIGHTS, 2, 4).keep(SCORES, 0.5)
    assert masks["w"].equal(bits("1010 0101"))  # by themselves the four highest would be 0.9, 0.8, 0.7, 0.4


def test_below_its_density_the_highest_within_the_pattern_stay():
    assert NM(WEIGHTS, 2, 4).keep(SCORES, 3 / 8)["w"].equal(bits("1010 0001"))  # 0.7 is higher, but third of its group


def test_above_its_density_groups_fill_up():
    """On the way down: the pattern's own first, then the highest of the rest."""
    assert NM(WEIGHTS, 2, 4).keep(SCORES, 5 / 8)["w"].equal(bits("1011 0101"))


def test_the_dead_take_no_place_in_a_group():
    masks = NM(WEIGHTS, 2, 4).keep(SCORES, 0.5, among=Masks({"w": bits("0111 1111")}))
    assert masks["w"].equal(bits("0011 0101"))


def test_negative_scores_and_zeros_are_ranked_too():
    scores = {"w": torch.tensor([[-3.0, -1.0, 0.0, -2.0], [0.0, 0.0, 0.0, 0.0]])}
    assert NM(WEIGHTS, 2, 4).keep(scores, 0.5)["w"].equal(bits("0110 1100"))


@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 4), (3, 8), (4, 16)])
def test_the_highest_of_groups_with_many_ties(n, m):
    scores = torch.randint(-2, 3, (30, 5 * m), generator=torch.Generator().manual_seed(0)).float()
    scores[0] = -torch.inf
    first = NM({"w": scores.shape}, n, m)._first(scores)
    for row, marks in zip(scores.view(-1, m).tolist(), first.view(-1, m).tolist(), strict=True):
        ranked = sorted(range(m), key=lambda place: (-row[place], place))
        assert [place for place, mark in enumerate(marks) if mark] == sorted(ranked[:n])


def test_groups_lie_along_the_inputs_of_a_convolution():
    weight = torch.zeros(1, 4, 1, 2)
    weight[0, :, 0, 0] = torch.tensor([1.0, 4.0, 3.0, 2.0])
    weight[0, :, 0, 1] = torch.tensor([4.0, 1.0, 2.0, 3.0])
    mask = NM({"w": weight.shape}, 2, 4).keep({"w": weight}, 0.5)["w"]
    assert mask[0, :, 0, 0].tolist() == [False, True, True, False]
    assert mask[0, :, 0, 1].tolist() == [True, False, False, True]


def test_a_rest_of_inputs_is_a_group_of_its_own():
    units = NM({"w": (1, 6)}, 2, 4)
    mask = units.keep({"w": torch.tensor([[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]])}, 4 / 6)["w"]
    assert mask.tolist() == [[True, True, False, False, True, True]]
    units.check(4 / 6)


@pytest.mark.parametrize("scope", ["global", "uniform", "erk"])
def test_no_group_ever_has_more(scope):
    rng = torch.Generator().manual_seed(0)
    shapes = {"a": (8, 16, 3, 3), "b": (10, 32)}
    scores = {name: torch.rand(shape, generator=rng) for name, shape in shapes.items()}
    for density in (0.1, 0.3, 0.5):
        masks = NM(shapes, 2, 4).keep(scores, density, scope)
        assert masks.kept == round(density * masks.numel)
        for mask in masks.values():
            assert int(mask.transpose(1, -1).reshape(-1, 4).sum(1).max()) <= 2


def test_what_grows_keeps_to_the_pattern():
    masks = Masks({"w": bits("1010 0110")})
    keep = {"w": torch.tensor([[0.9, 0, 0.8, 0], [0, 0.2, 0.1, 0]])}
    grow = {"w": torch.tensor([[0, 9.0, 0, 8.0], [0.3, 0, 0, 0.4]])}
    # The lowest, 0.1, dies; the highest, 9, would be the third of its group.
    assert NM(WEIGHTS, 2, 4).regrow(masks, keep, grow, 0.25)["w"].equal(bits("1010 0101"))


@pytest.mark.parametrize(("density", "said"), [(0.6, "not 0.6"), (None, "a density is needed")])
def test_a_density_that_the_pattern_does_not_have(density, said):
    with pytest.raises(UserError, match=f"2:4 keeps at most 0.5 of the weights of this network: {said}"):
        NM(WEIGHTS, 2, 4).check(density)


def test_a_cost_that_the_pattern_has_although_not_of_the_weights():
    """Of `a`, one input alone, all of its 4 weights may live, of `b` half of 8: 8 of 12 weights; of the cost 12 + 4 of 20."""
    units = NM({"a": (4, 1), "b": (2, 4)}, 2, 4, prices={"a": 3.0, "b": 1.0})
    units.check(0.8)
    with pytest.raises(UserError, match=r"2:4 keeps at most 0\.8 of the cost of this network: not 0\.81"):
        units.check(0.81)
    scores = {"a": torch.ones(4, 1), "b": torch.arange(8.0).view(2, 4)}
    assert units.cost(units.keep(scores, 0.8)) == pytest.approx(0.8)


# --- blocks ---


def test_blocks_live_and_die_as_one():
    blocks = Blocks(WEIGHTS, 2)
    assert blocks.shapes == {"w": (1, 2)}
    assert blocks.pool(SCORES)["w"].tolist() == [[pytest.approx(0.375), pytest.approx(0.5)]]
    masks = blocks.keep(blocks.pool(SCORES), 0.5)
    assert blocks.expand(masks)["w"].equal(bits("0011 0011"))


def test_smaller_blocks_at_the_edges_count_their_own_weights():
    blocks = Blocks({"w": (3, 2, 1, 2)}, 2)  # a matrix of 3 by 4
    scores = {"w": torch.arange(12.0).view(3, 2, 1, 2)}
    assert blocks.pool(scores)["w"].tolist() == [[2.5, 4.5], [8.5, 10.5]]
    expanded = blocks.expand({"w": torch.tensor([[True, False], [False, True]])})["w"]
    assert expanded.shape == (3, 2, 1, 2)
    assert expanded.flatten(1).equal(bits("1100 1100 0011"))


def test_magnitudes_are_pooled_as_magnitudes():
    signed = {"w": torch.tensor([[1.0, -1.0, 0.1, 0.1], [-1.0, 1.0, 0.1, 0.1]])}
    pooled = Blocks(WEIGHTS, 2).pool_magnitude(signed)["w"]
    assert pooled.tolist() == [[1.0, pytest.approx(0.1)]]


# --- densities of cost ---


def test_a_density_of_cost_is_met_within_a_weight():
    """`a` costs 3 a weight and `b` 1: half of 4 * 3 + 4 * 1 = 16 is two of `a` and two of `b`."""
    units = Units({"a": (1, 4), "b": (1, 4)}, prices={"a": 3.0, "b": 1.0})
    scores = {"a": torch.tensor([[8.0, 5.0, 2.0, 1.0]]), "b": torch.tensor([[7.0, 6.0, 4.0, 3.0]])}
    masks = units.keep(scores, 0.5)
    assert (masks["a"].tolist(), masks["b"].tolist()) == ([[True, True, False, False]], [[True, True, False, False]])
    assert units.cost(masks) == 0.5
    assert units.reached(masks, 0.5)
    assert not units.reached(units.keep(scores, 0.9), 0.5)


# --- channels ---


def chain():
    """Two hidden neurons, or four: 3 -> 4 -> 2."""
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 1, 1], [2, 2, 2], [0, 0, 0], [1, 1, 1]]))
        net[2].weight.copy_(torch.tensor([[1.0, 0, 5, 1], [-1, 0, 5, 1]]))
    return net


def channels(net, example, **options):
    return Channels({n: p.shape for n, p in net.named_parameters() if p.dim() > 1}, couple(net, example).groups, **options)


def test_a_neuron_is_its_weights_and_those_that_read_it():
    net = chain()
    units = channels(net, torch.ones(1, 3))
    assert units.shapes == {"0.weight": (4,)}
    weights = {"0.weight": net[0].weight, "2.weight": net[2].weight}
    # (3 * 1 + 1 + 1) / 5, (3 * 2 + 0) / 5, (0 + 10) / 5, (3 + 2) / 5
    assert units.pool_magnitude(weights)["0.weight"].tolist() == pytest.approx([1.0, 1.2, 2.0, 1.0])
    assert units.pool(weights)["0.weight"].tolist() == pytest.approx([0.6, 1.2, 2.0, 1.0])
    masks = units.keep(units.pool_magnitude(weights), 0.5)
    assert masks["0.weight"].tolist() == [False, True, True, False]
    whole = units.expand(masks)
    assert whole["0.weight"].equal(bits("000 111 111 000"))
    assert whole["2.weight"].equal(bits("0110 0110"))
    assert units.gates(masks)["0.weight"].all()  # what computes a dead neuron is kept, for it may grow again
    assert units.gates(masks)["2.weight"].equal(bits("0110 0110"))


def test_gates_are_differentiable():
    units = channels(chain(), torch.ones(1, 3))
    relevance = torch.ones(4, requires_grad=True)
    units.gates({"0.weight": relevance})["2.weight"].sum().backward()
    assert relevance.grad.tolist() == [2, 2, 2, 2]


def test_costs_of_channels_by_counting_are_those_of_the_masks():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3), nn.Flatten(), nn.Linear(12 * 4, 5), nn.Linear(5, 2))
    units = channels(net, torch.ones(1, 3, 6, 6), prices={"0.weight": 1.0, "1.weight": 2.0, "3.weight": 3.0, "4.weight": 4.0})
    masks = Masks({"0.weight": torch.arange(8) % 3 > 0, "1.weight": torch.arange(12) % 4 > 1, "3.weight": torch.arange(5) > 1})
    counted = {name: int(mask.sum()) for name, mask in units.expand(masks).items()}
    assert units._kept(masks) == counted == {"0.weight": 5 * 27, "1.weight": 6 * 5 * 9, "3.weight": 3 * 24, "4.weight": 2 * 3}


@pytest.mark.parametrize("density", [0.2, 0.5, 0.77])
@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_channels_by_their_number_in_whole_steps(scope, density):
    group = lambda name, size: Group(name, size, (Slice(name, 0, torch.arange(size).view(-1, 1), False),))  # noqa: E731
    units = Channels({"a": (64, 2), "b": (128, 2), "c": (10, 2)}, [group("a", 64), group("b", 128), group("c", 10)], 16)
    assert units.steps == {"a": 16, "b": 16, "c": 2}
    rng = torch.Generator().manual_seed(1)
    masks = units.keep({name: torch.rand(shape, generator=rng) for name, shape in units.shapes.items()}, density, scope)
    for name, mask in masks.items():
        assert int(mask.sum()) % units.steps[name] == 0
        assert mask.any()
    assert abs(masks.density - density) <= 16 / 202
    assert units.reached(masks, density)


def test_a_density_that_would_empty_a_layer():
    with pytest.raises(
        UserError, match=r"density 0.1 would empty a layer: the minimum with some channels in each layer is 0.25"
    ):
        channels(chain(), torch.ones(1, 3)).check(0.1)


def test_a_network_without_channels_to_remove():
    with pytest.raises(UserError, match="this network has no channels that can be removed"):
        channels(nn.Sequential(nn.Linear(3, 2)), torch.ones(1, 3))
