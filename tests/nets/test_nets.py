"""Networks by name, which of their weights may be pruned, and how those begin."""

import sys

import pytest
import torch
from torch import nn

from subnet_search.core.errors import UserError
from subnet_search.data import from_user
from subnet_search.nets import (
    INITS,
    NetworkSpec,
    build,
    check_accepts,
    initial_weight,
    initialise,
    is_ours,
    left_whole,
    network_names,
    prunable,
)
from subnet_search.tasks import Classification, inputs_sent


def made(name, shape=(3, 32, 32), classes=10, seed=0, **settings):
    return build(NetworkSpec(name=name, **settings).resolve(None), shape, classes, seed)


# --- networks by name ---


@pytest.mark.parametrize(
    ("name", "shape"),
    [*[(name, (3, 32, 32)) for name in network_names()], ("lenet_300_100", (1, 8, 8)), ("lenet5", (1, 8, 8))],
)
def test_every_network_returns_logits(name, shape):
    net = made(name, shape, classes=7).eval()
    assert net(torch.zeros(2, *shape)).shape == (2, 7)
    check_accepts(net, torch.zeros(2, *shape), 7)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lenet_300_100", 952_600),  # 3072 * 300 + 300 * 100 + 100 * 10
        ("conv2", 4_300_992),
        ("conv4", 2_425_024),
        ("conv6", 2_261_184),
        ("resnet20", 268_336),
    ],
)
def test_known_numbers_of_prunable_weights(name, expected):
    assert sum(weight.numel() for weight in prunable(made(name)).values()) == expected


def test_a_network_is_a_function_of_its_seed():
    one, again, other = made("conv4", seed=1), made("conv4", seed=1), made("conv4", seed=2)
    assert all(a.equal(b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not any(a.equal(b) for a, b in zip(prunable(one).values(), prunable(other).values(), strict=True))


@pytest.mark.parametrize("name", ["lenet5", "torchvision:squeezenet1_1"])
def test_building_leaves_the_global_generator_alone(name):
    before = torch.get_rng_state()
    made(name, shape=(3, 64, 64))
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("shape", [(12,), (28, 28)])
def test_our_networks_take_images_only(shape):
    with pytest.raises(UserError, match="conv2 needs images"):
        made("conv2", shape)


def test_our_networks_need_eight_pixels():
    with pytest.raises(UserError, match="lenet5 needs images of at least 8x8 pixels, got 7x9"):
        made("lenet5", (1, 7, 9))


def test_an_unknown_network_names_the_nearest():
    with pytest.raises(ValueError, match=r"unknown network 'con2': did you mean 'conv2'"):
        NetworkSpec(name="con2")


# --- prunable weights ---


def every_kind():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Embedding(5, 4), nn.LayerNorm([4, 4]), nn.GRUCell(4, 2))
    net.add_module("attention", nn.MultiheadAttention(4, 2))
    net.add_module("rnn", nn.LSTM(4, 3, proj_size=2, bidirectional=True))
    net.register_parameter("class_token", nn.Parameter(torch.zeros(1, 1, 4)))
    net.register_parameter("positions", nn.Parameter(torch.zeros(1, 5, 4)))
    return net


def test_prunable_weights_are_those_of_layers():
    # Left out: all biases and normalisation, also of two dimensions; the embedding; the token and the positions.
    assert list(prunable(every_kind())) == [
        "0.weight",
        "4.weight_ih",
        "4.weight_hh",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        *(f"rnn.weight_{kind}_l0{way}" for way in ("", "_reverse") for kind in ("ih", "hh", "hr")),
    ]


def test_what_is_left_whole_has_a_reason():
    net = every_kind()
    net[0].requires_grad_(False)
    assert "0.weight" not in prunable(net)
    assert left_whole(net, prunable(net)) == {
        "positions": "a parameter that is not a layer's weight",
        "0.weight": "frozen, requires_grad=False",
        "2.weight": "an embedding",
    }
    assert "0.weight" in prunable(net.requires_grad_(False))  # all of them are: relevance can be learned


def test_a_network_without_prunable_weights():
    with pytest.raises(UserError, match="BatchNorm2d has no prunable weights"):
        prunable(nn.BatchNorm2d(4))


def test_a_network_with_tied_weights():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    with pytest.raises(UserError, match=r"shares one weight tensor under two names; one of them is '1\.weight'"):
        prunable(net)


def test_an_output_layer_that_is_the_embedding_is_left_whole():
    net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5))
    net[2].weight = net[0].weight
    assert list(prunable(net)) == ["1.weight"]


def test_what_is_frozen_is_not_initialised():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    net[0].requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    initialise(net, "kaiming_normal", 0)
    same = {name for name, value in net.state_dict().items() if value.equal(before[name])}
    assert same == {"0.weight", "0.bias"}


# --- initial weights ---


