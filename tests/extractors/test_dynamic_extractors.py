"""Extractors that move their topology while the network trains: eight weights by hand, then whole runs."""

import math
from collections import Counter
from dataclasses import dataclass, field

import pytest
import torch
from toys import mlp, points, run_config, supernet, units

from subnet_search import Masks, Recipe, RunConfig
from subnet_search.core.errors import Interrupted, UserError
from subnet_search.data import Batches
from subnet_search.extractors import Clock, create
from subnet_search.topology.schedules import cosine, cubic, sigmoid
from subnet_search.topology.select import allocate, count
from subnet_search.topology.units import Units
from subnet_search.training.loop import Run


def bits(text):
    """A bool tensor from zeros and ones, with rows set apart by spaces: bits("0110 1000")."""
    return torch.tensor([[character == "1" for character in row] for row in text.split()])


def text(mask):
    """What `bits` turns into a mask."""
    return " ".join("".join("01"[int(unit)] for unit in row) for row in mask)


def eight(*values):
    return torch.tensor(values, dtype=torch.float32).view(2, 4)


@dataclass
class Tiny:
    """A network of one layer, as far as an extractor looks at it."""

    weights: dict[str, torch.Tensor]
    masks: Masks
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    momentum: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def units(self):
        return units(self.weights)

    def changed(self, extractor, clock):
        """The topology after this step, in zeros and ones; None when it stays."""
        change = extractor.step(self, clock)
        return None if change is None else text(change.masks["w"])


def tiny(weights, mask=None, gradients=None, momentum=None):
    mask = torch.ones_like(weights, dtype=torch.bool) if mask is None else bits(mask)
    given = {"gradients": gradients, "momentum": momentum}
    return Tiny({"w": weights * mask}, Masks({"w": mask}), **{k: {"w": v} for k, v in given.items() if v is not None})


def at(step, total=100, seed=0):
    return Clock(step, total, seed)


# --- the clock ---


@pytest.mark.parametrize(
    ("span", "total", "steps"),
    [
        (5, 100, 5),
        (1, 100, 1),  # a whole number: one step
        (1.0, 100, 100),  # a decimal: the whole run
        (0, 100, 0),
        (0.0, 100, 0),
        (0.05, 100, 5),
        (0.333, 100, 33),
        (0.016, 100, 2),  # 1.6, to the nearest
        (0.014, 100, 1),
        (0.004, 100, 0),
        (250, 100, 250),
        (0.5, 0, 0),
    ],
)
def test_a_span_is_steps_or_a_fraction_of_the_run(span, total, steps):
    assert Clock(0, total, 0).steps(span) == steps


@pytest.mark.parametrize(("given", "every", "until"), [((1, 1.0), 1, 50), ((0.1, 25), 5, 25), ((10, 0.5), 10, 25)])
def test_whole_numbers_and_decimals_stay_apart_in_a_configuration(given, every, until):
    settings = RunConfig(extractor={"name": "set", "every": given[0], "until": given[1]})
    again = RunConfig.model_validate_json(settings.model_dump_json())
    for extractor in (create(settings.extractor), create(again.extractor)):
        assert at(0, 50).steps(extractor.every) == every
        assert at(0, 50).steps(extractor.until) == until


@pytest.mark.parametrize(
    ("every", "until", "due"),
    [
        (20, 1.0, [20, 40, 60, 80]),  # never at step 0, nor after the last, 99
        (0.2, 1.0, [20, 40, 60, 80]),
        (20, 0.6, [20, 40]),  # before step 60
        (20, 61, [20, 40, 60]),
        (33, 1.0, [33, 66, 99]),
        (100, 1.0, []),
        (0, 4, [1, 2, 3]),  # every step at the most
        (1, 4, [1, 2, 3]),
        (0.001, 25, [10, 20]),  # a fraction is ten steps at least
        (0.09, 25, [10, 20]),
        (0.11, 25, [11, 22]),
        (1, 1, []),
    ],
)
def test_when_an_event_is_due(every, until, due):
    assert [step for step in range(100) if at(step).due(every, until)] == due


