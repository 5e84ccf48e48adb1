"""Classification: weights of classes in the loss, accuracy by class, and names of classes."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset
from toys import mlp, points

import subnet_search as ss
from subnet_search import UserError
from subnet_search.data import from_user
from subnet_search.evaluation import quality
from subnet_search.extraction.config_file import check
from subnet_search.tasks import Classification

RECIPE = ss.Recipe(epochs=4, batch_size=20, lr=0.1, threads=1, device="cpu")


def uneven(rare=20, often=180, seed=0):
    """Two classes of 10 numbers that overlap, one ten times as frequent as the other."""
    rng = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rare + often, 10, generator=rng)
    labels = torch.tensor([1] * rare + [0] * often)
    inputs[:, 0] += 1.5 * labels
    return inputs, labels


def config(**task):
    return check(ss.RunConfig, {"task": {"name": "classification", **task}})


def test_a_name_alone_is_a_task():
    assert check(ss.RunConfig, {"task": "classification"}).task == Classification() == ss.RunConfig().task
    with pytest.raises(UserError, match="task: unknown task 'clasification': did you mean 'classification'"):
        check(ss.RunConfig, {"task": "clasification"})
    with pytest.raises(UserError, match="class weights must not be below 0, and not all be 0"):
        config(class_weights=[-1, 2])
    with pytest.raises(UserError, match="class weights must not be below 0, and not all be 0"):
        config(class_weights=[0, 0])


def test_balanced_weights_by_hand():
    data = from_user(
        {"train": (torch.zeros(8, 3), torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])), "val": (torch.zeros(2, 3), torch.tensor([0, 1]))}
    )
    weights = config(class_weights="balanced").task.weights(data)
    assert torch.allclose(weights, torch.tensor([8 / 12, 8 / 4]))
    assert weights[data.train.labels].mean() == pytest.approx(1)
    with pytest.raises(UserError, match=r"task\.class_weights has 3 weights, but the data has 2 classes"):
        config(class_weights=[1, 2, 3]).task.weights(data)


def test_the_loss_by_hand():
    data = from_user(uneven())
    loss = config(class_weights=[1, 3]).task.fitted(data, "cpu").criterion
    logits, labels = torch.tensor([[1.0, 0.0], [0.5, -1.0]]), torch.tensor([0, 1])
    apart = F.cross_entropy(logits, labels, reduction="none")
    assert loss(logits, labels).item() == pytest.approx((apart[0] + 3 * apart[1]).item() / 2)
    wide = torch.cat([logits, logits], 1)  # a network with more outputs than classes
    assert loss(wide, labels).isfinite()
    plain = config().task.fitted(data, "cpu").criterion(logits, labels)
    assert plain.equal(F.cross_entropy(logits, labels))


@pytest.mark.parametrize("method", ["snip", "gumbel", "granet"])
def test_balanced_classes_find_the_rare_class_more_often(method):
    data = from_user({"train": uneven(), "val": uneven(60, 60, seed=1)})
    found = {
        weights: ss.run(
            check(
                ss.RunConfig,
                {"extractor": {"name": method, "density": 0.5}, "recipe": RECIPE, "task": {"class_weights": weights}},
            ),
            module=mlp(classes=2),
            data=data,
        )
        for weights in (None, "balanced")
    }
    rare = {key: ss.evaluate(subnet, network=mlp(classes=2), data=data)["class_accuracy"][1] for key, subnet in found.items()}
    assert rare["balanced"] > rare[None]
    assert found["balanced"].origin.task == {"name": "classification", "labels": None, "class_weights": "balanced"}


def test_equal_weights_are_the_plain_loss_but_for_rounding():
    data = points(100)
    settings = {"extractor": {"name": "magnitude", "density": 0.5}, "recipe": RECIPE}
    plain, weighted = (
        ss.run(check(ss.RunConfig, {**settings, "task": {"class_weights": weights}}), module=mlp(), data=data)
        for weights in (None, [1.0, 1.0, 1.0])
    )
    for name, weight in plain.weights.items():
        assert torch.allclose(weight, weighted.weights[name], atol=1e-5)


def test_accuracy_by_class():
    logits = torch.eye(4)[torch.tensor([0, 0, 1, 0, 2])] * 9
    found = quality(logits, torch.tensor([0, 0, 0, 1, 2]))
    assert found.class_accuracy == [pytest.approx(2 / 3), 0.0, 1.0, None]
    assert found.balanced_accuracy == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert found.accuracy == pytest.approx(3 / 5)


def test_class_names_are_kept(tmp_path):
    class Named(TensorDataset):
        classes = ("cat", "dog")

    subnet = ss.extract(mlp(classes=2), Named(*uneven()), "random", density=0.5, recipe=RECIPE)
    assert subnet.origin.class_names == ("cat", "dog")
    subnet.save(tmp_path / "s.safetensors")
    assert ss.Subnetwork.load(tmp_path / "s.safetensors").origin.class_names == ("cat", "dog")
    Named.classes = ("cat",)
    with pytest.raises(UserError, match="label 1 is outside the classes 0 to 0"):
        from_user(Named(*uneven()))
