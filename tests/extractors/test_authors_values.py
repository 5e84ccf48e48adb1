"""What the authors' own code says of a few weights, as numbers: topologies that change while a network trains.

Each case names a public repository, its file and function, and what was run there; the numbers are what it gave. Counts
that the authors round in another way are avoided: a case keeps a number of weights that both sides agree on. The other
methods are in test_authors_values_learned.py.

Repositories, and the commits that were run: Shiweiliuiiiiiii/GraNet f338a24, McCrearyD/rigl-torch c47aac5,
varun19299/rigl-reproducibility 97443be, boone891214/MEST a428026, IST-DASLab/ACDC ac53210,
dcmocanu/sparse-evolutionary-artificial-neural-networks 62ac974, biomedical-cybernetics/Cannistraci-Hebb-training d1677b5,
facebookresearch/open_lth 2ce732f, ganguli-lab/Synaptic-Flow 9dfa57a.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from toys import supernet, units

from subnet_search import Masks
from subnet_search.extractors import Clock, create
from subnet_search.extractors.base import Change
from subnet_search.extractors.methods import cht as cht_module
from subnet_search.topology.regrow import drop
from subnet_search.topology.schedules import cosine, cubic
from subnet_search.topology.scores import local_community, magnitude_and_gradient

ONE = [[5.0, -1, 4, 2], [3, 6, -8, 7]]
TWO = [[0.5, -10, 0.4, 0.2], [12, 9, -11, 0.7]]
HALF = [[5.0, -1, 4, 2], [0, 0, 0, 0]]  # 4 of 8 alive
GRADIENT = [[9.0, 3, 9, 1], [-4, 2, 5, 0]]


def text(mask):
    return " ".join("".join("01"[int(unit)] for unit in row) for row in mask)


def bits(rows):
    return torch.tensor([[character == "1" for character in row] for row in rows.split()])


def fake(weights, masks, gradients=None):
    """A network of layers a, b, ..., as far as an extractor looks at it."""
    weights = {name: torch.tensor(rows) for name, rows in zip("ab", weights, strict=False)}
    masks = Masks({name: bits(rows) for name, rows in zip("ab", masks, strict=False)})
    gradients = {name: torch.tensor(rows) for name, rows in zip("ab", gradients or (), strict=False)}
    return SimpleNamespace(weights=weights, masks=masks, gradients=gradients, units=units(weights))


def changed(extractor, step, weights, masks, gradients=None, total=100):
    """The topologies of the layers after a step, in zeros and ones."""
    change = create(extractor).step(fake(weights, masks, gradients), Clock(step, total, 0))
    return [text(mask) for mask in change.masks.values()]


def values(extractor, step, weights, masks, gradients=None, total=100, seed=0):
    """The weights of the layers once a change was made."""
    module = nn.Sequential(*[nn.Linear(len(rows[0]), len(rows), bias=False) for rows in weights])
    for layer, rows in zip(module, weights, strict=True):
        layer.weight.data = torch.tensor(rows)
    net = supernet(extractor, module)
    net.apply(Change(Masks({name: bits(rows) for name, rows in zip(net.weights, masks, strict=True)})))
    for weight, rows in zip(net.weights.values(), gradients or (), strict=False):
        weight.grad = torch.tensor(rows)
    change = net.extractor.step(net, Clock(step, total, seed))
    if change.survivors is not None:  # as the training loop makes a change
        net.apply(Change(change.survivors))
    net.apply(change)
    return [weight.tolist() for weight in net.weights.values()]


# --- schedules ---


def test_the_swapped_fraction_of_granet():
    """Shiweiliuiiiiiii/GraNet CIFAR/sparselearning/core.py:CosineDecay(0.5, 100), after so many calls of step."""
    given = {1: 0.4998779, 20: 0.4527317, 25: 0.4275089, 50: 0.2525, 75: 0.0774911, 100: 0.005}
    assert {step: cosine(0.5, 0.005, step / 100) for step in given} == pytest.approx(given, abs=1e-6)


def test_the_moved_fraction_of_rigl():
    """McCrearyD/rigl-torch rigl_torch/RigL.py:cosine_annealing, alpha 0.5 and T_end 80."""
    given = {20: 0.4267767, 40: 0.25, 60: 0.0732233}
    assert {step: cosine(0.5, 0.0, step / 80) for step in given} == pytest.approx(given, abs=1e-6)


def test_the_cubic_ramp():
    """IST-DASLab/ACDC policies/pruners.py:GradualPruner._polynomial_schedule, which their GMP runs use, epochs 10 to 70."""
    given = {10: 1.0, 20: 0.6208333, 40: 0.2125, 55: 0.1140625, 70: 0.1}
    assert {epoch: cubic(1.0, 0.1, (epoch - 10) / 60) for epoch in given} == pytest.approx(given, abs=1e-6)


# --- by magnitude ---


@pytest.mark.parametrize(
    ("name", "density", "expected"),
    [
        ("gmp", 0.5, ["1000 0111", "0100 1110"]),
        ("gmp", 0.25, ["0000 0000", "0100 1110"]),
        ("ac_dc", 0.25, ["0000 0000", "0100 1110"]),
    ],
)
def test_the_largest_of_all_layers(name, density, expected):
    """Eight of 16: GraNet core.py:pruning, its first move of four to a quarter, which keeps int(16 * 0.566) - 1.

    Four of 16: IST-DASLab/ACDC policies/pruners.py:UnstructuredMagnitudePruner.on_epoch_begin at sparsity 0.7, which keeps
    the ceil(16 * 0.3) largest but one.
    """
    assert changed({"name": name, "density": density, "start": 10, "end": 50}, 50, [ONE, TWO], ["1111 1111"] * 2) == expected


def test_lottery_drops_among_what_is_left():
    """facebookresearch/open_lth pruning/sparse_global.py:Strategy.prune, half of 16 and then half of what is left.

    Theirs drops the ceil of a half and one more, so 7 and then 2 stay.
    """
    first = ["0000 0111", "0100 1110"]
    assert changed({"name": "lottery", "rounds": 1, "density": 7 / 16}, 50, [ONE, TWO], ["1111 1111"] * 2) == first
    assert changed({"name": "lottery", "rounds": 1, "density": 2 / 16}, 50, [ONE, TWO], first) == ["0000 0000", "0000 1010"]


@pytest.mark.parametrize(
    ("scope", "density", "expected"),
    [("global", 6 / 16, ["0000 0011", "0100 1110"]), ("uniform", 3 / 8, ["0000 0111", "0100 1010"])],
)
def test_magnitude_over_all_layers_and_in_each(scope, density, expected):
    """ganguli-lab/Synaptic-Flow Pruners/pruners.py:Mag.score and mask, scopes global and local."""
    net = fake([ONE, TWO], ["1111 1111"] * 2)
    scores = {name: weight.abs() for name, weight in net.weights.items()}
    assert [text(mask) for mask in net.units.keep(scores, density, scope).values()] == expected


# --- drop and grow ---


def test_rigl_moves_one_of_four():
    """McCrearyD/rigl-torch RigL.py:_rigl_step at step 40, alpha 0.5, T_end 80. It rounds the moved number down."""
    method = {"name": "rigl", "drop_fraction": 0.5, "every": 20, "until": 80}
    assert changed(method, 40, [HALF], ["1111 0000"], [GRADIENT]) == ["1011 0010"]


def test_rigl_moves_two_of_four():
    """McCrearyD/rigl-torch RigL.py:_rigl_step at step 40, alpha 1, T_end 80: of 0.5 * 4."""
    method = {"name": "rigl", "drop_fraction": 1.0, "every": 20, "until": 80}
    assert changed(method, 40, [HALF], ["1111 0000"], [GRADIENT]) == ["1010 1010"]


def test_rigl_rounds_the_moved_number_up():
    """varun19299/rigl-reproducibility sparselearning/funcs: prune.py:magnitude_prune and grow.py:abs_grad_growth.

    Fractions of steps 20 and 60 above, of four weights: 1.7 and 0.3.
    """
    method = {"name": "rigl", "drop_fraction": 0.5, "every": 20, "until": 80}
    assert changed(method, 20, [HALF], ["1111 0000"], [GRADIENT]) == ["1010 1010"]
    assert changed(method, 60, [HALF], ["1111 0000"], [GRADIENT]) == ["1011 0010"]


def test_granet_swaps_two_of_four():
    """Shiweiliuiiiiiii/GraNet core.py:truncate_weights with prune rate 0.3: ceil(1.2)."""
    method = {"name": "granet", "drop_fraction": 0.3, "final_drop_fraction": 0.3, "every": 20, "start": 0, "end": 0}
    assert changed(method, 40, [HALF], ["1111 0000"], [GRADIENT]) == ["1010 1010"]


@pytest.mark.parametrize(("weight", "expected"), [(0.0, "1011 0000"), (1.0, "1110 0000")])
def test_mest_drops_one_of_four(weight, expected):
    """boone891214/MEST prune_utils/utils_pr.py:weight_pruning (irregular) to sparsity 5/8, gradients masked as theirs are."""
    w, g = {"w": torch.tensor(HALF)}, {"w": torch.tensor(GRADIENT) * bits("1111 0000")}
    kept = drop(Masks({"w": bits("1111 0000")}), magnitude_and_gradient(w, g, weight), 0.25)
    assert text(kept["w"]) == expected


SIGNED = [[0.5, -0.1, 0.4, 0.2], [0, -0.6, 0, 0], [-0.3, 0, -0.7, 0.05]]


# --- Cannistraci-Hebb training ---


GRAPH = "1110 0110 1001"  # three outputs, four inputs


def test_cht_scores_links_by_local_communities():
    """biomedical-cybernetics/Cannistraci-Hebb-Training-Soft-Rule- 1f91f31 llm/dst_scheduler.py:_scores_for_regrowth_ch."""
    assert local_community(bits(GRAPH)).tolist() == [[13, 15, 15, 4], [7, 12, 12, 0], [9, 3, 3, 7]]


def test_cht_grows_in_proportion_to_the_scores():
    """Cannistraci-Hebb-training mlp_and_cnn/dst_scheduler.py:_dst_step, CH2_L3n_soft: what torch.multinomial is given."""
    scores = local_community(bits(GRAPH)) * ~bits(GRAPH)
    given = [[0, 0, 0, 0.2352941], [0.4117647, 0, 0, 0], [0, 0.1764706, 0.1764706, 0]]
    torch.testing.assert_close(scores / scores.sum(), torch.tensor(given), rtol=0, atol=1e-6)


def survival(importance, step, monkeypatch):
    """The chances by which the first weight that survives a change of cht is drawn, of what it asks the sampler for."""
    asked = []

    def listen(scores, uniform, power=1.0):
        asked.append(scores**power)
        return real(scores, uniform, power)

    real = cht_module.ss.sampled
    monkeypatch.setattr(cht_module.ss, "sampled", listen)
    weights, mask = [[5.0, -1, 4, 2], [3, 0, 0, 0]], "1111 1000"
    net = fake([weights], [mask])
    create({"name": "cht", "importance": importance, "every": 1}).step(net, Clock(step, 100, 0))
    chances = asked[0] * bits(mask)
    return (chances / chances.sum()).flatten().tolist()


# --- what changes beside the optimizer's step brought along: counts, values, phases, powers ---


@pytest.mark.parametrize(("weight", "expected"), [(0.0, "1010 0011"), (1.0, "1100 0011")])
def test_mest_looks_at_gradients_too(weight, expected):
    """boone891214/MEST prune_utils/utils_pr.py:weight_pruning (irregular) to half, sp_lmd 0 and 1."""
    w, g = {"w": torch.tensor([[5.0, -1, 4, 2], [3, 0.5, -6, 7]])}, {"w": torch.tensor([[0.0, 5, 0, 1], [0, 0, 0, 0]])}
    kept = drop(Masks({"w": bits("1111 1111")}), magnitude_and_gradient(w, g, weight), 0.5)
    assert text(kept["w"]) == expected


def test_set_drops_the_smallest():
    """dcmocanu/sparse-evolutionary-artificial-neural-networks SET-MLP-Keras-Weights-Mask/set_mlp_keras_cifar10.py:rewireMask.

    With zeta 0.5 its index takes three of the four positive weights and two of the four negative: five of eight.
    """
    weight = torch.tensor(SIGNED)
    assert text(drop(Masks({"w": weight != 0}), {"w": weight.abs()}, 5 / 8)["w"]) == "1000 0100 0010"


def test_more_may_be_dropped_than_are_dead():
    """Four of seven go, ceil(3.5), and four of the five that are dead then grow, three of them just dropped.

    GraNet core.py:truncate_weights with prune rate 0.5, and varun19299/rigl-reproducibility funcs/prune.py:magnitude_prune
    and funcs/grow.py:abs_grad_growth, give the same mask.
    """
    weights, mask, gradients = [[5.0, -1, 4, 2], [3, 6, 0, 7]], "1111 1101", [[1.0, 9, 1, 8], [7, 1, 2, 1]]
    granet = {"name": "granet", "drop_fraction": 0.5, "final_drop_fraction": 0.5, "every": 20, "start": 0, "end": 0}
    assert changed(granet, 40, [weights], [mask], [gradients]) == ["1101 1111"]
    rigl = {"name": "rigl", "drop_fraction": 1.0, "every": 20, "until": 80}
    assert changed(rigl, 40, [weights], [mask], [gradients]) == ["1101 1111"]


def test_granet_keeps_what_the_swap_drops_and_not_what_the_ramp_drops():
    """GraNet core.py:pruning, to 8 of 16, and then truncate_weights with prune rate 0.5.

    The ramp leaves 5, 6, -8, 7 of the first layer. The swap drops 5 and 6, and by the gradients 5 and 4 grow: 5 is there
    again, and 4, which the ramp dropped, begins at 0.
    """
    gradients = [[[9.0, 1, 8, 2], [3, 1, 2, 1]], [[5.0, 1, 6, 7], [1, 1, 1, 2]]]
    # A quarter of the ramp to this density: half of all weights.
    method = {"name": "granet", "density": (0.5 - 0.75**3) / (1 - 0.75**3), "every": 20, "start": 0, "end": 80}
    method |= {"drop_fraction": 0.5, "final_drop_fraction": 0.5}
    full = ["1111 1111"] * 2
    assert changed(method, 20, [ONE, TWO], full, gradients) == ["1010 0011", "0011 1010"]
    assert values(method, 20, [ONE, TWO], full, gradients) == [
        [[5, 0, 0, 0], [0, 0, -8, 7]],
        [[0, 0, 0, 0], [12, 0, -11, 0]],
    ]


def test_rigl_keeps_what_it_drops_and_grows():
    """McCrearyD/rigl-torch RigL.py:_rigl_step, alpha 1 at step 40 of 80: -1 and 2 go, and -1 and one that is dead grow."""
    gradients, method = [[9.0, 6, 9, 1], [-4, 2, 5, 0]], {"name": "rigl", "drop_fraction": 1.0, "every": 20, "until": 80}
    assert changed(method, 40, [HALF], ["1111 0000"], [gradients]) == ["1110 0010"]
    assert values(method, 40, [HALF], ["1111 0000"], [gradients]) == [[[5, -1, 4, 0], [0, 0, 0, 0]]]


def test_mest_begins_at_zero_what_it_drops_and_grows():
    """MEST prune_utils/utils_pr.py:weight_pruning to sparsity 1/4 and weight_growing to 0; retrain.py zeroes in between."""
    weights = [[5.0, -1, 4, 2], [3, 0.5, -6, 7]]
    method = {"name": "mest", "drop_fraction": 0.5, "every": 20, "until": 80}
    assert values(method, 40, [weights], ["1111 1111"]) == [[[5, 0, 4, 2], [3, 0, -6, 7]]]


@pytest.mark.parametrize("seed", range(5))
def test_set_begins_at_zero_what_it_drops_and_grows(seed):
    """set_mlp_keras_cifar10.py:weightsEvolution multiplies by the mask before growth, whatever grows."""
    mask = " ".join("".join("01"[value != 0] for value in row) for row in SIGNED)
    [found] = values({"name": "set", "drop_fraction": 5 / 8, "every": 20}, 40, [SIGNED], [mask], seed=seed)
    assert found == torch.tensor([[0.5, 0, 0, 0], [0, -0.6, 0, 0], [0, 0, -0.7, 0]]).tolist()


@pytest.mark.parametrize(
    ("epochs", "phases", "compressed", "decompressed"),
    [
        (100, (10, 5, 85), [10, 20, 30, 40, 50, 60, 70, 85], [15, 25, 35, 45, 55, 65, 75]),
        (150, (10, 5, 135), [*range(10, 121, 10), 135], [*range(15, 126, 10)]),
        (200, (10, 5, 185), [*range(10, 171, 10), 185], [*range(15, 176, 10)]),
        (200, (10, 20, 170), [10, 50, 90, 130, 170], [30, 70, 110, 150]),
    ],
)
def test_the_phases_of_ac_dc(epochs, phases, compressed, decompressed):
    """IST-DASLab/ACDC configs/neurips, epochs of pruners and recyclers by policies/manager.py, and an epoch for a step here.

    iht_imagenet_resnet50_insta_cosinelr_s90_ep100, _s90_ep150 and _s90_ep200_unif, and
    iht_cifar10_resnet20_unstructured_insta_prune_freq20_90_constant.
    """
    start, every, end = phases
    method = create({"name": "ac_dc", "start": start, "every": every, "end": end, "density": 0.25})
    net = fake([ONE, TWO], ["1111 1111"] * 2)
    found = {step: method.step(net, Clock(step, epochs, 0)) for step in range(epochs)}
    kept = {step: change.masks.kept for step, change in found.items() if change}
    assert [step for step, count in kept.items() if count == 4] == compressed
    assert [step for step, count in kept.items() if count == 16] == decompressed


def test_ac_dc_forgets_momentum_when_everything_lives_again():
    """manager.py sets reset_momentum at an epoch of a recycler alone, and optimization/sgd.py zeroes every buffer."""
    method, net = create({"name": "ac_dc", "start": 10, "every": 5, "end": 85}), fake([ONE], ["1111 1111"])
    assert [method.step(net, Clock(step, 100, 0)).reset_optimizer for step in (10, 15, 85)] == [False, True, False]


@pytest.mark.parametrize(
    ("importance", "step", "given", "tolerance"),
    [
        ("magnitude", 50, [0.4545455, 0.0181818, 0.2909091, 0.0727273, 0.1636364, 0, 0, 0], 1e-6),
        ("magnitude", 99, [0.5537241, 0.0045747, 0.2847748, 0.0360938, 0.1208326, 0, 0, 0], 1e-6),
        # Theirs adds 1e-5 to every weight before it sums a row or a column.
        ("relative", 50, [0.1488823, 0.1610259, 0.2439278, 0.1867556, 0.2594085, 0, 0, 0], 1e-5),
    ],
)
def test_cht_keeps_in_proportion_to_a_power_that_grows(importance, step, given, tolerance, monkeypatch):
    """Cannistraci-Hebb-training mlp_and_cnn/dst_scheduler.py:_dst_step, weight_magnitude_soft and ri_soft, T_end 100.

    What torch.multinomial is given, importance^T with T = 1 + 2 step / T_end: squares at half of the run.
    """
    assert survival(importance, step, monkeypatch) == pytest.approx(given, abs=tolerance)


def test_everything_lives_for_as_long_as_a_layer_has_room():
    """GraNet core.py:truncate_weights with prune rate 0.5 leaves a dense layer as it is, masks and weights."""
    method = {"name": "granet", "drop_fraction": 0.5, "final_drop_fraction": 0.5, "every": 20, "start": 0, "end": 0}
    gradients = [[1.0, 9, 1, 8], [7, 1, 2, 3]]
    assert changed(method, 40, [ONE], ["1111 1111"], [gradients]) == ["1111 1111"]
    assert values(method, 40, [ONE], ["1111 1111"], [gradients]) == [ONE]