@pytest.mark.parametrize(
    ("every", "start", "end", "moves"),
    [
        (10, 20, 50, {30: 10 / 30, 40: 20 / 30, 50: 1}),
        (0.1, 0.2, 0.5, {30: 10 / 30, 40: 20 / 30, 50: 1}),
        (10, 20, 55, {30: 10 / 35, 40: 20 / 35, 50: 30 / 35, 55: 1}),  # the last move comes early rather than not
        (50, 0, 1.0, {50: 50 / 99, 99: 1}),  # the last step of the run is 99
        (80, 20, 50, {50: 1}),
        (10, 10, 10, {10: 1}),
        (10, 100, 100, {99: 1}),
        (10, 0, 0, {0: 1}),
    ],
)
def test_when_a_ramp_moves_and_how_far_it_has_come(every, start, end, moves):
    found = {step: at(step).ramp(every, start, end) for step in range(100)}
    assert {step: done for step, done in found.items() if done is not None} == pytest.approx(moves)


@pytest.mark.parametrize(
    ("settings", "total", "message"),
    [
        ({"name": "set", "every": 100}, 100, "set.every: an interval of 100 steps is longer than the run of 100"),
        ({"name": "set", "every": 1.0}, 100, "set.every: an interval of 100 steps is longer than the run of 100"),
        ({"name": "rigl", "until": 101}, 100, "rigl.until: step 101 is after the end of the run of 100 steps"),
        ({"name": "gmp", "start": 0.5, "end": 0.4}, 100, "gmp.end: step 40 is before the start, step 50"),
        ({"name": "ac_dc"}, 0, "ac_dc.end: this method works while it trains, and recipe.epochs is 0"),
        ({"name": "granet", "initial_density": 0.3, "density": 0.4}, 100, "initial_density 0.3 is below the density 0.4"),
        ({"name": "cht", "initial_density": 0.05}, 100, "cht.initial_density 0.05 is below the density 0.1"),
        ({"name": "mest", "density": 0.04}, 100, "keeps 2 of 48 weights, fewer than the network's 3 layers"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_first_step(settings, total, message):
    with pytest.raises(UserError, match=message):
        create(settings).check(Units(dict.fromkeys("abc", (4, 4))), at(0, total))


@pytest.mark.parametrize("scope", ["uniform", "erk"])
@pytest.mark.parametrize("name", ["gmp", "ac_dc"])
def test_a_density_below_a_weight_a_layer_is_refused_before_the_first_step(name, scope):
    method = create({"name": name, "density": 0.1, "scope": scope})
    with pytest.raises(UserError, match="keeps 1 of 12 weights"):
        method.check(Units(dict.fromkeys("abc", (2, 2))), at(0))


# --- eight weights ---

WEIGHTS = eight(5, -1, 4, 2, 0, 0, 0, 0)  # by magnitude positions 1, 3, 2, 0 go first
MASK = "1111 0000"
GRADIENTS = eight(9, 3, 9, 1, -4, 2, 5, 0)  # of the dead, by magnitude, 6, 4, 5, 7 grow first


def test_set_drops_the_smallest_and_grows_at_random():
    method = create({"name": "set", "drop_fraction": 0.5, "every": 20})
    grown = Counter()
    for seed in range(600):
        after = bits(tiny(WEIGHTS, MASK).changed(method, at(40, seed=seed))).view(-1)
        assert after[0]  # 5 and 4 stay
        assert after[2]
        assert after.sum() == 4
        grown.update(after.nonzero().view(-1).tolist())
    # Two of the other six grow, those two among them that have just been dropped: each with a chance of 1/3.
    error = 4 * math.sqrt(600 * 1 / 3 * 2 / 3)
    assert {position for position in grown if abs(grown[position] - 200) <= error} == {1, 3, 4, 5, 6, 7}


def test_set_grows_others_at_another_step_and_the_same_at_the_same():
    method = create({"name": "set", "drop_fraction": 0.5, "every": 1})
    found = [tiny(WEIGHTS, MASK).changed(method, at(step)) for step in range(1, 30)]
    assert found == [tiny(WEIGHTS, MASK).changed(method, at(step)) for step in range(1, 30)]
    assert len(set(found)) > 5


RIGL = {"name": "rigl", "drop_fraction": 0.5, "every": 20, "until": 80}


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, None),
        (10, None),
        (20, "1010 1010"),  # 1/2 * (1 + cos(pi / 4)) / 2 = 0.43 of 4: two drop, 1 and 3; 6 and 4 grow
        (40, "1011 0010"),  # 1/2 * 1/2 of 4: 1 drops, 6 grows
        (60, "1011 0010"),  # 0.07 of 4, rounded up
        (80, None),
        (99, None),
    ],
)
def test_rigl_drops_the_smallest_and_grows_the_largest_gradients(step, expected):
    assert tiny(WEIGHTS, MASK, GRADIENTS).changed(create(RIGL), at(step)) == expected


