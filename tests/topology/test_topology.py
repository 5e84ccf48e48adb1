"""Masks, selection, schedules, samplers, rescaling and budgets: eight weights by hand first, then many at random."""

import math
import random

import pytest
import torch
import torch.nn.functional as F
from toys import units

from subnet_search.core.errors import UserError
from subnet_search.topology import select
from subnet_search.topology.budget import budget_penalty
from subnet_search.topology.masks import Masks, pack, unpack
from subnet_search.topology.rescale import dynamic, fan_in, masked_weight
from subnet_search.topology.samplers import bernoulli_gate, logistic_gate, straight_through, uniform_noise
from subnet_search.topology.schedules import cosine, cubic, geometric, linear, sigmoid
from subnet_search.topology.select import (
    allocate,
    count,
    erdos_renyi,
    keep_by_layer,
    keep_global,
    relative,
    sampled,
    top_k,
    uniform,
)


def bits(text):
    """A bool tensor from zeros and ones: bits("0110")."""
    return torch.tensor([character == "1" for character in text])


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


# --- masks ---


def test_density_counts_over_all_tensors():
    masks = Masks({"a": bits("1101"), "b": bits("10000000")})  # 3 of 4, 1 of 8: 4 of 12
    assert (masks.kept, masks.numel, masks.density) == (4, 12, 4 / 12)
    assert masks.layer_density() == {"a": 3 / 4, "b": 1 / 8}


def test_union_intersection_and_overlap():
    one, other = Masks({"w": bits("11010000")}), Masks({"w": bits("10011000")})
    assert (one | other)["w"].equal(bits("11011000"))
    assert (one & other)["w"].equal(bits("10010000"))
    assert one.overlap(other) == 2 / 4


def test_overlap_of_empty_masks_is_one():
    nothing = Masks({"w": bits("0000")})
    assert nothing.overlap(nothing) == 1
    assert nothing.overlap(Masks({"w": bits("0100")})) == 0


def test_same_looks_at_names_and_units():
    mask = Masks({"w": bits("1100")})
    assert mask.same(Masks({"w": bits("1100")}))
    assert not mask.same(Masks({"w": bits("1010")}))
    assert not mask.same(Masks({"v": bits("1100")}))


def test_masks_of_different_networks_do_not_combine():
    with pytest.raises(ValueError, match="'v'"):
        Masks({"w": bits("1")}) | Masks({"v": bits("1")})


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int64])
def test_only_bool_tensors_are_masks(dtype):
    with pytest.raises(TypeError, match="the mask of w must be bool"):
        Masks({"w": torch.ones(8, dtype=dtype)})


def test_ones_keeps_everything():
    assert Masks.ones({"w": torch.zeros(2, 4)})["w"].equal(torch.ones(2, 4, dtype=torch.bool))


def test_masks_cannot_be_assigned_to():
    with pytest.raises(TypeError):
        Masks({"w": bits("1")})["w"] = bits("0")


def test_pack_puts_eight_units_in_a_byte():
    # 1101 0000 is 0xD0; the ninth bit opens a new byte from the left: 0x80.
    assert pack(bits("110100001")).tolist() == [0xD0, 0x80]


@pytest.mark.parametrize("shape", [(1,), (7,), (8,), (9,), (3, 5), (2, 3, 3, 3), (1000, 3)])
def test_unpack_undoes_pack(shape):
    mask = torch.rand(shape, generator=rng()) < 0.5
    packed = pack(mask)
    assert packed.dtype == torch.uint8
    assert len(packed) == math.ceil(mask.numel() / 8)
    assert unpack(packed, shape).equal(mask)


def test_pack_of_a_transposed_mask_is_row_major():
    mask = bits("11010000").view(2, 4).T
    assert unpack(pack(mask), (4, 2)).equal(mask)


@pytest.mark.parametrize("shape", [(8,), (17,)])
def test_unpack_refuses_another_length(shape):
    with pytest.raises(ValueError, match="2 bytes"):
        unpack(torch.zeros(2, dtype=torch.uint8), shape)


