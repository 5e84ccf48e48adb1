"""n:m: the pattern holds after every change, for random shapes, densities, ways to share and targets; or it is refused."""

import random

import pytest
import torch
from toys import mlp, points

import subnet_search as ss
from subnet_search import UserError
from subnet_search.extractors import extractor_names, get_extractor
from subnet_search.topology.masks import Masks, alive
from subnet_search.topology.select import NotANumber, count
from subnet_search.topology.units import NM

SCOPES = ("global", "uniform", "erk", "relative")
SEEDS = range(40)


def drawn(seed):
    """Units of random shapes, with or without prices and a rest that is not pruned, and random scores."""
    draw, rng = random.Random(seed), torch.Generator().manual_seed(seed)
    m = draw.choice([2, 3, 4, 8])
    n = draw.randint(1, m - 1)
    shapes = {}
    for name in "abcd"[: draw.randint(1, 4)]:
        kernel = draw.choice([(), (), (3,), (3, 3)])
        shapes[name] = (draw.randint(1, 12), draw.randint(1, 13), *kernel)
    prices = {name: draw.choice([0.5, 1.0, 7.0, 40.0]) for name in shapes} if draw.random() < 0.6 else None
    whole = draw.choice([0.0, 30.0]) if prices else 0.0
    scores = {name: torch.rand(shape, generator=rng) for name, shape in shapes.items()}
    return NM(shapes, n, m, prices, whole), scores, draw, rng


def scope_of(draw, units):
    scope = draw.choice(SCOPES)
    return {name: draw.choice([0.2, 1.0, 3.0]) for name in units.shapes} if scope == "relative" else scope


def worst(units, masks):
    """The most weights alive in any group."""
    found = 0
    for mask in masks.values():
        lined = mask.transpose(1, -1)
        for group in lined.split(units.m, -1):
            found = max(found, int(group.sum(-1).max()))
    return found


def accepted(units, density, scope):
    try:
        units.check(density, scope)
    except UserError:
        return False
    return True


@pytest.mark.parametrize("seed", SEEDS)
def test_a_density_that_is_accepted_is_met_within_the_pattern(seed):
    units, scores, draw, _ = drawn(seed)
    for _ in range(12):
        density, scope = draw.choice([draw.uniform(0.01, 1), units.n / units.m, 0.5]), scope_of(draw, units)
        if accepted(units, density, scope):
            masks = units.keep(scores, density, scope)
            assert worst(units, masks) <= units.n
            if units.exact:
                assert masks.kept == count(density, masks.numel)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_pattern_holds_on_the_way_down(seed):
    """Densities that fall among what lives, with weights swapped in between, as GraNet does."""
    units, scores, draw, rng = drawn(seed)
    final, scope = draw.choice([draw.uniform(0.02, 1), units.n / units.m]), scope_of(draw, units)
    if not accepted(units, final, scope):
        return
    masks, swaps = Masks.ones(scores), draw.random() < 0.5
    for step in range(1, 6):
        density = final ** (step / 5)
        masks = units.keep(scores, density, scope, masks)
        scores = {name: torch.rand(shape, generator=rng) for name, shape in units.shapes.items()}
        if swaps:
            kept = masks.kept
            masks = units.regrow(masks, scores, {n: torch.rand(s, generator=rng) for n, s in units.shapes.items()}, 0.3)
            assert masks.kept == kept
        if units.exact:
            assert masks.kept == count(density, masks.numel)
        for name, mask in masks.items():  # a layer is either full in every group, or has n at most
            assert alive(mask) > units._most[name] or worst(units, {name: mask}) <= units.n
    assert worst(units, masks) <= units.n


@pytest.mark.parametrize("seed", SEEDS)
def test_a_target_is_met_as_near_as_a_unit_allows(seed):
    units, scores, draw, _ = drawn(seed)
    for density in (draw.uniform(0.05, 1), draw.uniform(0.05, 0.6)):
        scope = draw.choice(["global", "uniform"])
        least = units._cost(dict.fromkeys(units.shapes, 1)) if scope == "uniform" else 0.0
        if accepted(units, density, scope) and density >= least:
            reached = units.cost(units.keep(scores, density, scope))
            assert abs(reached - density) <= len(units.shapes) * units.coarseness + 1e-9


def test_scores_that_are_not_numbers_are_refused():
    units, scores = NM({"w": (2, 4)}, 2, 4), {"w": torch.full((2, 4), torch.nan)}
    with pytest.raises(NotANumber, match="a score is not a number"):
        units.keep(scores, 0.5)
    with pytest.raises(NotANumber, match="a score is not a number"):
        units.grow(Masks({"w": torch.zeros(2, 4, dtype=torch.bool)}), scores, Masks.ones(scores))


PATTERNED = [name for name in extractor_names() if "n:m" in get_extractor(name).paradigm.units]


@pytest.mark.parametrize("name", PATTERNED)
@pytest.mark.parametrize("density", [0.6, 0.45])
def test_every_method_keeps_the_pattern_or_is_refused(name, density):
    fields = get_extractor(name).model_fields
    if "density" not in fields:
        assert "density" not in fields
        return
    more = {"rounds": 3} if "rounds" in fields else {}
    more |= {key: "uniform" for key in ("scope", "allocation") if key in fields}
    recipe = ss.Recipe(epochs=2, batch_size=32, threads=1, lr=0.01, device="cpu")
    if density == 0.6:
        with pytest.raises(UserError, match="2:4 keeps at most"):
            ss.extract(mlp(), points(200), name, unit="2:4", density=density, recipe=recipe, **more)
        return
    subnet = ss.extract(mlp(), points(200), name, unit="2:4", density=density, recipe=recipe, **more)
    for mask in subnet.masks.values():
        assert max(int(group.sum(-1).max()) for group in mask.split(4, 1)) <= 2


def test_weights_that_are_not_numbers_are_refused_before_training():
    net = mlp()
    with torch.no_grad():
        net[0].weight[0, 0] = torch.nan
    recipe = ss.Recipe(epochs=1, threads=1, device="cpu")
    with pytest.raises(
        UserError, match="snip: a score is not a number before training: check that data and weights are finite"
    ):
        ss.extract(net, points(100), "snip", density=0.3, unit="2:4", recipe=recipe)
