"""A network that begins from a file: its weights are those of the file, and what was found needs the file no more."""

import argparse
import pickle

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

import subnet_search as ss
from subnet_search.core.errors import UserError
from subnet_search.extraction.config_file import check
from subnet_search.extraction.extract import run
from subnet_search.nets import NetworkSpec, build, prunable
from subnet_search.training.checkpoint import Epoch

FAST = {"threads": 1, "device": "cpu", "batch_size": 256}


def lenet(seed=7, classes=10):
    return build(NetworkSpec(name="lenet_300_100").resolve(None), (1, 8, 8), classes, seed)


@pytest.fixture(scope="module")
def net():
    """What a file holds: other weights than any run here begins with, biases too."""
    net = lenet()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.01)
    return net


@pytest.fixture(scope="module")
def digits():
    return ss.load_data("digits")


def config(state, extractor="random", epochs=0, **more):
    network = {"name": "lenet_300_100", "state": str(state)}
    values = {"network": network, "extractor": extractor, "recipe": {**FAST, "epochs": epochs}}
    return check(ss.RunConfig, {**values, **more})


def saved(net, path):
    state = {name: value.detach().clone() for name, value in net.state_dict().items()}
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


@pytest.mark.parametrize("name", ["net.pt", "net.pth", "net.th", "net.bin", "net.safetensors"])
def test_a_state_dict_is_where_a_run_begins(tmp_path, net, digits, name):
    subnet = run(config(saved(net, tmp_path / name), {"name": "random", "density": 0.5}), data=digits)
    for key, weight in prunable(net).items():
        assert torch.equal(subnet.weights[key], weight.detach() * subnet.masks[key])
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in subnet.state.items())
    assert subnet.origin.init == "keep"


def test_a_subnetwork_is_where_a_run_begins(tmp_path, net, digits):
    """Its effective weights are, with their rescaling; dead ones are zero."""
    recipe = ss.Recipe(**FAST, epochs=1)
    first = ss.extract(net, digits, "gumbel", density=0.5, rescale="dynamic", recipe=recipe)
    first.save(tmp_path / "first.safetensors")
    second = run(config(tmp_path / "first.safetensors", {"name": "random", "density": 1.0}), data=digits)
    assert second.sha256 == first.sha256
    assert any(scale != 1 for scale in first.scales.values())
    assert second.metrics["val_accuracy"] == first.metrics["val_accuracy"]


@pytest.mark.parametrize("method", ["gumbel", "edge_popup"])
def test_masks_are_learned_over_trained_weights(method, tmp_path, net, digits):
    path = saved(net, tmp_path / "net.pt")
    subnet = run(config(path, {"name": method, "density": 0.5}, epochs=2), tmp_path / "run", data=digits)
    path.unlink()
    loaded = ss.Subnetwork.load(tmp_path / "run" / "subnetwork.safetensors")
    for key, weight in prunable(net).items():
        assert torch.equal(loaded.weights[key], weight.detach() * loaded.masks[key])  # the weights did not move
    again = loaded.network()  # without the file
    assert torch.equal(again.state_dict()["1.weight"], subnet.effective_weights()["1.weight"])


def test_the_file_is_on_record_and_may_not_change(tmp_path, net, digits):
    path = saved(net, tmp_path / "net.pt")
    settings = config(path)
    subnet = run(settings, tmp_path / "run", data=digits)
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert len(written["network"]["state_sha256"]) == 64
    assert subnet.origin.network.state_sha256 == written["network"]["state_sha256"]
    assert run(check(ss.RunConfig, written), data=digits).sha256 == subnet.sha256
    saved(lenet(8), path)
    with pytest.raises(UserError, match=r"net\.pt has changed: its SHA-256 was [0-9a-f]{64}, now [0-9a-f]{64}"):
        run(check(ss.RunConfig, written), data=digits)
    with pytest.raises(UserError, match=r"cannot resume .*run: network\.state_sha256 was '[0-9a-f]{64}', now"):
        run(settings, tmp_path / "run", resume=True, data=digits)


def other(path, value):
    torch.save(value, path)
    return path


def text(path, content="no tensors"):
    path.write_text(content)
    return path


class Trap:
    def __reduce__(self):
        return (exec, ("raise AssertionError('code of the file was run')",))


