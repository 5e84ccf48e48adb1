"""Looking at gradients before training: what a probe computes, what it leaves alone, and what it costs."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from toys import conv_bn, mlp, pictures, points, run_config, supernet

from subnet_search import RunConfig
from subnet_search.core.errors import Interrupted
from subnet_search.data import Batches, Data, Split
from subnet_search.extraction.config_file import check
from subnet_search.training import train
from subnet_search.training.loop import training_step
from subnet_search.training.probe import Probe


def eight_weights():
    """One linear layer of eight weights, and four images that are all (1, 2, 3, 4): three of class 0, one of class 1."""
    net = nn.Sequential(nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[7, 5, 1, 0.5], [6, -2, 4, 2]]))
    split = Split(torch.tensor([[1.0, 2, 3, 4]]).repeat(4, 1), torch.tensor([0, 0, 0, 1]))
    return net, Data("given", split, split, 2)


def probe_of(net, data, **recipe):
    whole = supernet("random", net, **recipe)
    return whole, Probe(whole, data)


def test_eight_gradients():
    # Both logits are 22, so each class has probability 1/2. The classes have shares 3/4 and 1/4 of the batch:
    # the gradient is (1/2 - 3/4) x for the first row, (1/2 - 1/4) x for the second.
    whole, probe = probe_of(*eight_weights())
    found = probe.gradients(whole.weights)["0.weight"]
    assert found.tolist() == [[-0.25, -0.5, -0.75, -1], [0.25, 0.5, 0.75, 1]]


def test_eight_hessian_gradients():
    # With p = (1/2, 1/2) the Hessian of the logits is 1/4 [[1, -1], [-1, 1]], which takes the gradient (-1/4, 1/4) of the
    # logits to (-1/8, 1/8). Both are times x, and x . x = 30: the product is (-1/8, 1/8) * 30 x = (-15/4, 15/4) x.
    whole, probe = probe_of(*eight_weights())
    found = probe.hessian_gradients(whole.weights)["0.weight"]
    assert torch.allclose(found, torch.tensor([[-3.75], [3.75]]) * torch.tensor([1.0, 2, 3, 4]))
    # Logits over T: the gradient goes with 1 / T, the Hessian with 1 / T^2.
    cooler = probe.hessian_gradients(whole.weights, temperature=2.0)["0.weight"]
    assert torch.allclose(cooler, found / 8)


def test_eight_flow_gradients():
    # R = 1 |W2| |W1| 1. For a weight of the first layer: what leaves its output, the column sums of |W2|, 7 and 3.
    # For one of the second: what reaches its input, the row sums of |W1|, 3 and 8.
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, -2], [3, 5]]))
        net[1].weight.copy_(torch.tensor([[6.0, -1], [1, 2]]))
    whole, probe = probe_of(net, points(40, inputs=2, classes=2))
    found = probe.flow_gradients(whole.weights)
    assert found["0.weight"].tolist() == [[7, 7], [3, 3]]
    assert found["1.weight"].tolist() == [[3, 8], [3, 8]]


def by_hand(whole, data, inputs, labels):
    net = whole.net.train()
    loss = F.cross_entropy(net(inputs), labels)
    return dict(zip(whole.weights, torch.autograd.grad(loss, list(whole.weights.values())), strict=True))


@pytest.mark.parametrize(("index", "images"), [(0, None), (3, None), (0, 50), (11, 25)])
def test_gradients_are_autograds_on_the_same_batch(index, images):
    data = points()
    whole, probe = probe_of(mlp(), data, batch_size=30)
    batch = Batches(data.train, data.mean, data.std, images or 30, whole.seed).batch(index)
    expected = by_hand(whole, data, *batch)
    found = probe.gradients(whole.weights, index, images)
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def test_gradients_at_other_weights():
    data = points()
    whole, probe = probe_of(mlp(), data, batch_size=30)
    before = {name: weight.detach().clone() for name, weight in whole.weights.items()}
    halved = {name: weight * (torch.arange(weight.numel()).view(weight.shape) % 2) for name, weight in before.items()}
    found = probe.gradients(halved)
    assert all(torch.equal(weight, before[name]) for name, weight in whole.weights.items())
    assert all(weight.grad is None for weight in whole.weights.values())
    other = mlp()
    other.load_state_dict({**whole.net.state_dict(), **halved})
    expected = by_hand(supernet("random", other), data, *Batches(data.train, None, None, 30, whole.seed).batch(0))
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def tiny():
    """A smooth network of 17 weights, and the loss of its first batch as a function of all of them in double precision."""
    data = points(80, inputs=3, classes=2)
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1), nn.Tanh(), nn.Linear(1, 2))
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    whole, probe = probe_of(net, data, batch_size=16)
    inputs, labels = Batches(data.train, None, None, 16, whole.seed).batch(0)
    sizes = [weight.numel() for weight in whole.weights.values()]
    rest = {name: value.double() for name, value in net.state_dict().items()}

    def loss(flat, temperature=1.0):
        parts = zip(whole.weights.items(), flat.split(sizes), strict=True)
        values = {name: part.view(weight.shape) for (name, weight), part in parts}
        return F.cross_entropy(functional_call(net, {**rest, **values}, (inputs.double(),)) / temperature, labels)

    return whole, probe, loss, flatten(whole.weights).detach().double()


def flatten(tensors):
    return torch.cat([tensor.reshape(-1) for tensor in tensors.values()])


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_hessian_gradients_are_the_hessian_times_the_gradient(temperature):
    whole, probe, loss, at = tiny()
    gradient = torch.autograd.functional.jacobian(lambda flat: loss(flat, temperature), at)
    hessian = torch.autograd.functional.hessian(lambda flat: loss(flat, temperature), at)
    found = flatten(probe.hessian_gradients(whole.weights, temperature)).double()
    assert torch.allclose(found, hessian @ gradient, rtol=1e-4, atol=1e-6)
    assert found.abs().max() > 1e-3


def test_hessian_gradients_are_differences_of_the_gradient_norm():
    # H g is the gradient of |g|^2 / 2: what GraSP's score, w * (H g), predicts to go with a weight.
    whole, probe, loss, at = tiny()
    norm = lambda flat: torch.autograd.functional.jacobian(loss, flat).square().sum() / 2  # noqa: E731
    nudges = torch.eye(len(at), dtype=torch.float64) * 1e-5
    differences = torch.stack([(norm(at + nudge) - norm(at - nudge)) / 2e-5 for nudge in nudges])
    found = flatten(probe.hessian_gradients(whole.weights)).double()
    assert torch.allclose(found, differences, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dims", [(5, 4, 3), (5, 4, 6, 3)])
def test_flow_gradients_are_products_of_absolute_matrices(dims):
    # dR/d|W_l| = (W_L ... W_l+1)^T 1 (W_l-1 ... W_1 1)^T, all of them absolute.
    net = nn.Sequential(*[nn.Linear(a, b, bias=False) for a, b in pairwise(dims)])
    whole, probe = probe_of(net, points(40, inputs=dims[0]))
    layers = [weight.detach().abs().double() for weight in whole.weights.values()]
    for index, found in enumerate(probe.flow_gradients(whole.weights).values()):
        reaches, leaves = torch.ones(dims[0]).double(), torch.ones(dims[-1]).double()
        for layer in layers[:index]:
            reaches = layer @ reaches
        for layer in reversed(layers[index + 1 :]):
            leaves = layer.T @ leaves
        assert torch.allclose(found, torch.outer(leaves, reaches))


def test_a_deep_flow_does_not_overflow():
    # Sixty layers of 10 x 10 tens: R = 10 (10 * 10)^60 = 10^121, far beyond a float's 10^38.
    net = nn.Sequential(*[nn.Linear(10, 10, bias=False) for _ in range(60)])
    for layer in net:
        nn.init.constant_(layer.weight, -10.0)
    whole, probe = probe_of(net, points(40))
    first = probe.flow_gradients(whole.weights)["0.weight"]  # what leaves: 100^59
    assert torch.allclose(first, torch.full((10, 10), 1e118, dtype=torch.float64))


def test_a_probe_leaves_the_network_as_it_was():
    whole, probe = probe_of(conv_bn(), pictures(), batch_size=30)
    before = {name: value.clone() for name, value in whole.net.state_dict().items()}
    probe.gradients(whole.weights)
    probe.hessian_gradients(whole.weights)
    probe.flow_gradients(whole.weights)
    after = whole.net.state_dict()
    assert "1.running_mean" in before
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in whole.net.parameters())


def test_a_probe_is_the_same_again():
    """Dropout and augmentation are draws of the batch's number, not of how often one has looked."""
    whole, probe = probe_of(conv_bn(), pictures(), batch_size=30, augment=("crop", "flip"))
    first, other, again = (probe.gradients(whole.weights, index)["5.weight"] for index in (0, 1, 0))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", ["snip", "grasp", "synflow", "snip_iterative"])
