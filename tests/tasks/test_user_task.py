"""Tasks of the user's: an object with a loss and metrics, by object and by name, and what goes wrong with them."""

import sys

import pytest
import torch
import torch.nn.functional as F
from toys import mlp

import subnet_search as ss
from subnet_search.core.errors import Interrupted, RunError, UserError
from subnet_search.tasks import create_task

X = torch.randn(80, 10, generator=torch.Generator().manual_seed(0))
Y = X[:, :3] @ torch.randn(3, 3, generator=torch.Generator().manual_seed(1))
RECIPE = ss.Recipe(epochs=3, batch_size=8, threads=1, device="cpu", lr=0.02)


class Distance:
    """The distance to three targets."""

    leading = "worst"
    directions = {"worst": "minimize", "near": "maximize"}

    def __init__(self, power=2):
        self.power = power

    def loss(self, network, batch):
        inputs, targets = batch
        return ((network(inputs) - targets).abs() ** self.power).mean()

    def metrics(self, network, batch):
        inputs, targets = batch
        errors = (network(inputs) - targets).abs()
        return {"worst": errors.amax(1).mean(), "near": (errors < 0.5).float().mean()}


def extracted(task, method="magnitude", data=(X, Y), **options):
    return ss.extract(mlp(), data, method, density=0.5, recipe=RECIPE, task=task, **options)


@pytest.mark.parametrize("method", ["gumbel", "magnitude", "granet", "snip", "grasp", "synflow", "edge_popup"])
def test_methods_learn_a_task_of_ones_own(method):
    found = extracted(Distance(), method)
    assert found.density == pytest.approx(0.5, abs=0.01)
    assert {"val_worst", "val_near", "val_loss", "test_worst"} <= found.metrics.keys()
    measured = ss.evaluate(found, network=mlp(), data=(X, Y), task=Distance())
    assert measured["worst"] == pytest.approx(found.metrics["val_worst"])
    with pytest.raises(UserError, match=r"the task of this run is not built in: pass it, task=\.\.\. or --task"):
        ss.evaluate(found, network=mlp(), data=(X, Y))


def test_metrics_are_means_over_items_of_batches_of_any_size():
    task = create_task(Distance())
    inputs = torch.randn(5, 3)
    batches = [(inputs[:4], torch.zeros(4, 3)), (inputs[4:], torch.zeros(1, 3))]
    found = task.measure(lambda x: x, batches)
    assert found["loss"] == pytest.approx(inputs.square().mean().item())
    assert found["worst"] == pytest.approx(inputs.abs().amax(1).mean().item())
    assert (task.leading, task.directions["worst"], task.directions["loss"]) == ("worst", "minimize", "minimize")


def test_early_stopping_keeps_the_epoch_with_the_best_leading_metric():
    seen = []
    config = ss.RunConfig(
        extractor={"name": "snip", "density": 0.5},
        recipe={"epochs": 8, "batch_size": 8, "threads": 1, "device": "cpu", "lr": 0.05, "patience": 2},
        task=Distance(),
    )
    found = ss.run(config, module=mlp(), data=ss.load_data((X, Y), Distance()), on_epoch=seen.append)
    values = [epoch.metrics["val_worst"] for epoch in seen]
    assert found.metrics["val_worst"] == min(values)
    assert found.metrics["epoch"] == values.index(min(values)) + 1


def test_a_run_with_an_object_is_resumed_to_the_same_bits(tmp_path):
    def run(name, steps=None, resume=False):
        count = iter(range(1000))
        stop = (lambda: next(count) >= steps) if steps else None
        config = ss.RunConfig(
            extractor={"name": "granet", "density": 0.5}, recipe=RECIPE.model_dump(exclude_unset=True), task=Distance()
        )
        data = ss.load_data((X, Y), Distance())
        return ss.run(config, tmp_path / name, module=mlp(), data=data, resume=resume, should_stop=stop)

    whole = run("whole")
    with pytest.raises(Interrupted):
        run("cut", steps=7)
    assert run("cut", resume=True).sha256 == whole.sha256
    assert "task: null" in (tmp_path / "whole" / "config.yaml").read_text()


def test_a_task_by_name_has_its_settings(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "owntask.py").write_text(
        "class Own:\n"
        "    def __init__(self, scale=1.0):\n        self.scale = scale\n"
        "    def loss(self, network, batch):\n"
        "        return self.scale * (network(batch[0]) - batch[1]).square().mean()\n"
    )
    found = extracted({"name": "owntask:Own", "scale": 0.5}, out=tmp_path / "run")
    assert found.origin.task == {"name": "owntask:Own", "scale": 0.5}
    assert "owntask:Own" in (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(UserError, match=r"the task owntask:Own does not accept \{'size': 3\}"):
        extracted({"name": "owntask:Own", "size": 3})
    with pytest.raises(UserError, match=r"cannot import the task 'owntask:Other'"):
        extracted("owntask:Other")


class Loss:
    def __init__(self, loss, metrics=None, **attributes):
        self.loss = loss
        if metrics:
            self.metrics = metrics
        self.__dict__.update(attributes)


def right(network, batch):
    return (network(batch[0]) - batch[1]).square().mean()


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (object(), r"the task object has no method loss\(network, batch\)"),
        (Loss(lambda network, batch: network(batch[0])), r"must be a scalar tensor, got a tensor of shape \(2, 3\)"),
        (Loss(lambda network, batch: 3.0 + 0 * len(network(batch[0]))), "must be a scalar tensor, got float"),
        (Loss(lambda network, batch: network(batch[0]).detach().sum()), "no gradient reaches the weights of Sequential"),
        (Loss(lambda network, batch: torch.zeros(())), "does not call the network"),
        (Loss(lambda network, batch: network(batch["x"])), "the loss of the task .* fails: TypeError"),
        (Loss(lambda network, batch: network(batch[0], batch[1]).sum()), "does not accept the inputs 0 .2, 10. float32, 1"),
        (Loss(lambda network, batch: network(batch[0][:, :4]).sum()), r"does not accept inputs of shape \(4,\): mat1"),
        (Loss(right, lambda network, batch: {"m": "good"}), "the metric m of the task .* must be one number, got 'good'"),
        (Loss(right, lambda network, batch: {"m": torch.zeros(3)}), "the metric m of the task .* must be one number"),
        (Loss(right, lambda network, batch: 1 / 0), "the metrics of the task .* fails?: ZeroDivisionError"),
        (Loss(right, leading="iou"), "must say in `directions` whether iou is to be maximized"),
        (Loss(right, leading="iou", directions={"iou": "up"}), "the direction of iou must be minimize or maximize"),
        (Loss(right, leading="iou", directions={"iou": "maximize"}), "the metrics of the task .* have no iou"),
    ],
)  # fmt: skip
def test_mistakes_in_a_task_are_said_before_training(task, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        extracted(task, out=tmp_path / "run")
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_metric_that_is_not_a_number_ends_the_run():
    task = Loss(right, lambda network, batch: {"m": float("nan")}, leading="m", directions={"m": "minimize"})
    with pytest.raises(RunError, match=r"the metric m of the task .* is not a number \(nan\)"):
        extracted(task)


def test_labels_may_be_anything_for_a_task_of_ones_own():
    nested = {"a": X, "b": {"c": Y}}

    class Nested:
        def loss(self, network, batch):
            return F.mse_loss(network(batch["a"]), batch["b"]["c"])

    assert extracted(Nested(), data=nested).metrics["val_loss"] > 0
