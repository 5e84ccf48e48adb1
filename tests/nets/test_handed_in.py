"""Networks that are not plain: each is trained under its own names, or refused in one line before the first step."""

import threading
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import prune
from toys import mlp, points, supernet

import subnet_search as ss
from subnet_search import RunError, UserError
from subnet_search.nets import own_copy
from subnet_search.training import train
from subnet_search.training.check_trainable import check_trainable

RECIPE = ss.Recipe(epochs=1, batch_size=32, lr=0.02, threads=1, device="cpu")
DATA = points(100)


class Answers(nn.Module):
    """A network whose forward pass is a function of two layers and an input."""

    def __init__(self, forward):
        super().__init__()
        self.a, self.b, self.said = nn.Linear(10, 16), nn.Linear(16, 3), forward

    def forward(self, x):
        return self.said(self, x)


def plain(net, x):
    return net.b(net.a(x).relu())


def without_logits_in_training(net, x):
    return {"out": plain(net, x)} if net.training else plain(net, x)


@dataclass
class Output:
    loss: object
    logits: object


OUTPUTS = {
    "a tuple": lambda net, x: (plain(net, x), x),
    "a list": lambda net, x: [plain(net, x)],
    "a mapping": lambda net, x: {"hidden": x, "logits": plain(net, x)},
    "an object": lambda net, x: Output(None, plain(net, x)),
    "auxiliary logits in training": lambda net, x: (plain(net, x), x) if net.training else plain(net, x),
}


def carries_its_graph(net, x):
    net.state = net.a(x).relu() + getattr(net, "state", torch.zeros(())).sum() * 0.1
    return net.b(net.state)


class ExtraState(nn.Linear):
    def get_extra_state(self):
        return {"calls": 0}

    def set_extra_state(self, state):
        pass


def with_lock():
    net = mlp()
    net.guard = threading.Lock()
    return net


def pruned():
    net = mlp()
    prune.l1_unstructured(net[2], "weight", 0.5)
    return net


def old_norm(make):
    net = mlp()
    with pytest.warns(FutureWarning):
        make(net[0])
    return net


def new_norm():
    net = mlp()
    nn.utils.parametrizations.weight_norm(net[0])
    return net


REFUSED = {
    "torch's pruning": (
        pruned,
        r"a weight of 2 is computed .*\(L1Unstructured\).* torch\.nn\.utils\.prune\.remove\(module, 'weight'\)",
    ),
    "weight norm": (lambda: old_norm(nn.utils.weight_norm), r"a weight of 0 is .*remove_weight_norm\(module, 'weight'\)"),
    "a parametrisation": (new_norm, r"weight of 0 is .*parametrize\.remove_parametrizations\(module, 'weight'\)"),
    "a lock": (with_lock, r"cannot copy Sequential: its attribute guard \(lock\) cannot"),
    "extra state": (lambda: nn.Sequential(ExtraState(10, 3)), r"0 has extra state \(get_extra_state\)"),
    "DataParallel": (lambda: nn.DataParallel(mlp()), r"cannot prune nn.DataParallel; pass its \.module"),
    "no logits in training": (
        lambda: Answers(without_logits_in_training),
        r"Answers must return logits of shape \(batch, classes\) in training mode too, got dict of 1 with out",
    ),
    "a graph from batch to batch": (
        lambda: Answers(carries_its_graph),
        "Answers cannot be trained on this data: RuntimeError: Trying to backward",
    ),
    "no gradient": (
        lambda: Answers(lambda net, x: net.b(net.a(x).detach()).detach()),
        "no gradient reaches the weights of Answers: its forward pass detaches them",
    ),
}


@pytest.mark.parametrize("method", ["magnitude", "gumbel", "snip"])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_trained_is_refused_before_the_first_step(kind, method, tmp_path):
    make, said = REFUSED[kind]
    with pytest.raises(UserError, match=said) as refused:
        ss.extract(make(), DATA, method, density=0.5, recipe=RECIPE, out=tmp_path / "run")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", OUTPUTS)
@pytest.mark.parametrize("method", ["gumbel", "snip", "synflow"])
def test_logits_are_found_in_what_a_network_returns(kind, method, tmp_path):
    torch.manual_seed(0)
    net, bare = Answers(OUTPUTS[kind]), Answers(plain)
    bare.load_state_dict(net.state_dict())
    recipe = RECIPE.model_copy(update={"epochs": 4})
    subnet, wanted = (ss.extract(one, DATA, method, density=0.5, recipe=recipe) for one in (net, bare))
    assert subnet.sha256 == wanted.sha256
    assert ss.evaluate(subnet, network=net, data=DATA)["accuracy"] == ss.evaluate(wanted, network=bare, data=DATA)["accuracy"]
    ss.export(subnet, "state-dict", tmp_path / "state.safetensors", network=net, seconds=0.01)


def test_a_network_that_returns_more_than_logits_is_exported(tmp_path):
    net = Answers(OUTPUTS["a mapping"])
    subnet = ss.extract(net, DATA, "l1_filters", density=0.5, recipe=RECIPE)
    ss.export(subnet, "compact", tmp_path / "small.safetensors", network=net, seconds=0.01)
    ss.export(subnet, "onnx", tmp_path / "small.onnx", network=net, seconds=0.01)
    small = ss.load_deployed(tmp_path / "small.safetensors", net)
    inputs = DATA.val.inputs
    with torch.no_grad():
        assert torch.allclose(small(inputs)["logits"], subnet.on(net).eval()(inputs)["logits"], atol=1e-5)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())