# --- which units live ---


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (0, "00000000"),
        (1, "00000001"),  # 0.9
        (2, "00010001"),  # and 0.8
        (3, "00110001"),  # and the first of the three at 0.3
        (4, "00111001"),  # and the second
        (5, "00111011"),
        (6, "10111011"),  # and 0.1
        (7, "10111111"),  # all but -0.5
        (8, "11111111"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_top_k_keeps_the_highest_and_fills_ties_in_order(k, expected, dtype):
    scores = torch.tensor([0.1, -0.5, 0.3, 0.8, 0.3, 0.0, 0.3, 0.9], dtype=dtype)
    assert top_k(scores, k).equal(bits(expected))


def test_top_k_keeps_the_shape_and_counts_ties_row_by_row():
    assert top_k(torch.zeros(2, 4), 5).equal(bits("11111000").view(2, 4))


def test_top_k_takes_infinite_scores():
    scores = torch.tensor([-math.inf, math.inf, 0.0, -math.inf])
    assert top_k(scores, 1).equal(bits("0100"))
    assert top_k(scores, 3).equal(bits("1110"))


def test_top_k_of_scores_with_a_gradient():
    assert top_k(torch.tensor([1.0, 2.0], requires_grad=True), 1).equal(bits("01"))


@pytest.mark.parametrize("where", range(8))
@pytest.mark.parametrize("k", [1, 4, 7])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_top_k_refuses_a_score_that_is_not_a_number(where, k, dtype):
    scores = torch.arange(8).to(dtype)
    scores[where] = math.nan
    with pytest.raises(ValueError, match="not a number"):
        top_k(scores, k)


@pytest.mark.parametrize("k", [-1, 9])
def test_top_k_refuses_a_count_outside_the_tensor(k):
    with pytest.raises(ValueError, match=f"cannot keep {k} of 8"):
        top_k(torch.zeros(8), k)


@pytest.mark.parametrize("values", [2, 5, 10**6])  # distinct scores: from nearly all tied to nearly none
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_top_k_is_a_stable_sort(values, dtype):
    draw = rng(values)
    for _ in range(50):
        numel = int(torch.randint(1, 400, (), generator=draw))
        k = int(torch.randint(0, numel + 1, (), generator=draw))
        scores = torch.randint(0, values, (numel,), generator=draw).to(dtype)
        expected = torch.zeros(numel, dtype=torch.bool)
        expected[scores.sort(descending=True, stable=True).indices[:k]] = True
        assert top_k(scores, k).equal(expected)


def test_keep_global_ranks_all_layers_together():
    scores = {"a": torch.tensor([5.0, 1.0, 3.0]), "b": torch.tensor([[3.0, 4.0], [3.0, 0.0]])}
    masks = keep_global(scores, 4)  # 5, 4, then two of the three 3s: the first layer's, then the first of b
    assert masks["a"].equal(bits("101"))
    assert masks["b"].equal(bits("1100").view(2, 2))


def test_keep_by_layer_ranks_each_layer_for_itself():
    scores = {"a": torch.tensor([5.0, 1.0, 3.0]), "b": torch.tensor([0.1, 0.2, 0.2])}
    masks = keep_by_layer(scores, {"a": 1, "b": 2})
    assert masks["a"].equal(bits("100"))
    assert masks["b"].equal(bits("011"))


# --- which of those that are eligible live ---


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (0, "00000000"),
        (1, "00000001"),  # 0.9 at the end; the 0.8 may not be chosen
        (2, "00000011"),  # and 0.5
        (3, "10000011"),  # and the first of two at 0.3
        (4, "10100011"),  # and the second
        (5, "10101011"),  # all that may be chosen
    ],
)
def test_top_k_among_some(k, expected):
    scores = torch.tensor([0.3, 0.3, 0.3, 0.8, 0.1, 0.7, 0.5, 0.9])
    assert top_k(scores, k, among=bits("10101011")).equal(bits(expected))


@pytest.mark.parametrize("k", [-1, 4])
def test_top_k_among_some_refuses_more_than_those(k):
    with pytest.raises(ValueError, match=f"cannot keep {k} of 3"):
        top_k(torch.zeros(8), k, among=bits("01010100"))


def test_top_k_among_some_does_not_hand_out_the_mask_it_was_given():
    among = bits("0110")
    chosen = top_k(torch.zeros(4), 2, among=among)
    chosen[0] = True
    assert among.equal(bits("0110"))


def test_top_k_among_some_prefers_an_eligible_minus_infinity_to_what_may_not_be_chosen():
    scores = torch.tensor([9.0, -math.inf, -math.inf, 1.0])
    assert top_k(scores, 2, among=bits("0111")).equal(bits("0101"))


def by_sorting(scores, k, among):
    """The k highest of those eligible, of equal ones the first, by a stable sort."""
    eligible = among.reshape(-1).nonzero().view(-1)
    order = scores.reshape(-1)[eligible].sort(descending=True, stable=True).indices
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[eligible[order[:k]]] = True
    return mask.view(scores.shape)