def test_rigl_by_momentum_looks_at_that_and_not_at_the_gradient():
    method = create({**RIGL, "grow": "momentum"})
    momentum = eight(0, 0, 0, 0, 1, -7, 2, 6)  # 5 and 7 are highest
    assert method.needs_momentum
    assert tiny(WEIGHTS, MASK, GRADIENTS, momentum).changed(method, at(20)) == "1010 0101"


def test_rigl_at_random_is_set_with_a_falling_fraction():
    # At step 40 a quarter of four is moved, as SET does with a constant quarter.
    rigl, like = create({**RIGL, "grow": "random"}), create({"name": "set", "drop_fraction": 0.25, "every": 20})
    assert not rigl.needs_momentum
    for seed in range(20):
        clock = at(40, seed=seed)
        assert tiny(WEIGHTS, MASK, GRADIENTS).changed(rigl, clock) == tiny(WEIGHTS, MASK).changed(like, clock)


FALLING = eight(8, -7, 6, 5, 4, 3, -2, 1)


@pytest.mark.parametrize(
    ("step", "mask", "expected"),
    [
        (20, None, "1110 0000"),  # 1/4 + 3/4 (1 - 1/2)^3 = 0.34 of 8: three
        (30, None, None),
        (40, None, "1100 0000"),  # 1/4 of 8
        (40, "0011 1010", "0011 0000"),  # nothing grows
        (60, "1100 0000", None),  # and then it stays
    ],
)
@pytest.mark.parametrize("scope", ["global", "uniform", "erk"])  # the same for a single layer
def test_gmp_follows_its_ramp(step, mask, expected, scope):
    method = create({"name": "gmp", "density": 0.25, "start": 0, "end": 40, "every": 20, "scope": scope})
    assert tiny(FALLING, mask).changed(method, at(step)) == expected


def test_gmp_prefers_a_living_zero_to_a_dead_one():
    method = create({"name": "gmp", "density": 0.25, "start": 0, "end": 40, "every": 20})
    assert tiny(eight(0, 0, 0, 0, 0, 0, 5, 0), "0000 1111").changed(method, at(40)) == "0000 1010"


GRANET = {"name": "granet", "density": 0.5, "end": 40, "every": 20, "drop_fraction": 0.2, "final_drop_fraction": 0.2}


@pytest.mark.parametrize(
    ("step", "mask", "expected"),
    [
        # 1/2 + 1/2 (1 - 1/2)^3 = 9/16 of 8 is 4.5, so five stay: 0 to 4. A fifth of them is swapped: 4 for 6.
        (20, None, "1111 0010"),
        # Half of 8 stay, 0 to 3; 0.2 * 4 rounded up is one: 3 for 6.
        (40, "1111 0010", "1110 0010"),
        # After the ramp, the swaps go on: of 0, 1, 2, 6 the last drops; 7 and 6 have the largest gradients, 9 and 8.
        (60, "1110 0010", "1110 0010"),
        (80, "1110 0001", "1110 0010"),
        (50, "1110 0010", None),
        (0, None, None),
    ],
)
def test_granet_shrinks_and_swaps(step, mask, expected):
    gradients = eight(0, 0, 0, 1, 2, 3, 9, 8)
    assert tiny(FALLING, mask, gradients).changed(create(GRANET), at(step)) == expected


def test_granet_swaps_the_share_that_a_cosine_gives():
    # From 1/2 to 0.005 over all 100 steps. Four live; at step 20 (0.45 of 4) two are swapped, at 80 (0.05) one.
    method = create({**GRANET, "drop_fraction": 0.5, "final_drop_fraction": 0.005, "end": 10})
    gradients = eight(0, 0, 0, 0, 1, 2, 3, 4)
    assert tiny(FALLING, MASK, gradients).changed(method, at(20)) == "1100 0011"
    assert tiny(FALLING, MASK, gradients).changed(method, at(80)) == "1110 0001"


