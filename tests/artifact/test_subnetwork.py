"""The artifact: what is saved comes back, takes little room, runs nothing, and says so when it is not what it was."""

import dataclasses
import json
import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import subnet_search as ss
from subnet_search.core.errors import UserError
from subnet_search.core.tensor_files import load_tensors, save_tensors
from subnet_search.data import prepare
from subnet_search.deploy.exported_network import read_artifact
from subnet_search.nets import NetworkSpec, build

ONE_EPOCH = ss.Recipe(epochs=1, threads=1)


@pytest.fixture(scope="module")
def digits():
    return ss.load_data("digits")


@pytest.fixture(scope="module")
def found(digits):
    """A subnetwork of untrained weights, with learned scales."""
    return ss.extract("lenet5", "digits", "gumbel", density=0.3, recipe=ONE_EPOCH, seed=4)


@pytest.fixture(scope="module")
def trained(digits):
    """A subnetwork of trained weights."""
    return ss.extract("lenet5", "digits", "random", density=0.3, recipe=ONE_EPOCH, seed=4)


@pytest.fixture(params=["found", "trained"])
def either(request):
    return request.getfixturevalue(request.param)


@torch.no_grad()
def logits(subnet, digits):
    return subnet.network().eval()(prepare(digits.val.inputs, digits.mean, digits.std))


def lenet5(seed=0):
    return build(NetworkSpec(name="lenet5").resolve(None), (1, 8, 8), 10, seed)


# --- saved and loaded ---


@pytest.mark.parametrize(("name", "weights"), [("found", "values"), ("found", "seed"), ("trained", "values")])
def test_a_subnetwork_comes_back_bit_for_bit(request, tmp_path, digits, name, weights):
    subnet = request.getfixturevalue(name)
    size = subnet.save(tmp_path / "net.safetensors", weights)
    assert size == (tmp_path / "net.safetensors").stat().st_size
    loaded = ss.Subnetwork.load(tmp_path / "net.safetensors")
    assert loaded.sha256 == subnet.sha256
    assert loaded.masks.same(subnet.masks)
    assert loaded.origin == subnet.origin
    assert loaded.summary() == subnet.summary()
    assert subnet.summary()["flops_ratio"] == subnet.metrics["kept_macs"] / subnet.metrics["macs"]
    assert "flops_ratio" not in subnet.metrics  # the file is as before
    assert logits(loaded, digits).equal(logits(subnet, digits))


def test_the_network_scores_what_the_run_measured(either, digits):
    right = logits(either, digits).argmax(1) == digits.val.labels
    assert right.double().mean().item() == either.metrics["val_accuracy"]


def test_dead_weights_are_zero_and_the_density_is_exact(either):
    effective = either.effective_weights()
    assert all(not effective[name][~mask].any() for name, mask in either.masks.items())
    assert either.masks.kept == round(0.3 * either.masks.numel)
    assert either.density == pytest.approx(0.3, abs=1e-5)


def test_the_effective_weights_are_scale_times_weight_times_mask(found):
    net = lenet5(seed=4)  # what the run began with
    assert set(found.scales) == set(found.masks)
    for name, weight in found.effective_weights().items():
        torch.testing.assert_close(weight, found.scales[name] * net.get_parameter(name).detach() * found.masks[name])


def test_the_hash_covers_weights_scales_and_biases(found):
    name = next(iter(found.masks))
    other = [
        dataclasses.replace(found, weights={**found.weights, name: -found.weights[name]}),
        dataclasses.replace(found, scales={**found.scales, name: found.scales[name] * 2}),
        dataclasses.replace(found, state={key: value + 1 for key, value in found.state.items()}),
    ]
    assert len({found.sha256, *(subnet.sha256 for subnet in other)}) == 4


# --- the file ---


def test_weights_from_the_seed_cost_about_one_bit_each(found, tmp_path):
    size = found.save(tmp_path / "net.safetensors", "seed")
    assert size <= 1.1 / 8 * found.masks.numel + 20_000


def test_values_cost_four_bytes_for_each_weight_that_lives(found, tmp_path):
    size = found.save(tmp_path / "net.safetensors")
    assert size <= 4 * found.masks.kept + 1.1 / 8 * found.masks.numel + 20_000
    assert size < found.dense_bytes() / 2