@pytest.mark.parametrize("values", [2, 5, 10**6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_top_k_among_some_is_a_stable_sort_of_those(values, dtype):
    draw = rng(values)
    for _ in range(60):
        shape = tuple(torch.randint(1, 20, (2,), generator=draw).tolist())
        scores = torch.randint(0, values, shape, generator=draw).to(dtype)
        among = torch.rand(shape, generator=draw) < torch.rand((), generator=draw)
        k = int(torch.randint(0, int(among.sum()) + 1, (), generator=draw))
        assert top_k(scores, k, among).equal(by_sorting(scores, k, among))
        assert top_k(scores.T, k, among.T).equal(by_sorting(scores.T, k, among.T))


# --- the way of many scores, whose threshold is bracketed by a sample ---

MANY = select.SAMPLED_FROM + 7  # the last scores are in no sample


def many(kind):
    drawn = torch.rand(MANY, generator=rng())
    steps = torch.arange(MANY)
    match kind:
        case "uniform":
            return drawn
        case "squared":  # half of all below a quarter, as weights are
            return drawn**2
        case "mostly zero":
            return drawn * (drawn > 0.9)
        case "three values":
            return (drawn * 3).floor()
        case "constant":
            return torch.full((MANY,), 0.5)
        case "rising":
            return steps.float()
        case "falling":
            return -steps.float()
        case "periodic":  # with the sample's own period: it sees eight of 488 values
            return (steps % (8 * select.STRIDE)).float()
        case "unseen":  # high wherever the sample does not look
            return drawn + (steps % (8 * select.STRIDE) >= 8)
        case "infinite":
            return torch.where(drawn < 0.3, -math.inf, torch.where(drawn > 0.7, math.inf, drawn))
        case "double":
            return drawn.double() * 1e-300
        case "brain float":
            return drawn.bfloat16()
    raise AssertionError(kind)


KINDS = ["uniform", "squared", "mostly zero", "three values", "constant", "rising", "falling", "periodic", "unseen"]
KINDS += ["infinite", "double", "brain float"]


@pytest.mark.parametrize("some", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_top_k_of_many_is_that_of_one_partition(kind, some, monkeypatch):
    scores = many(kind)
    among = torch.rand(MANY, generator=rng(1)) < 0.3 if some else None
    eligible = MANY if among is None else int(among.sum())
    for k in (3, eligible // 20, eligible // 2, eligible - 3):
        found = top_k(scores, k, among)
        with monkeypatch.context() as patch:
            patch.setattr(select, "SAMPLED_FROM", MANY + 1)
            assert found.equal(top_k(scores, k, among))
        assert found.sum() == k


@pytest.mark.parametrize("kind", ["squared", "mostly zero"])  # with the zeros left out, which are no part of the sample
@pytest.mark.parametrize("kept", [0.05, 0.1, 0.5])
def test_the_sample_brackets_the_threshold_of_ordinary_scores(kept, kind):
    scores = many(kind)
    among = scores > 0
    eligible = int(among.sum())
    k = round(kept * eligible)
    found = select._top_k_sampled(scores.numpy(), k, among.numpy(), eligible, False)
    assert found is not None
    assert torch.from_numpy(found).equal(by_sorting(scores, k, among))


@pytest.mark.parametrize(("kind", "kept"), [("constant", 0.5), ("unseen", 0.1), ("uniform", 1e-5)])
def test_one_partition_of_all_where_the_bracket_misses(kind, kept):
    assert select._top_k_sampled(many(kind).numpy(), round(kept * MANY), None, MANY, False) is None


@pytest.mark.parametrize("values", [3, 40, 10**6])
def test_top_k_by_a_sample_at_every_size(values, monkeypatch):
    """The same code on few scores, in small pieces: thousands of brackets, some of which miss."""
    monkeypatch.setattr(select, "SAMPLED_FROM", 0)
    monkeypatch.setattr(select, "STRIDE", 2)
    monkeypatch.setattr(select, "CHUNK", 100)
    draw, sampled_ones = rng(values), 0
    for _ in range(300):
        numel = int(torch.randint(1, 3000, (), generator=draw))
        scores = torch.randint(0, values, (numel,), generator=draw).float()
        among = torch.rand(numel, generator=draw) < torch.rand((), generator=draw).sqrt()
        k = int(torch.randint(0, int(among.sum()) + 1, (), generator=draw))
        assert top_k(scores, k, among).equal(by_sorting(scores, k, among))
        if 0 < k < int(among.sum()):
            sampled_ones += select._top_k_sampled(scores.numpy(), k, among.numpy(), int(among.sum()), False) is not None
    assert 0 < sampled_ones < 300


def test_top_k_of_many_in_another_memory_order():
    scores = many("squared")[: 1000 * 1000].view(1000, 1000)
    found = top_k(scores.T, 70_000, among=(scores > 0.2).T)
    assert found.equal(by_sorting(scores.T, 70_000, (scores > 0.2).T))


@pytest.mark.parametrize("where", [0, 100, MANY // 2, MANY - 1])  # in the sample and between, in the first piece and the last
@pytest.mark.parametrize("k", [10, MANY // 2, MANY - 10])
def test_top_k_of_many_refuses_a_score_that_is_not_a_number(where, k):
    scores = many("uniform")
    scores[where] = math.nan
    with pytest.raises(ValueError, match="not a number"):
        top_k(scores, k)


@pytest.mark.parametrize("numel", [8, MANY])
def test_a_score_that_is_not_compared_need_not_be_a_number(numel):
    scores, among = torch.arange(float(numel)), torch.arange(numel) % 2 == 0
    scores[3] = math.nan  # which may not be chosen
    assert top_k(scores, numel // 4, among).equal(by_sorting(scores, numel // 4, among))


# --- draws ---


@pytest.mark.parametrize("kept", [1, 2])
def test_sampled_draws_in_proportion_and_without_replacement(kept):
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0, 0.0])
    draws = uniform_noise(torch.empty(DRAWS, 5), 4)
    chosen = sampled(scores.expand(DRAWS, -1), draws).topk(kept).indices
    p = scores / scores.sum()
    # The second of two is drawn from what the first has left: for j, the sum over i != j of p_i p_j / (1 - p_i).
    second = sum(p[i] * p / (1 - p[i]) * (torch.arange(5) != i) for i in range(5))
    expected = p if kept == 1 else p + second
    found = chosen.flatten().bincount(minlength=5) / DRAWS
    error = (expected * (1 - expected) / DRAWS).sqrt()
    assert ((found - expected).abs() <= 4 * error).all()
    assert found[4] == 0


def test_sampled_takes_units_of_no_score_last():
    scores = torch.tensor([0.0, 1e-20, 0.0, 1.0, 0.0, 1e20, 0.0, 0.0])
    for seed in range(50):
        order = sampled(scores, uniform_noise(scores, seed))
        assert top_k(order, 3).equal(bits("01010100"))
        assert top_k(order, 4).sum() == 4


def test_sampled_does_not_depend_on_the_unit_of_scores():
    scores, draws = torch.rand(200, generator=rng(1)), uniform_noise(torch.empty(200), 2)
    assert top_k(sampled(scores, draws), 50).equal(top_k(sampled(1024 * scores, draws), 50))


def test_the_highest_draws_of_each_layer_are_kept():
    # 12 weights at 1/2: 6 in all. Uniform shares 2 and 4; ERK ratios 4/4 and 6/8, shares 24/10 and 36/10: 2 and 4 too.
    draws = {"a": torch.tensor([[0.4, 0.1], [0.9, 0.3]]), "b": torch.tensor([[0.8, 0.2, 0.7, 0.1], [0.3, 0.9, 0.6, 0.5]])}
    for how in ("uniform", "erk"):
        masks = units(draws).keep(draws, 0.5, how)
        assert masks["a"].equal(bits("1010").view(2, 2))
        assert masks["b"].equal(bits("10100110").view(2, 4))


@pytest.mark.parametrize("how", ["uniform", "er", "erk"])
def test_random_topologies_have_exact_counts(how):
    draws = {name: uniform_noise(torch.empty(shape), seed) for seed, (name, shape) in enumerate(SHAPES.items())}
    masks = units(draws).keep(draws, 0.25, how)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == allocate(SHAPES, 0.25, how)


# --- how many live ---


@pytest.mark.parametrize(
    ("density", "numel", "expected"), [(0.5, 8, 4), (0.5, 3, 2), (0.3, 8, 2), (0.32, 8, 3), (0.001, 8, 1), (1, 8, 8)]
)
def test_count_rounds_to_the_nearest_and_keeps_at_least_one(density, numel, expected):
    assert count(density, numel) == expected  # 4, 1.5 up, 2.4 down, 2.56 up, 0.008, 8


SHAPES = {"conv": (4, 2, 3, 3), "linear": (4, 4)}  # 72 and 16 weights


def test_uniform_densities():
    assert uniform(SHAPES, 0.25) == {"conv": 0.25, "linear": 0.25}


def test_erdos_renyi_kernel_densities():
    # Ratios: (4 + 2 + 3 + 3) / 72 = 1/6 and 8 / 16 = 1/2. Budget 0.25 * 88 = 22 = e * (72/6 + 16/2), so e = 1.1.
    assert erdos_renyi(SHAPES, 0.25) == pytest.approx({"conv": 1.1 / 6, "linear": 1.1 / 2})


def test_erdos_renyi_densities_without_the_kernel():
    # Ratios: (4 + 2) / (4 * 2) = 3/4 and 8 / 16 = 1/2. 22 = e * (72 * 3/4 + 16/2) = 62 e.
    assert erdos_renyi(SHAPES, 0.25, kernel=False) == pytest.approx({"conv": 22 / 62 * 0.75, "linear": 22 / 62 * 0.5})


def test_erdos_renyi_makes_a_layer_over_one_dense_and_solves_the_rest_again():
    # Ratios 4/4 = 1 and 16/64 = 1/4. 34 = e * (4 + 16) gives e = 1.7, so `small` would be at 1.7: it becomes dense, and
    # the other layer takes what is left: 34 - 4 = 30 of 64.
    assert erdos_renyi({"small": (2, 2), "large": (8, 8)}, 0.5) == pytest.approx({"small": 1, "large": 30 / 64})


def test_erdos_renyi_at_density_one_is_dense():
    assert erdos_renyi({"small": (2, 2), "large": (8, 8)}, 1.0) == pytest.approx({"small": 1, "large": 1})


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("uniform", {"conv": 18, "linear": 4}),  # 72 / 4, 16 / 4
        ("erk", {"conv": 13, "linear": 9}),  # 13.2 and 8.8: one left over, to the larger remainder
        ("er", {"conv": 19, "linear": 3}),  # 19.16 and 2.84: likewise
    ],
)
def test_allocate_rounds_shares_to_whole_units(how, expected):
    assert allocate(SHAPES, 0.25, how) == expected


EIGHT = {"conv.weight": (2, 1), "fc.weight": (2, 3)}  # 2 and 6 weights


@pytest.mark.parametrize(
    ("shares", "density", "expected"),
    [
        ({"conv": 2, "fc": 1}, 5 / 8, (2, 3)),  # 5 = e (2 * 2 + 6 * 1) = 10 e: 2 and 3
        ({"fc": 0.1, "conv": 0.2}, 5 / 8, (2, 3)),  # what counts is their ratio, not their order
        ({"conv": 1, "fc": 2}, 5 / 8, (1, 4)),  # 5 = 14 e: 0.71 and 4.29
        ({"conv": 9, "fc": 1}, 5 / 8, (2, 3)),  # 5 = 24 e: 3.75 of 2, so all of them, and 3 are left
        ({"conv": 1, "fc": 9}, 4 / 8, (1, 3)),  # 4 = 56 e: 0.14 and 3.86, but every layer keeps one
        ({"conv": 1, "fc": 1e-300}, 2 / 8, (1, 1)),
        ({"conv": 1e-300, "fc": 1}, 8 / 8, (2, 6)),
    ],
)
def test_allocate_by_relative_densities(shares, density, expected):
    assert tuple(allocate(EIGHT, density, shares).values()) == expected


def test_relative_densities_before_rounding():
    assert relative(EIGHT, 5 / 8, {"conv": 1, "fc": 2}) == pytest.approx({"conv.weight": 5 / 14, "fc.weight": 10 / 14})


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"conv": 1, "fc": 1, "cnov": 1}, "unknown layer 'cnov': did you mean 'conv'? valid: conv, fc"),
        ({"conv.weight": 1, "fc": 1}, "unknown layer 'conv.weight': did you mean 'conv'? valid: conv, fc"),
        ({"conv": 1}, "every layer needs a relative density, and there is none for fc"),
        ({}, "every layer needs a relative density, and there is none for conv, fc"),
    ],
)
def test_relative_densities_name_the_layers(shares, message):
    with pytest.raises(UserError) as caught:
        allocate(EIGHT, 0.5, shares)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("scope", "conv", "fc"),
    [
        ("global", "00", "111011"),  # 0.9, 0.8, 0.7, 0.5, 0.4
        ("uniform", "01", "111001"),  # 1.25 and 3.75
        ({"conv": 2, "fc": 1}, "11", "111000"),
    ],
)
def test_keep_over_all_layers_or_each_its_share(scope, conv, fc):
    scores = {"conv.weight": torch.tensor([0.1, 0.2]), "fc.weight": torch.tensor([0.9, 0.8, 0.7, 0.3, 0.4, 0.5])}
    masks = units(scores).keep(scores, 5 / 8, scope)
    assert masks["conv.weight"].equal(bits(conv))
    assert masks["fc.weight"].equal(bits(fc))


