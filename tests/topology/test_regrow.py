"""Drop and grow, shrinking, and the scores they go by: eight weights by hand first, then what must hold of any."""

import itertools
import math

import pytest
import torch
from torch import nn
from toys import points, supernet, units

from subnet_search import Masks
from subnet_search.core.errors import UserError
from subnet_search.data import Batches
from subnet_search.extractors.base import Change
from subnet_search.topology.masks import alive
from subnet_search.topology.regrow import drop, regrow
from subnet_search.topology.scores import local_community, magnitude_and_gradient, relative_importance
from subnet_search.topology.select import count, top_k
from subnet_search.training.loop import Run


def regrow_layer(mask, keep, grow, fraction):
    return regrow(Masks({"w": mask}), {"w": keep}, {"w": grow}, fraction)["w"]


def bits(text):
    """A bool tensor from zeros and ones: bits("0110"); rows are set apart by spaces."""
    rows = [[character == "1" for character in row] for row in text.split()]
    return torch.tensor(rows if len(rows) > 1 else rows[0])


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


# --- drop and grow ---

MASK = bits("11110000")
KEEP = torch.tensor([0.9, 0.1, 0.5, 0.2, 0.0, 0.0, 0.0, 0.0])


def test_a_layer_drops_its_lowest_and_grows_the_highest():
    # Half of 4 drop: positions 1 (0.1) and 3 (0.2). All but 0 and 2, which stay, may grow: 6 (5) and 4 (4) are highest.
    grow = torch.tensor([9.0, 3.0, 9.0, 1.0, 4.0, 2.0, 5.0, 0.0])
    assert regrow_layer(MASK, KEEP, grow, 0.5).equal(bits("10101010"))


def test_what_was_just_dropped_may_grow_again():
    # Positions 1 and 3 drop; 1 (6) and 6 (5) are the highest of the rest.
    grow = torch.tensor([9.0, 6.0, 9.0, 1.0, 4.0, 2.0, 5.0, 0.0])
    assert regrow_layer(MASK, KEEP, grow, 0.5).equal(bits("11100010"))


def test_ties_are_dropped_from_the_end_and_grown_from_the_start():
    # Two of four equal weights drop, the last two; of six equal candidates the first two grow, the same two.
    assert regrow_layer(MASK, torch.ones(8), torch.zeros(8), 0.5).equal(MASK)
    # Without a tie in growth: 3 is dropped, 7 grows.
    assert regrow_layer(MASK, torch.ones(8), torch.arange(8.0), 0.25).equal(bits("11100001"))


@pytest.mark.parametrize(
    ("fraction", "moved"),
    [(0.0, 0), (0.01, 1), (0.25, 1), (0.26, 2), (0.5, 2), (0.6, 3), (0.75, 3), (0.99, 4), (1.0, 4)],  # of 4, rounded up
)
def test_the_number_moved_is_rounded_up(fraction, moved):
    grow = torch.arange(8.0)  # the dead half is above all that lives, so as many change place as are moved
    after = regrow_layer(MASK, KEEP, grow, fraction)
    assert alive(after & ~MASK) == moved
    assert alive(after) == 4


@pytest.mark.parametrize(("fraction", "living", "moved"), [(0.07, 100, 7), (0.55, 100, 55), (0.3, 100, 30), (0.071, 100, 8)])
def test_a_whole_number_to_move_is_not_rounded_up(fraction, living, moved):
    """0.07 * 100 is 7.000000000000001 in floating point, and means 7."""
    mask = torch.arange(2 * living) < living
    after = regrow_layer(mask, torch.ones(2 * living), torch.arange(2.0 * living), fraction)
    assert alive(after & ~mask) == moved


@pytest.mark.parametrize("fraction", [0.1, 1.0])
@pytest.mark.parametrize("text", ["11111111", "00000000"])
def test_a_dense_layer_and_an_empty_one_stay_as_they_are(text, fraction):
    assert regrow_layer(bits(text), KEEP, KEEP, fraction).equal(bits(text))


