"""Regression: losses and metrics by hand, shapes that would broadcast, a run."""

import math

import pytest
import torch
from task_runs import refused, whole_run
from torch import nn
from toys import mlp

import subnet_search as ss
from subnet_search.tasks import Regression, create_task


def data(count=80, targets=None, seed=0):
    inputs = torch.randn(count, 10, generator=torch.Generator().manual_seed(seed))
    return inputs, 2 * inputs[:, 0] if targets is None else 2 * inputs[:, :targets]


def same(inputs):
    return inputs


@pytest.mark.parametrize(
    ("loss", "wanted"),
    [
        ("mse", (0.25 + 9) / 2),
        ("l1", (0.5 + 3) / 2),
        ("huber", (0.125 + 2.5) / 2),  # half of 0.5 squared; 3 - 1/2
    ],
)
@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_losses_by_hand(loss, wanted, shape):
    # Errors 0.5 and 3, in whichever of the two shapes the outputs come.
    task = create_task({"name": "regression", "loss": loss})
    values, labels = torch.tensor([1.5, 5.0]).view(shape), torch.tensor([1.0, 2.0])
    assert task.criterion(values, labels).item() == pytest.approx(wanted)
    assert task.criterion(values, labels.view(2, 1)).item() == pytest.approx(wanted)
    assert task.model_dump() == {"name": "regression", "labels": None, "loss": loss}


def test_metrics_by_hand():
    # Errors 1, 0, 2: squares 1, 0, 4. The labels are 1, 2 and 6, with mean 3: squares of deviations 4, 1, 9.
    values, labels = torch.tensor([[2.0], [2.0], [4.0]]), torch.tensor([1.0, 2.0, 6.0])
    found = Regression().measure(same, [(values[:2], labels[:2]), (values[2:], labels[2:])])
    wanted = {"mse": 5 / 3, "rmse": math.sqrt(5 / 3), "mae": 1, "r2": 1 - 5 / 14}
    assert found == pytest.approx(wanted)
    # The same far from 0, where sums of squares in float32 would have lost r2.
    far = Regression().measure(same, [(values + 2**20, labels + 2**20)])
    assert far == pytest.approx(wanted, rel=1e-6)
    # A second target that is predicted exactly: r2 is the mean of 1 - 5/14 and 1.
    two = Regression().measure(same, [(torch.cat([values, values], 1), torch.stack([labels, values.view(-1)], 1))])
    assert two == pytest.approx({"mse": 5 / 6, "rmse": math.sqrt(5 / 6), "mae": 0.5, "r2": 1 - 5 / 28})
    assert "r2" not in Regression().measure(same, [(values[:1], labels[:1])])
    assert Regression().measure(same, [(torch.ones(3), torch.ones(3))])["rmse"] == 0


def test_distance_by_hand():
    assert Regression().distance(torch.tensor([[1.0], [2.0]]), torch.tensor([2.0, 4.0]), 3.0).item() == 2.5


def test_a_run(tmp_path):
    subnet = whole_run({"name": "regression", "loss": "huber"}, mlp(classes=1), data(), tmp_path)
    assert (subnet.origin.classes, subnet.origin.task["loss"]) == (1, "huber")
    inputs = data()[0][:5]
    found = ss.predict(subnet, inputs, network=mlp(classes=1))
    assert torch.equal(found.values, subnet.on(mlp(classes=1)).eval()(inputs).view(-1))
    assert found.rows()[0] == {"value": found.values[0].item()}


def test_several_targets(tmp_path):
    subnet = whole_run("regression", mlp(classes=2), data(targets=2), tmp_path)
    assert ss.predict(subnet, data()[0][:5], network=mlp(classes=2)).values.shape == (5, 2)


def test_outputs_without_a_dimension():
    net = nn.Sequential(mlp(classes=1), nn.Flatten(0))
    subnet = ss.extract(net, data(), "magnitude", task="regression", recipe=ss.Recipe(epochs=4, lr=0.01, batch_size=16))
    assert subnet.metrics["val_r2"] > 0.3  # of a loss that broadcasts, it would be about 0
    assert ss.predict(subnet, data()[0][:5]).values.shape == (5,)


def test_a_built_in_network_gets_its_outputs():
    images = torch.randint(0, 255, (40, 1, 8, 8), dtype=torch.uint8)
    labels = images.float().mean((1, 2, 3)) / 255
    subnet = ss.extract("small_conv", (images, labels), "snip", task="regression", recipe=ss.Recipe(epochs=1))
    assert subnet.network()(torch.zeros(1, 1, 8, 8)).shape == (1, 1)


def test_labels_and_outputs_that_are_refused():
    inputs, labels = data()
    wanted = r"given data: regression needs labels that are numbers with shape \(N,\) or \(N, targets\), got "
    refused("regression", (inputs, labels.view(-1, 1, 1)), wanted + r"float32 of shape \(N, 1, 1\)", mlp())
    refused("regression", {"x": inputs}, wanted + "none", mlp())
    shape = r"Sequential must return values of shape \(batch, targets\) = \(2, 1\) or \(2,\), got \(2, 3\)"
    refused("regression", (inputs, labels), shape, mlp())
    shape = r"Sequential must return values of shape \(batch, targets\) = \(2, 2\), got \(2, 1\)"
    refused("regression", data(targets=2), shape, mlp(classes=1))
    parts = {"train": data(targets=2), "val": data(seed=1)}
    refused("regression", parts, r"\(validation\): labels have 1 targets, but 2 in training", mlp())
    with pytest.raises(ss.UserError, match=r"task\.loss: .*'mse', 'l1' or 'huber'"):
        ss.extract(mlp(), data(), task={"name": "regression", "loss": "l2"})