def test_allocate_gives_a_tie_to_the_first_layer():
    assert allocate({"a": (1, 5), "b": (1, 5)}, 0.3) == {"a": 2, "b": 1}  # 1.5 each, 3 in all


def test_allocate_leaves_every_layer_one_unit():
    # Shares 0.04 and 3.96, 4 in all: the small layer's one unit is taken from the large one.
    assert allocate({"small": (1, 4), "large": (4, 99)}, 0.01) == {"small": 1, "large": 3}


@pytest.mark.parametrize("how", ["uniform", "er", "erk", "relative"])
def test_allocate_is_exact_for_many_shapes(how):
    draw = random.Random(how)
    for _ in range(300):
        layers = draw.randint(1, 8)
        shapes = {str(i): [draw.randint(1, 30) for _ in range(draw.choice((2, 4)))] for i in range(layers)}
        numel = {name: math.prod(shape) for name, shape in shapes.items()}
        density = draw.choice((draw.uniform(0.001, 1), 10 ** draw.uniform(-3, 0), 1.0))
        shares = {name: 10 ** draw.uniform(-4, 4) for name in shapes} if how == "relative" else how
        total = count(density, sum(numel.values()))
        if total < layers:
            with pytest.raises(UserError):
                allocate(shapes, density, shares)
            continue
        counts = allocate(shapes, density, shares)
        assert sum(counts.values()) == total
        assert all(1 <= counts[name] <= numel[name] for name in shapes)