def test_granet_grows_by_what_it_is_told():
    gradients, momentum = eight(0, 0, 0, 0, 1, 9, 1, 1), eight(0, 0, 0, 0, 1, 1, 1, -9)
    net = tiny(FALLING, MASK, gradients, momentum)
    by = {grow: create({**GRANET, "grow": grow}) for grow in ("gradient", "momentum", "random")}
    assert [method.needs_momentum for method in by.values()] == [False, True, False]
    assert net.changed(by["gradient"], at(60)) == "1110 0100"
    assert net.changed(by["momentum"], at(60)) == "1110 0001"
    random = {net.changed(by["random"], at(60, seed=seed)) for seed in range(60)}
    assert random == {"1111 0000", "1110 1000", "1110 0100", "1110 0010", "1110 0001"}


def test_granet_from_a_sparse_topology_begins_with_an_exact_half():
    method = create({**GRANET, "initial_density": 0.5, "density": 0.25})
    net = tiny(FALLING, None, eight(0, 0, 0, 0, 0, 0, 0, 0))
    net.masks = method.begin(net, at(0), None).masks
    assert net.masks.kept == 4
    assert bits(net.changed(method, at(20))).sum() == 2  # 1/4 + 1/4 (1/2)^3 = 0.28 of 8


@pytest.mark.parametrize("start", [0, 3])
def test_granet_changes_no_more_often_than_every_so_many_steps(start):
    method = create({**GRANET, "start": start, "end": 43 + start, "every": 10})
    net = tiny(FALLING, None, eight(0, 0, 0, 0, 0, 0, 0, 0))
    steps = [step for step in range(100) if net.changed(method, at(step)) is not None]
    ramp = [step for step in steps if start < step < 43 + start]
    assert ramp == [start + 10, start + 20, start + 30, start + 40]


@pytest.mark.parametrize(
    ("gradient_weight", "expected"),
    [
        (0.0, "1011"),  # |w| is 5, 1, 4, 2: position 1 goes
        (1.0, "1110"),  # |w| + |g| is 5, 5, 4, 3: position 3 goes
        (10.0, "0111"),  # 5, 41, 4 + 10, 12: position 0 goes
    ],
)
def test_mest_drops_by_weight_and_gradient_together(gradient_weight, expected):
    method = create({"name": "mest", "gradient_weight": gradient_weight, "drop_fraction": 0.5, "every": 20, "until": 80})
    gradients = eight(0, -4, 1, 1, 9, 9, 9, 9)
    always = torch.ones(2, 4, dtype=torch.bool)
    for seed in range(40):  # at step 40 half of the fraction is left: one of four is moved
        after = tiny(WEIGHTS, MASK, gradients).changed(method, at(40, seed=seed))
        assert bits(after).sum() == 4
        always &= bits(after)
    assert text(always) == f"{expected} 0000"


@pytest.mark.parametrize(("step", "moved"), [(20, 3), (40, 2), (60, 1), (80, None)])
def test_mest_moves_a_share_that_falls_along_a_line(step, moved):
    # All of four at first, nothing at step 80: 3/4, 1/2 and 1/4 of them in between.
    method = create({"name": "mest", "drop_fraction": 1.0, "every": 20, "until": 80})
    # A dropped weight may come back; over many seeds the least that stays is what was not moved.
    found = [tiny(WEIGHTS, MASK, GRADIENTS).changed(method, at(step, seed=seed)) for seed in range(60)]
    if moved is None:
        assert set(found) == {None}
    else:
        assert min(int((bits(after) & bits(MASK)).sum()) for after in found) == 4 - moved