def test_signed_constant_for_ever():
    # fan-in 4: c = sqrt(2 / 4). The signs are the top bits of the first eight words of the stream.
    weight = initial_weight("conv1.weight", (2, 1, 2, 2), "signed_constant", 0)
    assert weight.view(-1).equal(torch.tensor([-1.0, 1, -1, 1, -1, -1, -1, -1]) * 0.7071067690849304)


def test_kaiming_uniform_for_ever():
    weight = initial_weight("conv1.weight", (2, 1, 2, 2), "kaiming_uniform", 0)
    first = [-0.35093095898628235, 0.24045737087726593, -0.8590201139450073, 0.9363886117935181]
    rest = [-0.9432279467582703, -0.896901547908783, -0.9468806982040405, -0.6967360973358154]
    assert weight.view(-1).equal(torch.tensor(first + rest))


def test_kaiming_normal_for_ever():
    weight = initial_weight("conv1.weight", (2, 1, 2, 2), "kaiming_normal", 0)
    first = [-0.2596531808, 0.1757893413, -0.7349755168, 0.8389517069]
    rest = [-0.8490413427, -0.7837672234, -0.8545014858, -0.5566917658]
    torch.testing.assert_close(weight.view(-1), torch.tensor(first + rest), atol=1e-6, rtol=0)


@pytest.mark.parametrize("init", ["kaiming_normal", "kaiming_uniform", "signed_constant", "scaled"])
def test_initial_weights_are_pure(init):
    weight = initial_weight("a", (6, 5, 3, 3), init, 0, 0.5)
    assert weight.dtype == torch.float32
    assert weight.shape == (6, 5, 3, 3)
    assert initial_weight("a", (6, 5, 3, 3), init, 0, 0.5).equal(weight)
    assert not initial_weight("a", (6, 5, 3, 3), init, 1, 0.5).equal(weight)
    assert not initial_weight("b", (6, 5, 3, 3), init, 0, 0.5).equal(weight)
    assert initial_weight("a", (3, 5, 3, 3), init, 0, 0.5).equal(weight[:3])  # one word a weight, in row-major order


@pytest.mark.parametrize(("init", "kurtosis"), [("kaiming_normal", 3), ("kaiming_uniform", 1.8), ("signed_constant", 1)])
def test_initial_weights_have_the_variance_of_their_fan_in(init, kurtosis):
    weight = initial_weight("w", (1000, 200), init, 3).double()
    variance, n = 2 / 200, weight.numel()
    assert abs(weight.mean()) < 4 * (variance / n) ** 0.5
    assert abs(weight.square().mean() - variance) <= 4 * variance * ((kurtosis - 1) / n) ** 0.5 + 1e-8
    assert weight.div(variance**0.5).pow(4).mean() == pytest.approx(kurtosis, rel=0.03)  # and its shape


def test_kaiming_uniform_stays_inside_its_bound():
    assert initial_weight("w", (100, 24), "kaiming_uniform", 0).abs().max() <= 0.5  # sqrt(6 / 24)


def test_signed_constant_takes_two_values():
    values = initial_weight("w", (100, 8, 5, 5), "signed_constant", 0).unique()
    torch.testing.assert_close(values, torch.tensor([-0.1, 0.1]))  # sqrt(2 / 200)
    assert values[0] == -values[1]


def test_scaled_is_wider_by_the_root_of_the_density():
    plain, scaled = (initial_weight("w", (50, 40), init, 0, 0.25) for init in ("kaiming_normal", "scaled"))
    torch.testing.assert_close(scaled, plain * 2)


def test_scaled_needs_a_density():
    with pytest.raises(UserError, match="needs a density"):
        initial_weight("w", (2, 2), "scaled", 0)
    with pytest.raises(UserError, match="needs a density"):
        NetworkSpec(name="lenet5", init="scaled").resolve(None)


def test_scaled_takes_its_own_density_before_the_extractors():
    spec = NetworkSpec(name="lenet5", init="scaled")
    assert spec.resolve(0.3).init_density == 0.3
    assert spec.model_copy(update={"init_density": 0.2}).resolve(0.3).init_density == 0.2


def test_an_unknown_initialisation():
    with pytest.raises(UserError, match=f"'xavier'; valid: {', '.join(INITS)}"):
        initial_weight("w", (2, 2), "xavier", 0)


def test_initialise_sets_weights_and_makes_biases_zero():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    initialise(net, "kaiming_normal", 5)
    assert net[0].weight.equal(initial_weight("0.weight", (4, 1, 3, 3), "kaiming_normal", 5))
    assert net[2].weight.equal(initial_weight("2.weight", (2, 4), "kaiming_normal", 5))
    assert all(not layer.bias.any() for layer in net)
    assert net[1].weight.eq(1).all()