def test_allocate_refuses_fewer_units_than_layers():
    with pytest.raises(UserError, match="keeps 1 of 12 weights, fewer than the network's 3 layers"):
        allocate({"a": (2, 2), "b": (2, 2), "c": (2, 2)}, 0.1)


# --- schedules ---


@pytest.mark.parametrize(
    ("schedule", "middle"),
    [
        (linear, 0.52),  # (1 + 0.04) / 2
        (cosine, 0.52),  # the wave is half way too
        (geometric, 0.2),  # sqrt(1 * 0.04)
        (cubic, 0.16),  # 0.04 + 0.96 / 8
        (sigmoid, 0.52),  # half way, like the line
    ],
)
def test_schedules_at_their_ends_and_half_way(schedule, middle):
    values = [schedule(1.0, 0.04, progress) for progress in (-0.5, 0, 0.5, 1, 1.5)]
    assert values == pytest.approx([1, 1, middle, 0.04, 0.04])


def test_cosine_is_flat_at_the_ends_and_cubic_is_fast_first():
    assert 1 - cosine(1, 0, 0.1) < 1 - linear(1, 0, 0.1) < 1 - cubic(1, 0, 0.1)


def test_sigmoid_by_hand():
    # The logistic curve at a quarter is 1 / (1 + e^3) = 0.047426, and runs from 1 / (1 + e^6) = 0.002473 to 0.997527:
    # (0.047426 - 0.002473) / 0.995055 = 0.045177 of the way.
    assert sigmoid(1.0, 0.0, 0.25) == pytest.approx(1 - 0.045177, abs=1e-5)
    assert sigmoid(0.0, 1.0, 0.75) == pytest.approx(1 - 0.045177, abs=1e-5)  # and symmetric
    # biomedical-cybernetics/Cannistraci-Hebb-Training-Soft-Rule- llm/dst_scheduler.py, k = 6, from 0.5 to 0.1.
    assert [sigmoid(0.5, 0.1, progress) for progress in (0.2, 0.8)] == pytest.approx([0.4903, 0.1097], abs=1e-4)