def test_a_layer_that_is_not_used_has_no_gradient(name):
    """As in training: the loss does not depend on it, so its score is zero and it goes first."""

    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(10, 3), nn.Linear(4, 4)

        def forward(self, inputs):
            return self.used(inputs)

    subnet = run_config(config(name, density=0.2), module=Idle(), data=points())
    assert subnet.metrics["collapsed"] == ["idle.weight"]


def test_flow_through_a_buffer_that_is_not_saved():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(10, 3, bias=False)
            self.register_buffer("turn", 2 * torch.eye(10), persistent=False)

        def forward(self, inputs):
            return self.last(inputs @ self.turn)

    whole, probe = probe_of(Scaled(), points(40))
    assert torch.equal(probe.flow_gradients(whole.weights)["last.weight"], torch.full((3, 10), 2.0, dtype=torch.float64))


def config(name, epochs=2, batch_size=30, recipe=None, **settings):
    recipe = {"epochs": epochs, "batch_size": batch_size, "threads": 1, "device": "cpu", **(recipe or {})}
    return check(RunConfig, {"extractor": {"name": name, **settings}, "recipe": recipe})


COSTS = [  # 18 steps of 30 images; forward and backward passes of the probe, and the steps that they are worth
    ({"name": "random"}, 0, 0, 0),
    ({"name": "snip"}, 1, 1, 1),
    ({"name": "snip", "images": 10}, 1, 1, 1),
    ({"name": "snip", "images": 45}, 1, 1, 2),  # one and a half
    ({"name": "grasp"}, 1, 2, 2),
    ({"name": "grasp", "images": 15}, 1, 2, 1),  # half a batch, twice
    ({"name": "snip_iterative", "rounds": 5}, 5, 5, 5),
    ({"name": "snip_iterative", "rounds": 5, "images": 10}, 5, 5, 2),  # 50 images
    ({"name": "snip_iterative", "rounds": 18}, 18, 18, 18),  # nothing is left to train with
    ({"name": "synflow", "rounds": 60}, 60, 60, 2),  # one input a round
    ({"name": "synflow", "rounds": 61}, 61, 61, 3),
    ({"name": "shuffled", "source": "grasp"}, 1, 2, 2),
]