class Tokens(nn.Module):
    """A classifier of sequences of token ids."""

    def __init__(self):
        super().__init__()
        self.embed, self.hidden, self.out = nn.Embedding(20, 16), nn.Linear(16, 32), nn.Linear(32, 2)

    def forward(self, ids):
        return {"logits": self.out(self.hidden(self.embed(ids)).relu().mean(1))}


@pytest.mark.parametrize("dtype", [torch.int64, pytest.param(torch.int32, marks=pytest.mark.long)])
def test_token_ids_stay_integers(dtype, tmp_path):
    torch.manual_seed(0)
    ids, net = torch.randint(0, 20, (120, 8)).to(dtype), Tokens()
    labels = (ids.float().mean(1) > 9.5).long()
    recipe = RECIPE.model_copy(update={"epochs": 3})
    for method in ("gumbel", "magnitude", "granet"):
        subnet = ss.extract(net, (ids, labels), method, density=0.5, recipe=recipe, out=tmp_path / f"{method}-{dtype}")
        found = ss.evaluate(subnet, network=net, data=(ids, labels), latency=True)
        assert found["val_accuracy"] == subnet.metrics["val_accuracy"]
        assert subnet.inputs(2).dtype == dtype
    ss.export(subnet, "onnx", tmp_path / f"{dtype}.onnx", network=net, seconds=0.01)
    with pytest.raises(UserError, match=r"noise is added to float inputs, and these are torch\.int"):
        ss.evaluate(subnet, network=net, data=(ids, labels), noise=True)
    with pytest.raises(UserError, match="synflow passes ones through the network, so it needs float inputs"):
        ss.extract(net, (ids, labels), "synflow", density=0.5, recipe=recipe)
    with pytest.raises(UserError, match=r"does not accept int(32|64) inputs of shape \(8,\): .* pass inputs\.float\(\)"):
        ss.extract(nn.Sequential(nn.Linear(8, 2)), (ids, labels), method, density=0.5)


def test_a_stored_activation_is_copied_without_its_graph():
    net = Answers(plain)
    net.register_forward_hook(lambda module, args, out: setattr(module, "kept", {"logits": [out]}))
    net(DATA.train.inputs)
    subnet = ss.extract(net, DATA, "magnitude", density=0.5, recipe=RECIPE)
    assert subnet.on(net)(DATA.val.inputs).shape == (len(DATA.val), 3)
    copied = own_copy(net).kept["logits"][0]
    assert copied.is_leaf
    assert copied.equal(net.kept["logits"][0])


@pytest.mark.parametrize("whole", [True, False], ids=["the network", "a layer"])
def test_a_compiled_network_goes_by_its_own_names(whole, tmp_path):
    net = mlp()
    compiled = torch.compile(net) if whole else nn.Sequential(torch.compile(net[0]), net[1], net[2])
    subnet = ss.extract(compiled, DATA, "magnitude", density=0.5, recipe=RECIPE)
    assert list(subnet.masks) == ["0.weight", "2.weight"]
    assert subnet.sha256 == ss.extract(net, DATA, "magnitude", density=0.5, recipe=RECIPE).sha256
    subnet.save(tmp_path / "s.safetensors")
    ss.Subnetwork.load(tmp_path / "s.safetensors").on(net)
    ss.export(subnet, "state-dict", tmp_path / "state.safetensors", network=compiled, seconds=0.01)
    assert set(load_file(tmp_path / "state.safetensors")) == set(net.state_dict())


def test_training_switches_gradients_on_by_itself():
    expected = ss.extract(mlp(), DATA, "magnitude", density=0.5, recipe=RECIPE).sha256
    with torch.no_grad():
        assert ss.extract(mlp(), DATA, "magnitude", density=0.5, recipe=RECIPE).sha256 == expected
        assert not torch.is_grad_enabled()
    with torch.inference_mode(), pytest.raises(UserError, match=r"training is not possible inside torch\.inference_mode"):
        ss.extract(mlp(), DATA, "magnitude", density=0.5, recipe=RECIPE)


def test_a_trial_leaves_no_trace():
    """No draw, no statistic of batch norm, no gradient, no mode is another after it."""
    net = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    tried = supernet("magnitude", net.eval())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    check_trainable(tried, DATA)
    assert torch.rand(3).equal(expected)
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not net.training
    assert tried.passes == (0, 0)


def test_checks_are_made_on_the_runs_own_inputs():
    """Three-digit codes: zeros and random numbers are none."""

    def looked_up(net, x):
        assert ((x >= 100) & (x < 1000)).all(), "no such code"
        return plain(net, x / 1000)

    rng = torch.Generator().manual_seed(0)
    data = ss.load_data((torch.randint(100, 1000, (60, 10), generator=rng), torch.arange(60) % 3))
    assert data.examples().min() >= 100
    subnet = ss.extract(Answers(looked_up), data, "magnitude", density=0.5, recipe=RECIPE)
    assert subnet.metrics["macs"] == 160 + 48


# --- what is not a number ---


@pytest.mark.parametrize("method", ["gumbel", "supermask", "edge_popup", "magnitude"])
def test_what_is_learned_is_looked_at_after_every_epoch(method):
    """The last step of an epoch spoils it: no loss has met that yet."""
    net = supernet(method, epochs=2, batch_size=32)

    def spoil(clock):
        if clock.step == 2:
            learned = net.relevance or net.weights
            next(iter(learned.values())).data.view(-1)[0] = torch.nan

    with pytest.raises(RunError, match=r"0\.weight is not a number after step 3: try a lower learning rate"):
        train(net, points(100 + 10), 0, on_step=spoil)