def test_a_file_holds_plain_tensors_and_json_and_no_pickle(either, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("something was unpickled")

    path = tmp_path / "net.safetensors"
    either.save(path)
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    entries = json.loads(raw[8:start])
    json.loads(entries.pop("__metadata__")["header"])
    assert {entry["dtype"] for entry in entries.values()} <= {"U8", "F32"}
    spans = sorted(entry["data_offsets"] for entry in entries.values())
    assert [0, *(end for _, end in spans)] == [*(begin for begin, _ in spans), len(raw) - start]  # and nothing between
    for name in ("load", "loads", "Unpickler", "_Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    assert ss.Subnetwork.load(path).sha256 == either.sha256


def test_trained_weights_cannot_be_left_out(trained, tmp_path):
    with pytest.raises(UserError, match="trained weights cannot be generated from a seed: save them with weights='values'"):
        trained.save(tmp_path / "net.safetensors", "seed")
    assert not any(tmp_path.iterdir())


def test_random_masks_of_untrained_weights_can(tmp_path):
    subnet = ss.extract("lenet5", "digits", "random", recipe=ss.Recipe(epochs=0, threads=1))
    subnet.save(tmp_path / "net.safetensors", "seed")
    assert ss.Subnetwork.load(tmp_path / "net.safetensors").sha256 == subnet.sha256


@pytest.mark.parametrize("init", ["signed_constant", "scaled"])
@pytest.mark.parametrize("network", ["lenet5", {"name": "lenet5"}, NetworkSpec(name="lenet5")], ids=["name", "mapping", "spec"])
def test_every_initialisation_can_be_made_again(tmp_path, init, network):
    subnet = ss.extract(network, "digits", "edge_popup", density=0.3, init=init, recipe=ss.Recipe(epochs=0, threads=1))
    assert subnet.origin.init == init
    subnet.save(tmp_path / "net.safetensors", "seed")
    assert ss.Subnetwork.load(tmp_path / "net.safetensors").sha256 == subnet.sha256


# --- on a network ---


def test_on_a_fresh_network(either):
    net = lenet5(seed=9)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    masked = either.on(net)
    expected = {**either.state, **either.effective_weights()}
    assert masked.state_dict().keys() == expected.keys()
    assert all(value.equal(expected[name]) for name, value in masked.state_dict().items())
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())  # it is a copy


@pytest.mark.parametrize(
    ("other", "part"),
    [
        (lambda: build(NetworkSpec(name="lenet5").resolve(None), (1, 8, 8), 11, 0), "9.weight differs"),
        (lambda: build(NetworkSpec(name="lenet_300_100").resolve(None), (1, 8, 8), 10, 0), "differs"),
        (lambda: nn.Linear(64, 10), "differs"),
    ],
    ids=["more classes", "another name", "a layer"],
)
def test_on_another_network(found, other, part):
    with pytest.raises(UserError, match=f"this subnetwork is of another network: .*{part}"):
        found.on(other())


def handed_in(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 10))


def test_a_network_handed_in_is_handed_in_again(tmp_path, digits):
    net = handed_in()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    subnet = ss.extract(net, digits, "random", density=0.5, recipe=ONE_EPOCH)
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())
    with pytest.raises(UserError, match="weights of this network were not generated from a seed"):
        subnet.save(tmp_path / "net.safetensors", "seed")
    subnet.save(tmp_path / "net.safetensors")
    loaded = ss.Subnetwork.load(tmp_path / "net.safetensors")
    with pytest.raises(UserError, match=r"passed from Python.*pass it, network="):
        loaded.network()
    masked = loaded.on(handed_in(seed=1)).eval()
    assert masked[2].num_batches_tracked == 10  # buffers came along
    inputs = prepare(digits.val.inputs, digits.mean, digits.std)
    right = masked(inputs).argmax(1) == digits.val.labels
    assert right.double().mean().item() == subnet.metrics["val_accuracy"]


