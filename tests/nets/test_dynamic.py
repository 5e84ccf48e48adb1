"""Networks in which each input chooses its filters: gates worked out by hand, what is spared, what is counted."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from toys import conv_bn, pictures

import subnet_search as ss
from subnet_search.core.errors import UserError
from subnet_search.data import prepare
from subnet_search.evaluation.cost import chosen_macs, layer_macs
from subnet_search.extractors import Clock, create
from subnet_search.nets import NetworkSpec, build, gated_layers, make_dynamic, noting_saliency, opened, set_winners
from subnet_search.nets.dynamic import Gate, Gated

rng = torch.Generator().manual_seed


def test_the_k_most_salient_win_and_keep_their_saliency():
    gate = Gate(2, 8, rng(0))
    gate.winners.fill_(3)
    saliency = torch.tensor([[0.1, 0.9, 0.0, 0.3, 0.8, 0.2, 0.0, 0.4], [0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0]])
    chosen = gate.choose(saliency)
    assert chosen[0].tolist() == pytest.approx([0, 0.9, 0, 0, 0.8, 0, 0, 0.4])
    assert chosen[1].tolist() == [0, 0, 0.5, 0, 0, 0, 0, 0]  # fewer than k are salient at all


def test_saliency_by_hand():
    gate = Gate(2, 3, rng(0))
    with torch.no_grad():
        gate.phi.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-2.0, -2.0]]))
    # |x| is 3 and 1 on average: 1.5 and 0.5 of their mean. relu(1 + 1.5), relu(1 + 0.5), relu(1 - 4)
    assert gate(torch.tensor([[3.0, 1.0]])).tolist() == [[2.5, 1.5, 0.0]]
    assert gate(torch.tensor([[30.0, 10.0]])).tolist() == [[2.5, 1.5, 0.0]]  # contrast does not count
    assert gate(torch.zeros(1, 2)).tolist() == [[1.0, 1.0, 1.0]]


LAYERS = {
    "with batch norm": (nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), (6, 5, 5)),
    "with bias": (nn.Conv2d(6, 8, 3, stride=2), None, (6, 5, 5)),
    "both": (nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8), (6, 5, 5)),
    "norm without scales": (nn.Conv2d(6, 8, 3, dilation=2), nn.BatchNorm2d(8, affine=False), (6, 9, 9)),
    "reflected borders": (nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"), None, (6, 5, 5)),
    "one dimension": (nn.Conv1d(6, 8, 3), nn.BatchNorm1d(8), (6, 7)),
    "three": (nn.Conv3d(6, 8, 2), nn.BatchNorm3d(8), (6, 3, 3, 3)),
}


@pytest.mark.parametrize("case", LAYERS)
def test_one_input_by_itself_is_spared_what_a_batch_multiplies_by_zero(case, monkeypatch):
    layer, norm, shape = LAYERS[case]
    gated = Gated(copy.deepcopy(layer), copy.deepcopy(norm), rng(1))
    for _ in range(3):
        gated(torch.randn(16, *shape, generator=rng(2)))  # statistics of the norm
    with torch.no_grad():
        for parameter in gated.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=rng(3)))
    gated.eval().gate.winners.fill_(3)
    inputs = torch.randn(4, *shape, generator=rng(4))
    inputs[0, :2] = inputs[1, 3] = 0
    computed, plainly = [], type(layer)._conv_forward

    def watched(self, x, weight, bias):
        computed.append(tuple(weight.shape[:2]))
        return plainly(self, x, weight, bias)

    monkeypatch.setattr(type(layer), "_conv_forward", watched)
    batch = gated(inputs)
    assert computed == [(8, 6)]
    alone = torch.cat([gated(one[None]) for one in inputs])
    assert computed[1:] == [(3, 4), (3, 5), (3, 6), (3, 6)]
    assert (batch.flatten(2) != 0).any(2).sum(1).tolist() == [3, 3, 3, 3]
    torch.testing.assert_close(alone, batch)


def test_an_input_to_which_no_filter_is_salient():
    gated = Gated(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), rng(0)).eval()
    for inputs in (torch.zeros(1, 2, 5, 5), torch.randn(1, 2, 5, 5)):
        torch.testing.assert_close(gated(inputs), gated(inputs.repeat(2, 1, 1, 1))[:1])
        with torch.no_grad():
            gated.gate.rho.fill_(-10)
        assert not gated(inputs).any()
        assert gated(inputs).shape == (1, 4, 3, 3)


def test_gradients_reach_the_gate_through_what_it_boosts():
    gated = Gated(nn.Conv2d(2, 4, 3), None, rng(0))
    gated.gate.winners.fill_(2)
    gated(torch.randn(3, 2, 5, 5)).sum().backward()
    assert gated.gate.phi.grad.any()
    assert gated.gate.rho.grad.any()


def test_which_layers_get_a_gate():
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4),
        nn.Conv2d(4, 6, 1), nn.ReLU(), nn.Conv2d(6, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    make_dynamic(net, (1, 8, 8))
    assert {name: layer.norm is not None for name, layer in gated_layers(net).items()} == {"0": True, "5": False}
    assert isinstance(net[1], nn.Identity)
    assert isinstance(net[4], nn.BatchNorm2d)
    before = copy.deepcopy(net.state_dict())
    assert make_dynamic(net, (1, 8, 8), seed=5) is net
    assert before.keys() == net.state_dict().keys()
    assert not any(isinstance(module, Gated) for module in opened(net).modules())


@pytest.mark.parametrize(
    "name", ["resnet20", "vgg19", "small_conv", "torchvision:densenet121", "torchvision:mobilenet_v3_small"]
)
def test_without_its_gates_a_network_is_what_it_was(name):
    shape = (3, 32, 32)
    net = build(NetworkSpec(name=name).resolve(None), shape, 10, 0).eval()
    inputs = torch.randn(2, *shape, generator=rng(0))
    expected = net(inputs)
    torch.testing.assert_close(opened(make_dynamic(net, shape))(inputs), expected)


class Beside(nn.Module):
    """Uses what a convolution returns in front of its norm too."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)
        self.norm.running_mean += 1

    def forward(self, x):
        x = self.conv(x)
        return self.last((x + self.norm(x)).mean((2, 3)))