@pytest.mark.parametrize(
    ("settings", "events"),
    [
        # Phases of five steps (a tenth of 50, raised to ten) from 10 on, compressed (C) and decompressed (D) in turn; the
        # last compressed one from 35 on.
        ({"start": 0.2, "end": 0.7, "every": 0.1}, {10: "C", 20: "D", 35: "C"}),
        ({"start": 0.2, "end": 0.7, "every": 5}, {10: "C", 15: "D", 20: "C", 25: "D", 35: "C"}),
        ({"start": 10, "end": 30, "every": 5}, {10: "C", 15: "D", 20: "C", 25: "D", 30: "C"}),
        ({"start": 10, "end": 32, "every": 5}, {10: "C", 15: "D", 20: "C", 25: "D", 32: "C"}),
        # A compressed phase from 20 on and a decompressed one would end at 30, after the last one's start.
        ({"start": 10, "end": 29, "every": 5}, {10: "C", 15: "D", 29: "C"}),
        ({"start": 10, "end": 27, "every": 5}, {10: "C", 15: "D", 27: "C"}),
        ({"start": 0, "end": 1.0, "every": 20}, {0: "C", 20: "D", 49: "C"}),  # at the last step at the latest
        ({"start": 30, "end": 30, "every": 5}, {30: "C"}),
    ],
)
def test_ac_dc_alternates_and_ends_compressed(settings, events):
    net, method = tiny(FALLING), create({"name": "ac_dc", "density": 0.5, **settings})
    found = {step: net.changed(method, at(step, 50)) for step in range(50)}
    assert {step: mask for step, mask in found.items() if mask is not None} == {
        step: {"C": "1111 0000", "D": "1111 1111"}[phase] for step, phase in events.items()
    }


def test_ac_dc_compresses_inside_what_lives():
    method = create({"name": "ac_dc", "density": 0.25, "start": 0, "end": 20, "every": 20})
    assert tiny(FALLING, "0111 1000").changed(method, at(20)) == "0110 0000"


CHT = {"name": "cht", "every": 20, "drop_fraction": 0.2, "importance": "magnitude"}


def test_cht_grows_where_the_topology_that_is_left_closes_a_path():
    # 110 / 010 / 101, of which the link u2 - v0 has the weight 0, so that it drops, one of five. In what is left,
    # u0: v0 v1; u1: v1; u2: v2, the only path of length three is u1 - v1 - u0 - v0: the pair (u1, v0) must grow.
    weights = torch.tensor([[3.0, 2, 0], [0, 2, 0], [0, 0, 1]])
    for seed in range(30):
        assert tiny(weights, "110 010 101").changed(create(CHT), at(20, seed=seed)) == "110 110 001"


def test_cht_grows_in_proportion_to_the_score_of_the_community():
    # u0: v0 v1; u1: v0 v1 v2; u2: v2 v3, and u2 - v1 with a weight of 0, which drops. One of 8 is moved. In what is left
    # the dead pairs score (u0, v2) 7, (u1, v3) 4, (u2, v0) 3, (u2, v1) 3 and (u0, v3) 0, as in test_regrow.
    weights = torch.tensor([[1.0, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1]])
    method = create({**CHT, "drop_fraction": 0.1})
    grown, seeds = Counter(), 1000
    for seed in range(seeds):
        after = bits(tiny(weights, "1100 1110 0111").changed(method, at(20, seed=seed)))
        (new,) = (after & (weights == 0)).nonzero().tolist()
        grown[tuple(new)] += 1
    for pair, share in {(0, 2): 7 / 17, (1, 3): 4 / 17, (2, 0): 3 / 17, (2, 1): 3 / 17, (0, 3): 0}.items():
        assert abs(grown[pair] - seeds * share) <= 4 * math.sqrt(seeds * share * (1 - share)), pair


@pytest.mark.parametrize(("softness", "power"), [(0.5, 1), (2 / 3, 2)])
def test_cht_keeps_in_proportion_to_a_power_of_importance(softness, power):
    # Four of eight live and three are moved, so one stays; at the first step delta / (1 - delta) is 1 or 2.
    method = create({**CHT, "softness": softness, "final_softness": softness})
    net, draws = tiny(eight(1, -2, 3, 4, 0, 0, 0, 0), MASK), 2000
    kept = Counter(int(method._survival(net, at(20, seed=seed))["w"].argmax()) for seed in range(draws))
    total = 1 + 2**power + 3**power + 4**power
    for position in range(4):
        share = (position + 1) ** power / total
        assert abs(kept[position] - draws * share) <= 4 * math.sqrt(draws * share * (1 - share))
    assert sum(kept[position] for position in range(4)) == draws


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_cht_comes_close_to_a_ranking_when_it_is_hardly_soft(scale):
    # delta 0.99: importance to the power of 99. The chance that 3 beats 4 is (3/4)^99, whatever the unit of weights is.
    method = create({**CHT, "softness": 0.99, "final_softness": 0.99})
    net = tiny(scale * eight(1, -2, 3, 4, 0, 0, 0, 0), MASK)
    assert {int(method._survival(net, at(20, seed=seed))["w"].argmax()) for seed in range(100)} == {3}