@pytest.mark.parametrize(("extractor", "forward", "backward", "steps"), COSTS)
def test_probes_are_paid_for_in_steps(extractor, forward, backward, steps):
    seen = []
    subnet = run_config(config(**extractor), module=mlp(), data=points(), on_step=seen.append)
    trained = 18 - steps
    assert subnet.metrics["steps"] == len(seen) == 18
    assert subnet.metrics["probe_steps"] == steps
    assert subnet.metrics["passes"] == {"forward": forward + trained, "backward": backward + trained}


def test_the_first_steps_are_the_probes(monkeypatch):
    """They train nothing; what comes after is trained on the batches that it would have been anyway."""
    batches, losses, weights = [], [], []
    draw = Batches.batch

    def step(*arguments):
        loss, change = training_step(*arguments)
        losses.append(loss.item())
        return loss, change

    monkeypatch.setattr(Batches, "batch", lambda self, step: batches.append(step) or draw(self, step))
    monkeypatch.setattr("subnet_search.training.loop.training_step", step)
    whole = supernet({"name": "snip_iterative", "rounds": 4}, mlp(), epochs=1, batch_size=30)
    outcome = train(whole, points(), 0, on_step=lambda clock: weights.append(whole.weights["2.weight"].detach().clone()))
    assert batches == [0, 1, 2, 3, 4, 5, 6, 7, 8]  # four looked at, five trained on
    moved = [not torch.equal(before, after) for before, after in pairwise(weights)]
    assert moved == [False] * 3 + [True] * 5
    assert outcome.history[0].train_loss == pytest.approx(sum(losses) / 5)
    assert len(losses) == 5


def test_nothing_is_paid_without_training():
    subnet = run_config(config("snip_iterative", epochs=0, rounds=7), module=mlp(), data=points())
    assert (subnet.metrics["steps"], subnet.metrics["probe_steps"]) == (0, 0)
    assert subnet.metrics["passes"] == {"forward": 7, "backward": 7}
    assert subnet.masks.kept == 42  # a tenth of 416


@pytest.mark.parametrize("stop", [1, 3, 5, 6])
def test_killed_among_the_probes_and_resumed(stop, tmp_path):
    settings = config("snip_iterative", rounds=5)
    whole = run_config(settings, module=mlp(), data=points())
    seen = []
    with pytest.raises(Interrupted, match=f"step {stop} of 18"):
        run_config(settings, tmp_path, module=mlp(), data=points(), on_step=seen.append, should_stop=lambda: len(seen) == stop)
    rest = []
    resumed = run_config(settings, tmp_path, resume=True, module=mlp(), data=points(), on_step=rest.append)
    assert [clock.step for clock in rest] == list(range(stop, 18))
    assert resumed.sha256 == whole.sha256
    for key in ("steps", "probe_steps", "passes"):
        assert resumed.metrics[key] == whole.metrics[key], key