MISTAKES = {
    "missing": (lambda p, n: p / "none.pt", r"cannot read .*none\.pt: No such file or directory \(network\.state\)"),
    "names": (
        lambda p, n: saved(nn.Linear(2, 2), p / "a.pt"),
        r"nothing in .*a\.pt fits lenet_300_100: the file has 2 tensors \('weight', 'bias'\), the network 6 tensors \('1",
    ),
    "fewer": (
        lambda p, n: other(p / "a.pt", dict(list(n.state_dict().items())[:-1])),
        r"lenet_300_100: 1 \('5\.bias'\) of its 6 tensors missing; network.partial: true loads",
    ),
    "more": (
        lambda p, n: other(p / "a.pt", {**n.state_dict(), "x": torch.ones(1)}),
        r"lenet_300_100: 1 \('x'\) in the file that it does not have; network.partial: true loads the 6 tensors that fit$",
    ),
    "public names": (
        lambda p, n: other(p / "a.pt", {"module.fc1.weight": torch.ones(300, 64), "module.fc2.bias": torch.ones(100)}),
        r": 4 \('fc1\.bias', 'fc2\.weight', 'fc3\.weight', \.\.\.\) of its 6 tensors missing; network.partial: true loads",
    ),
    "shapes": (
        lambda p, n: saved(lenet(classes=9), p / "a.pt"),
        r"'5\.weight' has shape \(9, 100\), in the network \(10, 100\) \(and 1",
    ),
    "list": (lambda p, n: other(p / "a.pt", [torch.ones(2)]), r"a\.pt is not a state dict, tensors by name, but of type list"),
    "wrapped": (
        lambda p, n: other(p / "a.pt", {"epoch": 3, "net": {}}),
        r"'epoch' is not a tensor but of type int \(nor does it have state_dict, model or ema\); save only net",
    ),
    "nested": (
        lambda p, n: other(p / "a.th", {"state_dict": {**n.state_dict(), "loss": 0.5}}),
        r"a\.th is not a state dict: 'loss' is not a tensor but of type float in state_dict; save only net\.state_dict\(\)$",
    ),
    "empty": (lambda p, n: other(p / "a.pt", {"model": {}}), r"a\.pt is not a state dict: model is empty$"),
    "settings": (
        lambda p, n: other(p / "a.pt", {"state_dict": n.state_dict(), "args": argparse.Namespace(lr=0.1)}),
        r"is not a state dict: it contains an object of type argparse\.Namespace; save only net\.state_dict\(\)",
    ),
    "module": (
        lambda p, n: other(p / "a.pt", nn.Linear(2, 2)),
        r"object of type torch\.nn\.modules\.linear\.Linear; save only net\.state_dict\(\)",
    ),
    "trap": (lambda p, n: other(p / "a.pt", Trap()), r"a\.pt is not a state dict: it .*; save only net\.state_dict\(\)"),
    "damaged": (lambda p, n: text(p / "a.pt"), r"a\.pt is not a "),
    "damaged too": (lambda p, n: text(p / "a.safetensors"), r"a\.safetensors is not a readable state dict"),
    "suffix": (
        lambda p, n: text(p / "a.ckpt"),
        r"network\.state is a \.safetensors, \.pt, \.pth, \.th or \.bin file, got .*a\.ckpt",
    ),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes_are_one_line_and_leave_nothing(tmp_path, net, digits, kind):
    make, message = MISTAKES[kind]
    with pytest.raises(UserError, match=message) as caught:
        run(config(make(tmp_path, net)), tmp_path / "run", data=digits)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_state_leaves_no_room_for_an_initialisation(tmp_path):
    with pytest.raises(UserError, match=r"network\.init must be keep when network\.state is set"):
        check(ss.RunConfig, {"network": {"name": "lenet5", "state": "a.pt", "init": "signed_constant"}})


def test_weights_that_no_seed_makes_are_refused_before_training(tmp_path, net, digits):
    settings = config(saved(net, tmp_path / "net.pt"), epochs=3, weights="seed")
    with pytest.raises(UserError, match="weights of this network were not generated from a seed"):
        run(settings, tmp_path / "run", data=digits, on_step=pytest.fail)
    assert not (tmp_path / "run").exists()


def test_a_trap_would_have_worked():
    with pytest.raises(AssertionError, match="code of the file was run"):
        pickle.loads(pickle.dumps(Trap()))


def test_an_epoch_is_written_at_one_level_and_read_again():
    epoch = Epoch(1, 10, 0.5, {"val_accuracy": 0.9, "val_nll": 0.3}, 0.5, 0.1, 2.0)
    plain = epoch.plain()
    assert "metrics" not in plain
    assert (plain["val_nll"], plain["epoch"]) == (0.3, 1)
    assert Epoch.of(plain) == epoch
    earlier = {key: value for key, value in plain.items() if key != "val_nll"}
    assert Epoch.of({**earlier, "val_loss": 0.3}) == epoch