def test_cht_hardens_over_the_run():
    # delta goes from 1/2 to 3/4, the power from 1 to 3: 4 beats 2 in two of three draws at first, in eight of nine at last.
    method, net = create(CHT), tiny(eight(2, 4, 0, 0, 0, 0, 0, 0), "1100 0000")
    for step, share in ((0, 2 / 3), (99, 8 / 9)):
        wins = sum(method._survival(net, at(step, seed=seed))["w"].argmax() == 1 for seed in range(1000))
        assert abs(int(wins) - 1000 * share) <= 4 * math.sqrt(1000 * share * (1 - share))


# --- whole runs ---

STEPS = 60  # of every run below: 4 epochs of 15 batches
SETTINGS = {
    "set": {"name": "set", "every": 7},
    "rigl": {"name": "rigl", "every": 7, "until": 0.75},
    "rigl by momentum": {"name": "rigl", "every": 7, "until": 0.75, "grow": "momentum"},
    "mest": {"name": "mest", "every": 7},
    "granet": {"name": "granet", "every": 7, "end": 0.5},
    "granet from a half": {"name": "granet", "every": 7, "end": 0.5, "initial_density": 0.5},
    "gmp": {"name": "gmp", "every": 5, "start": 0.1, "end": 0.7},
    "gmp, erk": {"name": "gmp", "every": 5, "start": 0.1, "end": 0.7, "scope": "erk"},
    "ac_dc": {"name": "ac_dc", "every": 0.05, "start": 0.1, "end": 0.85},
    "cht": {"name": "cht", "every": 7},
    "cht from a half": {"name": "cht", "every": 7, "end": 0.5, "initial_density": 0.5},
}
TARGET = 42  # of 416 weights


def runs(*names):
    return pytest.mark.parametrize("name", names)


def under_way(name, **recipe):
    """A run and its supernet, begun."""
    net = supernet({"density": 0.1, **SETTINGS[name]}, epochs=4, batch_size=20, **recipe)
    data = points(340)  # 306 to train with
    batches = Batches(data.train, data.mean, data.std, 20, 3)
    run = Run(net, data, batches, 3, None)
    with torch.random.fork_rng():
        run.begin()
    assert run.total == STEPS
    return net, run


def stepped(net, run):
    """Run it, and yield after every step how many are done, and the masks."""
    for step in range(run.total):
        with torch.random.fork_rng():
            run.step(Clock(step, run.total, 3))
        yield step + 1, net.masks


@runs("set", "rigl", "rigl by momentum", "mest", "cht")
def test_every_layer_keeps_its_count_while_the_topology_moves(name):
    net, run = under_way(name)
    shapes = {key: weight.shape for key, weight in net.weights.items()}
    counts = allocate(shapes, 0.1, getattr(net.extractor, "allocation", "erk"))
    seen = [net.masks]
    for _, masks in stepped(net, run):
        assert {key: int(mask.sum()) for key, mask in masks.items()} == counts
        if not masks.same(seen[-1]):
            seen.append(masks)
    assert sum(counts.values()) == TARGET
    assert len(seen) >= 6


def test_changes_stop_when_they_should():
    net, run = under_way("rigl")
    # 0.75 of 60 is 45, and 7 * 6 is 42: that change takes the place of the step that makes 42 to 43.
    found = dict(stepped(net, run))
    assert not found[42].same(found[43])
    assert all(found[done].same(found[43]) for done in range(43, run.total + 1))


RAMPS = {
    "gmp": (cubic, 1.0, 6, 42),  # the curve, the density it starts from, and its first and last step
    "gmp, erk": (cubic, 1.0, 6, 42),
    "granet": (cubic, 1.0, 0, 30),
    "granet from a half": (cubic, 0.5, 0, 30),
    "cht from a half": (sigmoid, 0.5, 0, 30),
}


