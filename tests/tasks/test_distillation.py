"""Distillation: the loss by hand, which teacher it is, and that a resumed run has the same one."""

import logging
import math

import pytest
import torch
from task_runs import config, stopped_and_resumed
from torch import nn
from toys import conv_bn, mlp, pictures, points, supernet

import subnet_search as ss
from subnet_search.core.errors import UserError
from subnet_search.extractors import Clock
from subnet_search.tasks import Classification, Regression, UserTask
from subnet_search.training.loop import training_step

THIRD = math.log(3)  # the logit, against 0, of 3/4


def linear(weight, bias=False):
    net = nn.Sequential(nn.Linear(2, 2, bias=bias))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor(weight))
    return net


def test_distance_by_hand():
    # D(teacher || network): of 3/4 and 1/4 from 1/2 and 1/2. At temperature 2 logits are halved first, and it counts 4 times.
    output, teacher = torch.zeros(1, 2), torch.tensor([[0.0, THIRD]])
    wanted = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert Classification().distance(output, teacher, 1.0).item() == pytest.approx(wanted)
    assert Classification().distance(output, (2 * teacher,), 2.0).item() == pytest.approx(4 * wanted)
    assert Classification().distance(teacher, teacher, 3.0).item() == 0


def test_a_step_by_hand():
    # The network gives logits 0 and 0, the teacher 0 and log 3; the label is 0. At temperature 1 and weight 1/4 the loss is
    # 3/4 log 2 + 1/4 D, and the gradient of the logits 3/4 (p - y) + 1/4 (p - q), with p = 1/2, y = (1, 0), q = (1/4, 3/4).
    net, teacher = linear([[0.0, 0], [0, 0]]), linear([[0.0, 0], [THIRD, 0]])
    found = supernet("magnitude", net, distill={"weight": 0.25, "temperature": 1.0}, lr=1.0, momentum=0)
    assert found.teacher is not None
    found.teacher.load_state_dict(teacher.state_dict())
    batch = (torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    loss, _ = training_step(found, optimizer, batch, Clock(0, 10, 0), list(net.parameters()))
    distance = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert loss.item() == pytest.approx(0.75 * math.log(2) + 0.25 * distance)
    gradient = [0.75 * -0.5 + 0.25 * 0.25, 0.75 * 0.5 + 0.25 * -0.25]
    assert net[0].weight[:, 0].tolist() == pytest.approx([-gradient[0], -gradient[1]])
    assert found.passes == (2, 1)  # the teacher's is counted
    assert all(parameter.grad is None for parameter in found.teacher.parameters())


@pytest.mark.parametrize("method", ["rigl", "gumbel"])
def test_a_resumed_run_has_the_same_teacher(method, tmp_path):
    data, net = pictures(), conv_bn()
    settings = config("classification", method, distill={"weight": 0.5})
    whole = ss.run(settings, tmp_path / "whole", module=net, data=data)
    assert stopped_and_resumed(settings, tmp_path / "part", net, data, 5).sha256 == whole.sha256
    assert whole.metrics["passes"]["forward"] == 2 * whole.metrics["steps"]
    assert ss.run(config("classification", method), module=net, data=data).sha256 != whole.sha256


def test_weight_0_is_training_without_a_teacher():
    runs = [ss.run(config("classification", distill=one), module=mlp(), data=points()) for one in (None, {"weight": 0.0})]
    assert torch.allclose(runs[0].weights["0.weight"], runs[1].weights["0.weight"], atol=1e-6)


def test_a_teacher_in_a_file(tmp_path):
    data, net = points(), mlp()
    dense = ss.extract(
        net, data, "random", density=1.0, recipe=ss.Recipe(epochs=4, threads=1, device="cpu"), out=tmp_path / "t"
    )
    torch.save(dense.on(net).state_dict(), tmp_path / "teacher.pt")
    files = (tmp_path / "t" / "subnetwork.safetensors", tmp_path / "teacher.pt")
    settings = [config("classification", distill={"weight": 0.9, "teacher": str(file)}) for file in files]
    one, other = (ss.run(each, module=net, data=data) for each in settings)
    assert one.sha256 == other.sha256
    passed = ss.extract(
        net, data, "snip", density=0.5, recipe=config("classification", distill={"weight": 0.9}).recipe, teacher=dense.on(net)
    )
    assert passed.sha256 == one.sha256
    assert one.origin.recipe["distill"]["teacher_sha256"] != passed.origin.recipe["distill"]["teacher_sha256"] is not None
    folder = tmp_path / "changed"
    stopped_and_resumed(settings[1], folder, net, data, 3)
    torch.save(net.state_dict(), tmp_path / "teacher.pt")
    with pytest.raises(UserError, match=r"cannot resume .*: recipe\.distill\.teacher_sha256 was"):
        ss.run(settings[1], folder, module=net, data=data, resume=True)


def test_a_teacher_that_was_passed(tmp_path):
    data, net, teacher = points(), mlp(), mlp(hidden=64, seed=1)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    settings = config("classification")
    whole = ss.run(settings, tmp_path / "whole", module=net, data=data, teacher=teacher)
    assert stopped_and_resumed(settings, tmp_path / "part", net, data, 5, teacher=teacher).sha256 == whole.sha256
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert teacher.training
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    with pytest.raises(UserError, match=r"cannot resume .*: recipe\.distill\.teacher_sha256 was"):
        ss.run(settings, tmp_path / "whole", module=net, data=data, teacher=mlp(hidden=64, seed=2), resume=True)
    again = config("classification", distill=whole.origin.recipe["distill"])
    with pytest.raises(UserError, match=r"the teacher of this run was passed from Python: pass teacher=\.\.\."):
        ss.run(again, module=net, data=data)
    with pytest.raises(UserError, match="the teacher differs from the original run's"):
        ss.run(again, module=net, data=data, teacher=mlp())
    assert ss.run(again, module=net, data=data, teacher=teacher).sha256 == whole.sha256


def test_a_trained_teacher_helps():
    """A network that sees few labels learns more from a teacher that saw all."""
    data, net = points(600), mlp()
    recipe = ss.Recipe(epochs=20, batch_size=20, lr=0.05, threads=1, device="cpu")
    teacher = ss.extract(net, data, "random", density=1.0, recipe=recipe).network()
    inputs, labels = data.train.inputs[:60].clone(), data.train.labels[:60].clone()
    few = {"train": (inputs, labels.roll(1)), "val": (data.val.inputs, data.val.labels)}  # labels that say nothing
    found = [
        ss.extract(net, few, "snip", density=0.5, recipe=recipe.model_copy(update={"distill": distill}), teacher=given)
        for distill, given in ((None, None), (ss.Recipe(distill={"weight": 1.0}).distill, teacher))
    ]
    alone, taught = (one.metrics["val_accuracy"] for one in found)
    assert taught > alone + 0.2


def test_an_untrained_teacher_is_told(caplog):
    settings = {"recipe": {"epochs": 0, "distill": {}}, "extractor": "snip", "network": "small_conv"}
    with caplog.at_level(logging.WARNING):
        ss.run(ss.RunConfig(**settings))
    assert "the teacher is the network as the run begins, and it is untrained (init: kaiming_normal)" in caplog.text
    caplog.clear()
    ss.extract(mlp(), points(), "snip", recipe=ss.Recipe(epochs=0, distill={}))
    assert "untrained" not in caplog.text


class Own:
    """A task with a distance of its own."""

    def loss(self, network, batch):
        return nn.functional.cross_entropy(network(batch[0]), batch[1])

    def distance(self, output, teacher, temperature):
        return (output - teacher).abs().mean()


class WithoutDistance:
    loss = Own.loss


def test_what_is_refused_before_training():
    data = points()
    with pytest.raises(
        UserError, match=r"recipe\.distill compares outputs of two networks, and the task .*WithoutDistance has no"
    ):
        ss.extract(mlp(), data, task=WithoutDistance(), recipe=ss.Recipe(epochs=1, distill={}))
    with pytest.raises(UserError, match=r"extractor\.loss=kl compares outputs of two networks, and the task .*WithoutDistance"):
        ss.extract(mlp(), data, "concrete", task=WithoutDistance(), recipe=ss.Recipe(epochs=1))
    ss.extract(mlp(), data, "concrete", task=Own(), recipe=ss.Recipe(epochs=1, batch_size=16, distill={}))
    with pytest.raises(UserError, match=r"returns outputs of shape \(2, 5\), and the network \(2, 3\): they must be equal"):
        ss.extract(mlp(), data, "snip", teacher=mlp(classes=5))
    with pytest.raises(UserError, match=r"the teacher, Sequential, does not accept inputs of shape \(10,\)"):
        ss.extract(mlp(), data, "snip", teacher=mlp(inputs=7))
    with pytest.raises(UserError, match=r"cannot read no\.pt: No such file or directory \(recipe\.distill\.teacher\)"):
        ss.extract(mlp(), data, "snip", recipe=ss.Recipe(distill={"teacher": "no.pt"}))
    with pytest.raises(UserError, match=r"a teacher was passed, and recipe\.distill\.teacher names another"):
        ss.extract(mlp(), data, "snip", recipe=ss.Recipe(distill={"teacher": __file__}), teacher=mlp())
    with pytest.raises(UserError, match=r"recipe\.distill\.teacher is a \.safetensors"):
        ss.extract(mlp(), data, "snip", recipe=ss.Recipe(distill={"teacher": __file__}))
    for wrong in ({"weight": 1.5}, {"temperature": 0}):
        with pytest.raises(UserError, match=rf"recipe\.distill\.{next(iter(wrong))}"):
            config("classification", distill=wrong)
    assert UserTask.of(Own()).has_distance
    assert not UserTask.of(WithoutDistance()).has_distance
    assert Regression().has_distance


def test_concrete_follows_the_dense_network_in_every_task():
    inputs = torch.randn(60, 10, generator=torch.Generator().manual_seed(0))
    recipe = ss.Recipe(epochs=2, batch_size=16)
    subnet = ss.extract(mlp(classes=1), (inputs, inputs[:, 0]), "concrete", task="regression", recipe=recipe)
    assert subnet.density == pytest.approx(0.1, abs=0.01)