def test_as_many_drop_from_a_nearly_dense_layer_as_from_any_other():
    # Half of 7, rounded up: 1, 6, 5 and 4 drop (1, 4, 5 and 6), though only 7 was dead. Of these five, 7, 5, 4 and 6 have
    # the highest scores to grow by, so 1 stays dead.
    keep, grow = torch.tensor([9.0, 1, 8, 7, 6, 5, 4, 0]), torch.tensor([0.0, 1, 0, 0, 3, 4, 2, 5])
    mask = bits("11111110")
    assert drop(Masks({"w": mask}), {"w": keep}, 0.5)["w"].equal(bits("10110000"))
    assert regrow_layer(mask, keep, grow, 0.5).equal(bits("10111111"))


@pytest.mark.parametrize(("fraction", "left"), [(0.0, 8), (0.1, 7), (0.25, 6), (0.3, 5), (1.0, 0)])
def test_as_many_drop_from_a_dense_layer_and_all_grow_again(fraction, left):
    mask = torch.ones(8, dtype=torch.bool)
    assert alive(drop(Masks({"w": mask}), {"w": KEEP}, fraction)["w"]) == left  # ceil(fraction * 8) less
    assert regrow_layer(mask, KEEP, KEEP, fraction).equal(mask)


def test_scores_of_dead_weights_do_not_keep_and_of_kept_ones_do_not_grow():
    keep = torch.tensor([4.0, 3, 2, 1, 99, 99, 99, 99])
    grow = torch.tensor([99.0, 99, 99, 0, 1, 2, 3, 4])
    assert regrow_layer(MASK, keep, grow, 0.25).equal(bits("11100001"))


def test_every_layer_keeps_its_count():
    draw = rng()
    for _ in range(100):
        masks = Masks({name: torch.rand(3, 7, generator=draw) < torch.rand(1, generator=draw) for name in "ab"})
        keep, grow = ({name: torch.rand(3, 7, generator=draw) for name in "ab"} for _ in range(2))
        fraction = torch.rand((), generator=draw).item()
        before = {name: mask.clone() for name, mask in masks.items()}
        after = regrow(masks, keep, grow, fraction)
        for name, mask in after.items():
            living = alive(before[name])
            moved = math.ceil(fraction * living)
            kept = by_rank(keep[name], living - moved, before[name])
            assert mask.equal(kept | by_rank(grow[name], moved, ~kept))
            assert alive(mask) == living
            assert masks[name].equal(before[name])  # what was given is left alone


def by_rank(scores, k, among):
    """The k highest of those eligible, the slow way: of equal ones the first."""
    eligible = among.reshape(-1).nonzero().view(-1).tolist()
    flat = scores.reshape(-1).tolist()
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[sorted(eligible, key=lambda index: (-flat[index], index))[:k]] = True
    return mask.view(scores.shape)


def test_a_weight_that_is_dropped_and_grown_at_once_keeps_its_value_and_state():
    module = nn.Sequential(nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[9.0, 1, 5, 2], [0, 0, 0, 0]]))
    net = supernet("set", module, optimizer="sgd", lr=1.0, momentum=0.9)
    data = points(40, inputs=4, classes=2)
    run = Run(net, data, Batches(data.train, None, None, 20, 0), 0, None)
    run.make(Change(Masks({"0.weight": MASK.view(2, 4)})))
    module[0].weight.grad = torch.full((2, 4), 0.5)
    net.mask_gradients()
    run.optimizer.step()  # 8.5, 0.5, 4.5, 1.5, each with a momentum of 0.5
    # Positions 1 and 3 drop; 1 and 6 grow.
    grow = {"0.weight": torch.tensor([[9.0, 6, 9, 1], [4, 2, 5, 0]])}
    run.make(Change(regrow(net.masks, {"0.weight": net.weights["0.weight"].abs()}, grow, 0.5)))
    assert net.masks["0.weight"].equal(bits("1110 0010"))
    assert net.weights["0.weight"].tolist() == [[8.5, 0.5, 4.5, 0], [0, 0, 0, 0]]
    assert run.optimizer.state[module[0].weight]["momentum_buffer"].tolist() == [[0.5, 0.5, 0.5, 0], [0, 0, 0, 0]]