def test_keep_leaves_everything_as_it_is():
    net = nn.Linear(4, 2)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    initialise(net, "keep", 0)
    assert all(now.equal(then) for now, then in zip(net.parameters(), before, strict=True))


# --- networks of others ---


def test_torchvision_by_name():
    net = made("torchvision:resnet18", classes=5).eval()
    assert type(net).__name__ == "ResNet"
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 5)
    assert net.conv1.weight.equal(initial_weight("conv1.weight", (64, 3, 7, 7), "kaiming_normal", 0))


def test_torchvision_takes_options():
    net = made("torchvision:squeezenet1_1", options={"dropout": 0.0})
    assert next(m for m in net.modules() if isinstance(m, nn.Dropout)).p == 0


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module of the user's, that can be imported by its name."""
    name = "own_network_of_a_test"
    text = """
from torch import nn

def small(num_classes, width=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, num_classes))

def number(num_classes):
    return num_classes
"""
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


def test_a_factory_of_the_users(own_module):
    net = made(f"{own_module}:small", (1, 8, 8), options={"width": 6})
    assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert net[1].out_features == 6


def test_a_factorys_weights_are_kept_and_come_from_the_seed(own_module):
    assert NetworkSpec(name=f"{own_module}:small").resolve(None).init == "keep"
    one, again, other = (made(f"{own_module}:small", (1, 8, 8), seed=seed) for seed in (0, 0, 1))
    assert one[1].bias.any()  # its own first values, not ours
    assert one[1].weight.equal(again[1].weight)
    assert not one[1].weight.equal(other[1].weight)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("{own}:large", {}, "{own} has no function 'large'"),
        ("{own}:small", {"depth": 3}, "unknown option.*depth"),
        ("{own}:number", {}, "returned int, not a torch.nn.Module"),
        ("{own}_of_another:small", {}, "cannot import '{own}_of_another'"),
        (":small", {}, ":small"),
        ("torchvision:resnet81", {}, "unknown torchvision network 'resnet81': did you mean.*'resnet18'"),
        ("torchvision:resnet18", {"depth": 3}, "does not accept.*depth"),
    ],
)
def test_mistakes_in_a_networks_name(own_module, name, options, message):
    with pytest.raises(UserError, match=message.format(own=own_module)):
        made(name.format(own=own_module), (1, 8, 8), options=options)


def test_a_module_that_fails_to_import(tmp_path, own_module):
    (tmp_path / f"{own_module}.py").write_text("from torch import no_such_thing")
    with pytest.raises(UserError, match=f"cannot import '{own_module}'.*no_such_thing"):
        made(f"{own_module}:small", (1, 8, 8))


@pytest.mark.parametrize(
    ("name", "ours"), [("lenet5", True), ("torchvision:resnet18", True), ("package.module:factory", False), ("lenet6", False)]
)
def test_only_our_names_and_torchvisions_are_safe_to_build(name, ours):
    assert is_ours(name) is ours


# --- what a network returns ---


def network_returning(output):
    net = nn.Linear(4, 4)
    net.forward = output
    return net


def refuse(x):
    assert x.shape[1] == 3, "three channels"
    return x


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Linear(4, 2), "Linear has 2 outputs, but the data has 3 classes"),
        (network_returning(lambda x: x[:, :3].view(2, 3, 1)), r"logits of shape \(batch, classes\), got \(2, 3, 1\)"),
        (network_returning(lambda x: {"out": x}), r"logits of shape \(batch, classes\), got dict of 1 with out"),
        (nn.Linear(5, 3), r"does not accept inputs of shape \(4,\)"),
        (network_returning(refuse), r"does not accept inputs of shape \(4,\): .*three channels"),
    ],
    ids=["too few outputs", "wrong shape", "no tensor", "other inputs", "assertion"],
)
def test_what_is_wrong_with_a_network_is_said(net, message):
    with pytest.raises(UserError, match=message):
        check_accepts(net, torch.zeros(2, 4), 3)


def test_the_given_name_is_in_the_message():
    data = from_user((torch.randn(40, 4), torch.arange(40) % 3))
    with pytest.raises(UserError, match="mine has 2 outputs"):
        inputs_sent(nn.Linear(4, 2), Classification(), data.first(), "mine", 3)


@pytest.mark.parametrize("training", [True, False])
def test_the_check_leaves_the_network_as_it_was(training):
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).train(training)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    check_accepts(net, torch.zeros(2, 4), 3)
    assert net.training is training
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("init", ["glorot_normal", "glorot_constant"])
def test_glorot_counts_both_fans(init):
    weight = initial_weight("w", (200, 50, 3, 3), init, 0)
    # fan_in = 50 * 9 = 450, fan_out = 200 * 9 = 1800, so the variance is 2 / 2250.
    assert weight.var().item() == pytest.approx(2 / 2250, rel=0.02)
    assert (len(weight.unique()) == 2) == (init == "glorot_constant")