def test_networks_that_cannot():
    with pytest.raises(UserError, match="of convolutions, and this network has none"):
        ss.extract("lenet_300_100", "digits", "fbs")
    with pytest.raises(UserError, match="what a convolution returns is used beside the norm"):
        make_dynamic(Beside(), (1, 8, 8))


def test_macs_that_inputs_choose_by_hand():
    # 8x8 images: 36 places of 9 weights for 4 filters, then 36 places for 8 filters of one weight a channel, then 8 * 3
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )  # fmt: skip
    make_dynamic(net, (1, 8, 8)).eval()
    set_winners(net, 0.5)
    with torch.no_grad():
        for gated in gated_layers(net).values():
            gated.gate.phi.zero_()
            gated.gate.rho.copy_(torch.arange(len(gated.gate.rho)))  # the last half wins
        assert layer_macs(net, {"0.layer.weight": (4, 1, 3, 3)}, (1, 8, 8)) == {"0.layer.weight": 36 * 9 * 4}
        inputs = torch.randn(5, 1, 8, 8), torch.randn(1, 1, 8, 8)
        macs = chosen_macs(net, torch.zeros(2, 1, 8, 8), lambda: [net(some) for some in inputs])
    gates = 1 * 4 + 4 * 8
    assert macs == {"kept_macs": 36 * 9 * 2 + 36 * 4 * 2 + 8 * 3 + gates}
    assert chosen_macs(opened(net), torch.zeros(2, 1, 8, 8), pytest.fail) == {}  # nor is it run
    noted = {}
    with noting_saliency(net, noted):
        net(torch.randn(5, 1, 8, 8))
    assert {name: tuple(saliency.shape) for name, saliency in noted.items()} == {"0": (5, 4), "1": (5, 8)}


def test_the_share_of_winners_falls_in_steps_and_epochs_before_do_not_count():
    fbs = create({"name": "fbs", "winners": 0.4, "every": 10, "until": 30})
    changes = {step: change.winners for step in range(60) if (change := fbs.step(None, Clock(step, 60, 0)))}
    assert changes == pytest.approx({10: 0.8, 20: 0.6, 30: 0.4})
    assert next(step for step in range(60) if fbs.reached(None, None, Clock(step, 60, 0))) == 30