# --- shrinking ---

TWO = Masks({"a": torch.ones(2, 1, dtype=torch.bool), "b": bits("111 011")})  # 2 weights alive of 2, and 5 of 6
SCORES = {"a": torch.tensor([[0.1], [0.2]]), "b": torch.tensor([[0.9, 0.8, 0.3], [7.0, 0.4, 0.5]])}


def test_shrinking_ranks_all_layers_together_and_the_living_alone():
    after = units(TWO).keep(SCORES, 3 / 8, "global", TWO)  # 0.9, 0.8, 0.5; the 7 is dead
    assert after["a"].equal(torch.tensor([[False], [False]]))
    assert after["b"].equal(bits("110 001"))


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("global", ("00", "111 011")),  # 5 of 8, the highest: all of b's
        ("uniform", ("01", "110 011")),  # shares 1.25 and 3.75: the one left over goes to b
        ("erk", ("11", "110 001")),  # ratios 3/2 and 5/6: 5 = e (2 * 3/2 + 6 * 5/6) = 8 e, shares 1.875 and 3.125
        ({"a": 2, "b": 1}, ("11", "110 001")),  # 5 = e (2 * 2 + 6 * 1) = 10 e, shares 2 and 3
        ({"a": 1, "b": 2}, ("01", "110 011")),  # 5 = e (2 * 1 + 6 * 2) = 14 e, shares 0.7 and 4.3
    ],
)
def test_shrinking_shares_the_density_out(how, expected):
    after = units(TWO).keep(SCORES, 5 / 8, how, TWO)
    assert after["a"].equal(bits(expected[0]).view(2, 1))
    assert after["b"].equal(bits(expected[1]))


def test_a_living_weight_of_zero_comes_before_a_dead_one():
    scores = {"w": torch.tensor([9.0, 0, 9, 2, 1, 9, 9, 0])}
    living = Masks({"w": bits("01011001")})
    assert units(living).keep(scores, 3 / 8, among=living)["w"].equal(bits("01011000"))


def test_shrinking_refuses_fewer_weights_than_layers():
    with pytest.raises(UserError, match="keeps 1 of 8 weights, fewer than the network's 2 layers"):
        units(TWO).keep(SCORES, 1 / 8, "uniform", TWO)


@pytest.mark.parametrize("how", ["global", "uniform", "erk", "relative"])
@pytest.mark.parametrize("sizes", [((2, 3), (2, 3), (1, 2)), ((3, 5), (4, 4), (2, 2), (1, 7))])
def test_a_falling_density_never_grows_a_weight(how, sizes):
    """Shares rounded by largest remainders can rise as the total falls (Alabama's paradox).

    6, 6 and 2 weights at 11 in all get 5, 5 and 1, and at 10 in all 4, 4 and 2.
    """
    draw = rng()
    scores = {str(index): torch.rand(size, generator=draw) for index, size in enumerate(sizes)}
    masks, numel = Masks.ones(scores), sum(score.numel() for score in scores.values())
    how = {name: 1 + int(name) for name in scores} if how == "relative" else how
    for total in range(numel - 1, len(sizes) - 1, -1):
        after = units(masks).keep(scores, total / numel, how, masks)
        assert after.kept == count(total / numel, numel)
        assert (after & masks).same(after), f"a weight grew at {total} of {numel}"
        masks = after


# --- scores ---


def test_magnitude_and_gradient_by_hand():
    found = magnitude_and_gradient({"w": torch.tensor([1.0, -2.0, 0.0])}, {"w": torch.tensor([-4.0, 0.0, 2.0])}, 0.5)
    assert found["w"].tolist() == [3, 2, 1]