def test_sigmoid_is_slow_at_the_ends_and_steeper_if_told():
    assert 1 - sigmoid(1, 0, 0.1) < 1 - linear(1, 0, 0.1)
    assert sigmoid(1, 0, 0.25, steepness=20) > sigmoid(1, 0, 0.25) > linear(1, 0, 0.25)


@pytest.mark.parametrize("schedule", [linear, cosine, geometric, cubic, sigmoid])
def test_a_falling_schedule_never_rises_nor_leaves_its_range(schedule):
    values = [schedule(0.9, 0.1, step / 99) for step in range(100)]
    assert values == sorted(values, reverse=True)
    assert (values[0], values[-1]) == (pytest.approx(0.9), pytest.approx(0.1))


# --- samplers ---

RELEVANCE = torch.tensor([-3.0, -1.0, 0.0, 0.5, 2.0])
DRAWS = 100_000


def uniform_draws(seed):
    return torch.rand(DRAWS, len(RELEVANCE), generator=rng(seed))


@pytest.mark.parametrize("gate", [logistic_gate, bernoulli_gate])
def test_gates_are_open_with_probability_sigma(gate):
    sample = gate(RELEVANCE.expand(DRAWS, -1), uniform_draws(1))
    assert sample.unique().tolist() == [0, 1]
    keep = RELEVANCE.sigmoid()
    error = (keep * (1 - keep) / DRAWS).sqrt()
    assert ((sample.mean(0) - keep).abs() < 4 * error).all()


def test_logistic_gate_by_hand():
    # m + logit(u) > 0 exactly when u > sigma(-m): for m = ln 3 that is u > 1/4, for m = -ln 3 u > 3/4.
    relevance = torch.tensor([1.0] * 4 + [-1.0] * 4) * math.log(3)
    draws = torch.tensor([0.2, 0.24, 0.26, 0.9, 0.2, 0.7, 0.76, 0.9])
    assert logistic_gate(relevance, draws).tolist() == [0, 0, 1, 1, 0, 0, 1, 1]