@runs(*RAMPS)
def test_the_density_follows_its_ramp_and_meets_the_target(name):
    curve, initial, first, last = RAMPS[name]
    net, run = under_way(name)
    every = net.extractor.every
    expected = count(initial, 416)
    assert net.masks.kept == expected
    for step, masks in stepped(net, run):
        if step == last or (first < step < last and (step - first) % every == 0):
            expected = count(curve(initial, 0.1, (step - first) / (last - first)), 416)
        assert masks.kept == expected
        assert masks.kept >= TARGET
    assert masks.kept == TARGET


@runs("granet", "granet from a half", "cht from a half")
def test_regeneration_goes_on_after_the_ramp(name):
    net, run = under_way(name)
    masks = {step: masks for step, masks in stepped(net, run) if step >= 30}
    changed = [step for step in range(31, run.total + 1) if not masks[step].same(masks[step - 1])]
    assert set(changed) <= {35, 42, 49, 56}
    assert len(changed) >= (1 if name.startswith("cht") else 2)  # a draw may grow just what it dropped


def test_granet_swaps_ever_fewer():
    net, run = under_way("granet from a half")
    masks = dict(stepped(net, run))
    for step in (35, 42, 49, 56):
        share = cosine(net.extractor.drop_fraction, net.extractor.final_drop_fraction, step / run.total)
        for key, mask in masks[step].items():
            before = masks[step - 1][key]
            assert (mask & ~before).sum() <= math.ceil(share * int(before.sum()))
    assert any(not masks[step].same(masks[step - 1]) for step in (35, 42, 49, 56))


def test_nothing_grows_in_gradual_pruning():
    for name in ("gmp", "gmp, erk"):
        net, run = under_way(name)
        before = net.masks
        for _, masks in stepped(net, run):
            assert (masks & before).same(masks)
            before = masks


def test_ac_dc_ends_compressed():
    net, run = under_way("ac_dc")
    kept = [masks.kept for _, masks in stepped(net, run)]
    # The warm-up, a tenth; phases of a twentieth (here: ten steps, the least) in turn; and from 0.85 on the last one.
    assert kept == [416] * 5 + ([TARGET] * 10 + [416] * 10) * 2 + [416] * 5 + [TARGET] * 10


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@runs(*(name for name in SETTINGS if not name.startswith("gmp")))
def test_grown_weights_begin_at_zero_with_fresh_state(name, optimizer):
    net, run = under_way(name, optimizer=optimizer, lr=0.05, weight_decay=1e-2)
    before, grown = net.masks, 0
    for _, masks in stepped(net, run):
        for key, weight in net.weights.items():
            new = masks[key] & ~before[key]
            values = [value for value in run.optimizer.state[weight].values() if value.shape == weight.shape]
            assert len(values) == {"sgd": 1, "adam": 2}[optimizer] or not run.optimizer.state[weight]
            assert not any(value[new].any() for value in [weight, *values])
            assert not any(value[~masks[key]].any() for value in [weight, *values])
            grown += int(new.sum())
        before = masks
    assert grown > 20


def test_grown_weights_are_trained():
    """A weight that grew at one step has moved away from zero after the next."""
    net, run = under_way("rigl")
    before, new, grown, moved = net.masks, {}, 0, 0
    for _, masks in stepped(net, run):
        same = masks.same(before)
        for key, mask in new.items():
            grown += int(mask.sum())
            moved += int(net.weights[key][mask].count_nonzero())
        new = {} if same else {key: mask & ~before[key] for key, mask in masks.items()}
        before = masks
    assert grown > 20
    assert moved > 0.8 * grown  # some are those of a hidden unit that is never above zero


# --- the running mean of gradients ---


def test_the_running_mean_of_gradients_by_hand():
    net = supernet({"name": "rigl", "grow": "momentum"})
    for gradient, mean in ((1.0, 0.1), (2.0, 0.29), (-1.0, 0.161)):  # 9/10 of what was, and 1/10 of what is
        for weight in net.weights.values():
            weight.grad = torch.full_like(weight, gradient)
        net.update_momentum()
        for value in net.momentum.values():
            torch.testing.assert_close(value, torch.full_like(value, mean))