def test_a_file_does_not_choose_what_is_imported(found, tmp_path, monkeypatch):
    module = "module_that_a_file_names"
    (tmp_path / f"{module}.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    origin = found.origin.model_copy(update={"network": NetworkSpec(name=f"{module}:factory")})
    dataclasses.replace(found, origin=origin).save(tmp_path / "net.safetensors")
    loaded = ss.Subnetwork.load(tmp_path / "net.safetensors")
    with pytest.raises(UserError, match=rf"{module}:factory.*pass it, network="):
        loaded.network()
    assert module not in sys.modules
    assert loaded.on(lenet5()) is not None


# --- files that are not what they were ---


def rewritten(found, path, **header):
    """The file of `found` with another header."""
    found.save(path)
    tensors, before = load_tensors(path, "subnetwork file")
    save_tensors(path, tensors, {**before, **header})
    return path


GOLDEN = Path(__file__).parents[1] / "golden"


def test_files_of_earlier_versions():
    """Written when `std` was still called `deviation`; the accuracy was measured then."""
    subnet = ss.Subnetwork.load(GOLDEN / "subnetwork-1.safetensors")
    assert subnet.sha256 == "bb717048fb76abef18ee8c454473d661b66de08ab4c062042f853c7455e86d35"
    assert subnet.summary()["normalisation"]["std"] == [pytest.approx(0.3756171)]
    assert ss.evaluate(subnet, "test")["accuracy"] == pytest.approx(0.8830084, abs=0.003)
    small = read_artifact(GOLDEN / "compact-1.safetensors")
    assert small.origin.std == pytest.approx((0.3756171,))
    assert ss.evaluate(small, "test")["accuracy"] == pytest.approx(0.9582173, abs=0.003)


def test_a_newer_format(found, tmp_path):
    path = rewritten(found, tmp_path / "net.safetensors", format=4)
    with pytest.raises(UserError, match=f"{path} has format 4, newer than the 3 this version reads: update subnet-search"):
        ss.Subnetwork.load(path)


@pytest.mark.parametrize(
    ("weights", "kind"),
    [
        *(("values", kind) for kind in ("kept", "mask", "scale", "state")),
        *(("seed", kind) for kind in ("mask", "scale", "state")),
    ],
)
def test_a_tensor_that_was_changed(found, tmp_path, weights, kind):
    path = tmp_path / "net.safetensors"
    found.save(path, weights)
    tensors, header = load_tensors(path, "subnetwork file")
    name = next(name for name in tensors if name.startswith(f"{kind}."))
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[0] += 1
    save_tensors(path, tensors, header)  # with a hash over its tensors that is right
    with pytest.raises(UserError, match=rf"{path}(: the effective weights do not match| is not a readable subnetwork file)"):
        ss.Subnetwork.load(path)


def test_another_seed_makes_other_weights(found, tmp_path):
    path = tmp_path / "net.safetensors"
    found.save(path, "seed")
    tensors, header = load_tensors(path, "subnetwork file")
    save_tensors(path, tensors, {**header, "origin": {**header["origin"], "seed": 5}})
    with pytest.raises(UserError, match="the effective weights do not match the hash"):
        ss.Subnetwork.load(path)


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_truncated_file(found, tmp_path, share):
    path = tmp_path / "net.safetensors"
    found.save(path)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(UserError, match=f"{path} is not a readable subnetwork file"):
        ss.Subnetwork.load(path)


def test_a_file_of_another_kind(tmp_path):
    path = tmp_path / "state.safetensors"
    save_tensors(path, {"net.weight": torch.zeros(2)}, {"format": 1, "progress": {}})  # a checkpoint
    with pytest.raises(UserError, match=f"{path} is not a subnetwork file"):
        ss.Subnetwork.load(path)


@pytest.mark.parametrize(
    "header",
    [{"origin": {}}, {"origin": None}, {"shapes": {"w": [3]}}, {"shapes": None}, {"format": "one"}],
    ids=lambda header: "-".join(map(str, *header.items())),
)
def test_a_header_that_makes_no_sense(found, tmp_path, header):
    path = rewritten(found, tmp_path / "net.safetensors", **header)
    with pytest.raises(UserError, match=f"{path}"):
        ss.Subnetwork.load(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=f"no such subnetwork file: {tmp_path}/none"):
        ss.Subnetwork.load(tmp_path / "none")


def test_a_network_without_weights_yet_is_refused(digits):
    def lazy():
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(10))

    subnet = ss.extract(lazy(), digits, "random", recipe=ONE_EPOCH)
    with pytest.raises(UserError, match="uninitialised lazy layers"):
        subnet.on(lazy())
    used = lazy()
    used(torch.zeros(1, 1, 8, 8))
    assert subnet.on(used)