def test_logistic_gate_is_a_hard_gumbel_softmax():
    logits = torch.stack([RELEVANCE, torch.zeros_like(RELEVANCE)], dim=1).expand(DRAWS, -1, -1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        theirs = F.gumbel_softmax(logits, hard=True)[..., 0].mean(0)
    ours = logistic_gate(RELEVANCE.expand(DRAWS, -1), uniform_draws(3)).mean(0)
    keep = RELEVANCE.sigmoid()
    error = (2 * keep * (1 - keep) / DRAWS).sqrt()  # of the difference of two means
    assert ((ours - theirs).abs() < 4 * error).all()


def logistic_slope(relevance, draw, temperature):
    """sigma'((m + logit u) / tau) / tau."""
    p = ((relevance + draw.logit()) / temperature).sigmoid()
    return p * (1 - p) / temperature


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logistic_gate_has_the_closed_form_gradient(temperature, dtype):
    relevance = torch.linspace(-4, 4, 50, dtype=dtype).requires_grad_()
    draw = torch.rand(50, generator=rng(), dtype=dtype) * 0.98 + 0.01
    upstream = torch.linspace(1, 2, 50, dtype=dtype)
    logistic_gate(relevance, draw, temperature).backward(upstream)
    expected = upstream * logistic_slope(relevance.detach(), draw, temperature)
    torch.testing.assert_close(relevance.grad, expected)


@pytest.mark.parametrize("relevance", [-30.0, 30.0])
def test_logistic_gate_has_the_closed_form_gradient_far_from_zero_at_high_temperature(relevance):
    relevance = torch.tensor([relevance], dtype=torch.float64, requires_grad=True)
    half = torch.tensor([0.5], dtype=torch.float64)
    logistic_gate(relevance, half, 2.0).sum().backward()
    torch.testing.assert_close(relevance.grad, logistic_slope(relevance.detach(), half, 2.0))  # sigma'(15) / 2 = 1.5e-7


@pytest.mark.parametrize("relevance", [-200.0, -50.0, 0.0, 50.0, 200.0])
@pytest.mark.parametrize("draw", [2**-24, 1 - 2**-24])  # the ends of the open interval
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_logistic_gate_stays_finite_at_the_ends(relevance, draw, temperature):
    relevance = torch.tensor([relevance], requires_grad=True)
    sample = logistic_gate(relevance, torch.tensor([draw]), temperature)
    sample.sum().backward()
    assert sample.item() in (0, 1)
    assert relevance.grad.isfinite().all()


def test_bernoulli_gate_passes_the_slope_of_sigma_whatever_is_drawn():
    relevance = RELEVANCE.clone().requires_grad_()
    sample = bernoulli_gate(relevance, torch.tensor([0.9, 0.1, 0.9, 0.1, 0.9]))
    assert sample.tolist() == [0, 1, 0, 1, 0]  # open where u < sigma: 0.05, 0.27, 0.5, 0.62, 0.88
    sample.backward(torch.full((5,), 2.0))
    torch.testing.assert_close(relevance.grad, 2 * RELEVANCE.sigmoid() * (1 - RELEVANCE.sigmoid()))


def test_straight_through_is_the_mask_forward_and_the_identity_backward():
    relevance = torch.randn(8, generator=rng(), dtype=torch.float64, requires_grad=True)
    upstream = torch.arange(8, dtype=torch.float64)
    out = straight_through(relevance, bits("01100101"))
    assert out.dtype == torch.float64
    assert out.tolist() == [0, 1, 1, 0, 0, 1, 0, 1]
    out.backward(upstream)
    assert relevance.grad.equal(upstream)


# --- rescaling ---


def test_dynamic_is_numel_over_alive():
    assert dynamic(bits("11010000").float()) == 8 / 3
    assert dynamic(torch.zeros(8)) == 8  # an empty layer counts as one unit


def test_fan_in_is_a_factor_for_each_output():
    topology = torch.stack([bits("1000"), bits("1111"), bits("0000")]).float()  # 1, 4 and 0 of a fan-in of 4
    assert fan_in(topology).tolist() == [[2], [1], [2]]  # sqrt(4 / 1), sqrt(4 / 4), and that of one connection


def test_fan_in_of_a_filter_broadcasts():
    assert fan_in(torch.ones(5, 4, 3, 3)).shape == (5, 1, 1, 1)


def masked_weight_inputs(layout):
    weight = torch.randn(5, 4, 3, 3, generator=rng(1), dtype=torch.float64)
    topology = torch.rand(5, 4, 3, 3, generator=rng(2), dtype=torch.float64)
    return tuple(t.contiguous(memory_format=layout) for t in (weight, topology))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", ["none", "learned", "constant", "per output"])
def test_masked_weight_has_the_gradients_of_the_product(kind, layout):
    weight, topology = masked_weight_inputs(layout)
    scale = {
        "none": None,
        "learned": torch.tensor(1.7, dtype=torch.float64, requires_grad=True),
        "constant": torch.tensor(1.7, dtype=torch.float64),
        "per output": torch.rand(5, 1, 1, 1, generator=rng(3), dtype=torch.float64).requires_grad_(),
    }[kind]
    upstream = torch.randn(5, 4, 3, 3, generator=rng(4), dtype=torch.float64)
    inputs = [topology.requires_grad_()] + ([scale] if kind in ("learned", "per output") else [])
    expected = weight * topology if scale is None else scale * weight * topology
    ours = masked_weight(weight, topology, scale)
    torch.testing.assert_close(ours, expected)
    before = [t.detach().clone() for t in (weight, topology, upstream)]
    for got, wanted in zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        assert got.shape == wanted.shape
        torch.testing.assert_close(got, wanted)
    assert all(now.equal(then) for now, then in zip((weight, topology, upstream), before, strict=True))


# --- budgets ---


def test_without_a_density_relevance_from_zero_up_is_kept():
    relevance = torch.tensor([-1.0, 0.0, 0.1, -0.1, 3.0, -0.0, -5.0, 2.0], requires_grad=True)
    assert units({"w": relevance}).relevant({"w": relevance}, None)["w"].equal(bits("01101101"))


def test_relevant_keeps_an_exact_share_over_all_layers():
    relevance = {"a": torch.tensor([-1.0, -2.0, -3.0, 9.0]), "b": torch.tensor([5.0, 6.0, -9.0, -8.0])}
    masks = units(relevance).relevant(relevance, 0.5)  # 4 of 8: 9, 6, 5, -1
    assert masks["a"].equal(bits("1001"))
    assert masks["b"].equal(bits("1100"))


def test_budget_penalty_by_hand():
    relevance = {"a": torch.zeros(6, requires_grad=True), "b": torch.full((2,), math.log(3.0), requires_grad=True)}
    # E[density] = (6 * 1/2 + 2 * 3/4) / 8 = 9/16; ((9/16 - 1/4) / (1/4))^2 = (5/4)^2.
    penalty = budget_penalty(relevance, 0.25)
    assert penalty.item() == pytest.approx(25 / 16)
    penalty.backward()
    # 2 * 5/4 * (1 / 0.25) * sigma'(m) / 8: above the budget, every relevance is pushed down.
    torch.testing.assert_close(relevance["a"].grad, torch.full((6,), 2 * 1.25 * 4 * 0.25 / 8))
    torch.testing.assert_close(relevance["b"].grad, torch.full((2,), 2 * 1.25 * 4 * 0.1875 / 8))


def test_budget_penalty_of_each_layers_share():
    # Every weight is as likely kept as not: 1 of 2 and 3 of 6 expected. Shares of 5: 2 and 3.
    relevance = {"conv.weight": torch.zeros(2), "fc.weight": torch.zeros(6)}
    assert budget_penalty(relevance, 5 / 8, {"conv": 2, "fc": 1}).item() == pytest.approx(((1 / 2 - 1) ** 2 + 0) / 2)


def test_budget_penalty_vanishes_on_the_budget():
    assert budget_penalty({"w": torch.zeros(8)}, 0.5).item() == 0


def test_noise_is_a_function_of_its_seed_and_never_an_end():
    like = torch.empty(1001, 999)
    drawn = uniform_noise(like, 7)
    assert torch.equal(drawn, uniform_noise(like, 7))
    assert not torch.equal(drawn, uniform_noise(like, 8))
    assert 0 < drawn.min() < 1e-4
    assert 1 - 1e-4 < drawn.max() < 1
    # The mean of a million draws from U(0, 1) lies within 5 standard errors, 5 / sqrt(12 * 1e6) = 0.0015.
    assert abs(drawn.mean().item() - 0.5) < 0.0015
    assert abs(drawn.var().item() - 1 / 12) < 0.001
    assert uniform_noise(like.double(), 7).dtype == torch.float64


@pytest.mark.parametrize("numel", [1000, 1_000_007])
def test_top_k_by_magnitude_is_top_k_of_magnitudes(numel):
    draw = torch.Generator().manual_seed(numel)
    scores, among = torch.randn(numel, generator=draw), torch.rand(numel, generator=draw) < 0.5
    for k in (3, numel // 10, numel // 3):
        assert select.top_k(scores, k, among, magnitude=True).equal(select.top_k(scores.abs(), k, among))
        assert select.top_k(scores, k, magnitude=True).equal(select.top_k(scores.abs(), k))