def test_the_running_mean_is_of_dense_gradients():
    net, run = under_way("rigl by momentum")
    expected = {key: torch.zeros_like(weight) for key, weight in net.weights.items()}
    watch = net.update_momentum

    def watched():
        for key, weight in net.weights.items():
            expected[key] = 0.9 * expected[key] + 0.1 * weight.grad
        watch()

    net.update_momentum = watched
    for step, _ in stepped(net, run):
        if step == 11:
            break
    for key, mean in net.momentum.items():
        dead = ~net.masks[key]
        torch.testing.assert_close(mean, expected[key])
        assert mean[dead].any()
        assert not net.weights[key].grad[dead].any()  # only after that are gradients masked


@pytest.mark.parametrize("grow", ["gradient", "random"])
def test_no_mean_is_kept_that_nobody_looks_at(grow):
    assert supernet({"name": "rigl", "grow": grow}).momentum == {}


def test_the_running_mean_is_saved_and_put_back():
    net, run = under_way("rigl by momentum")
    for step, _ in stepped(net, run):
        if step == 5:
            break
    state = {name: tensor.clone() for name, tensor in net.state().items()}
    other = supernet({"density": 0.1, **SETTINGS["rigl by momentum"]}, mlp(seed=9))
    other.load_state(state)
    for key, mean in other.momentum.items():
        assert mean.equal(net.momentum[key])
        assert mean.any()


def configured(extractor, **recipe):
    recipe = {"epochs": 4, "batch_size": 20, "threads": 1, "device": "cpu", **recipe}
    return RunConfig(extractor=extractor, recipe=Recipe(**recipe), seed=3)


def stopped_and_resumed(settings, folder, after):
    seen = []
    with pytest.raises(Interrupted):
        run_config(settings, folder, module=mlp(), data=points(), on_step=seen.append, should_stop=lambda: len(seen) == after)
    return run_config(settings, folder, resume=True, module=mlp(), data=points())


@pytest.mark.parametrize("name", ["rigl", "granet"])
@pytest.mark.parametrize("grow", ["gradient", "momentum", "random"])
def test_a_resumed_run_is_the_same_whatever_it_grows_by(name, grow, tmp_path):
    settings = configured({"name": name, "grow": grow, "every": 7})
    whole = run_config(settings, tmp_path / "whole", module=mlp(), data=points())
    assert stopped_and_resumed(settings, tmp_path / "resumed", 24).sha256 == whole.sha256


@pytest.mark.parametrize("name", ["rigl", "granet"])
def test_what_it_grows_by_makes_a_difference(name):
    found = [
        run_config(configured({"name": name, "grow": grow, "every": 7}), module=mlp(), data=points()).sha256
        for grow in ("gradient", "momentum", "random")
    ]
    assert len(set(found)) == 3


# --- what was ever alive ---


@pytest.mark.parametrize("extractor", [{"name": "redraw", "density": 0.1}, {"name": "set", "every": 7}])
def test_explored_is_the_fraction_that_was_ever_alive(extractor):
    net = supernet(extractor, epochs=4, batch_size=20, explored=True)
    data = points()
    run = Run(net, data, Batches(data.train, None, None, 20, 3), 3, None)
    with torch.random.fork_rng():
        run.begin()
    ever, first = net.masks, net.exploration_rate()
    assert first == net.masks.density
    for _, masks in stepped(net, run):
        ever = ever | masks
        assert net.exploration_rate() == ever.density
    assert net.exploration_rate() > first


def test_explored_of_a_fixed_topology_is_its_density():
    subnet = run_config(configured("random", explored=True), module=mlp(), data=points())
    assert subnet.metrics["exploration_rate"] == subnet.density


@pytest.mark.parametrize("name", ["gmp", "granet", "ac_dc", "magnitude", "lottery"])
def test_a_run_that_begins_dense_has_explored_everything(name):
    assert run_config(configured(name, explored=True), module=mlp(), data=points()).metrics["exploration_rate"] == 1


def test_explored_is_not_recorded_unless_asked_for():
    assert run_config(configured("set"), module=mlp(), data=points()).metrics["exploration_rate"] is None


def test_explored_survives_a_resume(tmp_path):
    settings = configured({"name": "set", "every": 7}, explored=True)
    whole = run_config(settings, tmp_path / "whole", module=mlp(), data=points())
    resumed = stopped_and_resumed(settings, tmp_path / "resumed", 50)
    assert resumed.metrics["exploration_rate"] == whole.metrics["exploration_rate"] > whole.density