def test_a_run_from_gates_to_file(tmp_path):
    data, net = pictures(), conv_bn()
    subnet = ss.extract(net, data, "fbs", recipe=ss.Recipe(epochs=6, threads=1, batch_size=16, device="cpu"), winners=0.5)
    assert subnet.density == 1
    assert subnet.metrics["macs"] == 36 * 9 * 4 + 144 * 3
    assert subnet.metrics["kept_macs"] == 36 * 9 * 2 + 144 * 3 + 4  # two filters, and a gate of four numbers
    subnet.save(tmp_path / "a.safetensors")
    loaded = ss.Subnetwork.load(tmp_path / "a.safetensors").on(net).eval()
    assert [int(layer.gate.winners) for layer in gated_layers(loaded).values()] == [2]
    alone = torch.cat([loaded(one[None].float()) for one in data.val.inputs])
    torch.testing.assert_close(alone, loaded(data.val.inputs.float()), rtol=1e-4, atol=1e-3)
    assert not gated_layers(net)
    assert loaded(prepare(data.val.inputs, data.mean, data.std)).shape == (len(data.val), 3)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"compile": True}, r"^recipe.compile: a network whose inputs choose their filters is not compiled \(fbs\)$"),
        ({"weight_statistics": True}, r"^weight_statistics and readout are not for .* whose inputs choose filters \(fbs\)$"),
        ({"readout": "ridge"}, r"^weight_statistics and readout are not for .* whose inputs choose filters \(fbs\)$"),
    ],
)
def test_settings_that_are_not_for_such_networks(setting, said):
    with pytest.raises(UserError, match=said):
        ss.extract(conv_bn(), pictures(), "fbs", recipe=ss.Recipe(device="cpu", **setting))


def test_the_penalty_makes_filters_less_salient():
    data, sums = pictures(), []
    for strength in (0.0, 1.0):
        recipe = ss.Recipe(epochs=4, threads=1, batch_size=16, device="cpu", lr=0.05)
        subnet = ss.extract(conv_bn(), data, "fbs", recipe=recipe, strength=strength)
        sums.append(float(subnet.state["0.gate.rho"].sum()))
    assert sums[1] < sums[0] - 1


@pytest.mark.slow
def test_a_batch_of_any_size_in_onnx():
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'subnet-search[onnx]')")
    from subnet_search.deploy.onnx import OnnxNetwork, to_onnx

    net = make_dynamic(conv_bn(), (1, 8, 8)).eval()
    set_winners(net, 0.5)
    ported = OnnxNetwork(to_onnx(net, torch.randn(2, 1, 8, 8)), 1)
    for size in (1, 2, 7):
        inputs = torch.randn(size, 1, 8, 8, generator=rng(size))
        torch.testing.assert_close(ported(inputs), net(inputs), rtol=1e-4, atol=1e-5)


def test_evaluate_counts_what_the_split_chooses():
    data = pictures()
    subnet = ss.extract(conv_bn(), data, "fbs", recipe=ss.Recipe(epochs=4, threads=1, batch_size=16, device="cpu"))
    record = ss.evaluate(subnet, network=conv_bn(), data=data)
    assert record["dynamic"]
    assert record["kept_macs"] == subnet.metrics["kept_macs"] < record["macs"]


def test_exports(tmp_path):
    recipe = ss.Recipe(epochs=4, threads=1, batch_size=16, device="cpu")
    subnet = ss.extract("small_conv", "digits", "fbs", recipe=recipe)
    for to in ("compact", "csr", "bsr", "2:4"):
        with pytest.raises(UserError, match=r"^each input of this network chooses its filters \(fbs\), so none"):
            ss.export(subnet, to, tmp_path / to)
    record = ss.export(subnet, "state-dict", tmp_path / "a.safetensors", seconds=0.1)
    assert record["dynamic"]
    assert record["kept_macs"] == subnet.metrics["kept_macs"] != record["dense_kept_macs"] == record["macs"]
    assert any("gate.phi" in name for name in load_file(tmp_path / "a.safetensors"))