@pytest.mark.parametrize("shape", [(2, 2), (2, 1, 1, 2)])
def test_relative_importance_by_hand(shape):
    # |w| = [1 3; 1 0]: sums 2 and 3 over outputs, 4 and 1 over inputs. 1/2 + 1/4, 3/3 + 3/4, 1/2 + 1/1, 0.
    weight = torch.tensor([[1.0, -3.0], [-1.0, 0.0]]).view(shape)
    assert relative_importance({"w": weight})["w"].equal(torch.tensor([[0.75, 1.75], [1.5, 0.0]]).view(shape))


def test_relative_importance_without_weights_is_zero():
    assert relative_importance({"w": torch.zeros(2, 3)})["w"].equal(torch.zeros(2, 3))


# CH2-L3n (arXiv:2501.19107, equation 3): the score of a pair (u, v) without a link is the sum, over the nodes z between
# the ends of its paths of length three, of (1 + i) / (1 + e), where i counts z's links to other such nodes (internal), and
# e its links to anything else (external), the link to the seed u or v not counted.
GRAPH = bits("1100 1110 0011")  # u0: v0 v1; u1: v0 v1 v2; u2: v2 v3
COMMUNITY = {
    # Paths u0 - v0 - u1 - v2 and u0 - v1 - u1 - v2. u1: inside v0, v1, outside nothing but the seed v2: 3 / 1.
    # v0: inside u1, its other link is the seed u0: 2 / 1. v1 the same. 3 + 2 + 2.
    (0, 2): 7,
    # v3 is linked to u2 alone, and u2 to neither v0 nor v1: no path.
    (0, 3): 0,
    # One path, u1 - v2 - u2 - v3. v2: inside u2, the other link is u1: 2 / 1. u2: inside v2, the other is v3: 2 / 1.
    (1, 3): 4,
    # One path, u2 - v2 - u1 - v0. v2: inside u1: 2 / 1. u1: inside v2, outside v1: 2 / 2. For v1 the same, with v0.
    (2, 0): 3,
    (2, 1): 3,
}


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 1, 2)])
def test_local_community_by_hand(shape):
    found = local_community(GRAPH.view(shape))
    assert found.shape == shape
    assert {pair: found.view(3, 4)[pair].item() for pair in COMMUNITY} == COMMUNITY


def test_local_community_of_an_empty_layer_is_zero():
    assert local_community(torch.zeros(3, 4, dtype=torch.bool)).equal(torch.zeros(3, 4))


def test_local_community_is_its_definition():
    draw = rng()
    for density in (0.1, 0.3, 0.5, 0.8):
        mask = torch.rand(7, 9, generator=draw) < density
        found = local_community(mask)
        for u, v in (~mask).nonzero().tolist():
            assert found[u, v].item() == pytest.approx(community_score(mask, u, v), rel=1e-5)


def community_score(mask, u, v):
    """CH2-L3n of a dead pair, by listing its paths of length three."""
    links = {("u", i): {("v", j) for j in mask[i].nonzero().view(-1).tolist()} for i in range(mask.shape[0])}
    links |= {("v", j): {("u", i) for i in mask[:, j].nonzero().view(-1).tolist()} for j in range(mask.shape[1])}
    ends = {("u", u), ("v", v)}
    paths = itertools.product(links["u", u], links["v", v])
    between = {node for a, b in paths if b in links[a] for node in (a, b)}
    inside = {node: len(links[node] & between) for node in between}
    return sum((1 + inside[node]) / (1 + len(links[node] - between - ends)) for node in between)


def test_growing_among_a_community_closes_paths():
    """With no chance in it, the pair with the highest score grows first, and pairs without a path last."""
    order = [(0, 2), (1, 3), (2, 0), (2, 1), (0, 3)]  # 7, 4, 3, 3, 0
    for grown in range(1, 6):
        new = top_k(local_community(GRAPH), grown, among=~GRAPH)
        assert {tuple(pair) for pair in new.nonzero().tolist()} == set(order[:grown])
