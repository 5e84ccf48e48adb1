"""Multi-label: loss and metrics by hand, weights, labels that are refused, a run."""

import math

import pytest
import torch
from task_runs import refused, whole_run
from torch.utils.data import Dataset
from toys import mlp

import subnet_search as ss
from subnet_search.tasks import MultiLabel, create_task, load_data

THIRD = math.log(3)  # the logit of 3/4; that of 1/4 is its negative


class Pairs(Dataset):
    def __init__(self, inputs, labels, classes=None):
        self.inputs, self.labels = inputs, labels
        if classes:
            self.classes = classes

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return self.inputs[index], self.labels[index]


def data(count=80, seed=0):
    inputs = torch.randn(count, 10, generator=torch.Generator().manual_seed(seed))
    return inputs, (inputs[:, :3] > 0.3).int()


def test_loss_by_hand():
    logits, labels = torch.tensor([[THIRD, THIRD], [-THIRD, 0.0]]), torch.tensor([[1, 0], [0, 1]])
    # The probabilities of the right answers are 3/4, 1/4, 3/4 and 1/2.
    right = [-math.log(p) for p in (0.75, 0.25, 0.75, 0.5)]
    assert MultiLabel().criterion(logits, labels).item() == pytest.approx(sum(right) / 4)
    # Smoothed by 0.2, labels are 0.9 and 0.1.
    mixed = [0.9 * -math.log(p) + 0.1 * -math.log(1 - p) for p in (0.75, 0.25, 0.75, 0.5)]
    assert MultiLabel().criterion(logits, labels, 0.2).item() == pytest.approx(sum(mixed) / 4)


def test_weights_by_hand():
    labels = torch.tensor([[1, 0], [0, 0], [0, 1], [0, 1]])
    for given in ((torch.zeros(4, 3), labels), Pairs(torch.zeros(4, 3), labels)):
        loaded = load_data({"train": given, "val": (torch.ones(4, 3), labels)}, "multi_label")
        # One of four has the first label, two the second: 3 / 1 and 2 / 2.
        task = create_task({"name": "multi_label", "pos_weight": "balanced"}).fitted(loaded, "cpu")
        assert task.weights(loaded).tolist() == [3, 1]
        logits = torch.zeros(1, 2)
        assert task.criterion(logits, torch.tensor([[1, 1]])).item() == pytest.approx((3 + 1) * math.log(2) / 2)
        assert task.criterion(logits, torch.tensor([[0, 0]])).item() == pytest.approx(math.log(2))
    with pytest.raises(ss.UserError, match=r"task\.pos_weight has 3 weights, but the data has 2 labels"):
        create_task({"name": "multi_label", "pos_weight": [1, 2, 3]}).fitted(loaded, "cpu")
    with pytest.raises(ss.UserError, match="weights of labels must be above 0"):
        ss.extract(mlp(), data(), task={"name": "multi_label", "pos_weight": [0, 1, 1]})


def test_metrics_by_hand():
    logits = torch.tensor([[THIRD, -THIRD, -9.0], [THIRD, THIRD, -9.0], [-THIRD, -THIRD, -9.0], [0.1, -THIRD, -9.0]])
    labels = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 1, 0], [1, 0, 0]])
    # Predicted: 1 1 0 1, 0 1 0 0 and 0 0 0 0. First label: TP 2, FP 1, FN 0: F1 4/5. Second: TP 1, FP 0, FN 1: F1 2/3. The
    # third is never there: F1 0. Items 0 and 3 are right in all labels.
    batches = [(logits[:3], labels[:3]), (logits[3:], labels[3:])]
    found = MultiLabel().measure(lambda inputs: inputs, batches)
    assert found["f1"] == pytest.approx((4 / 5 + 2 / 3 + 0) / 3)
    assert found["exact_match"] == pytest.approx(0.5)
    # Precision and recall over thresholds. First: 3/4 (items 0 and 1, of which one is right): 1/2 at recall 1/2; then item 3:
    # 2/3 at recall 1. Second: item 1 first: 1 at recall 1/2; then all others at once: 2/4 at recall 1. No third label.
    first, second = (1 / 2 + 2 / 3) / 2, (1 + 1 / 2) / 2
    assert found["mean_average_precision"] == pytest.approx((first + second) / 2)
    whole = MultiLabel().measure(lambda inputs: inputs, [(logits, labels)])
    assert found == pytest.approx(whole)
    assert found["nll"] == pytest.approx(MultiLabel().criterion(logits, labels).item())
    strict = create_task({"name": "multi_label", "threshold": 0.7}).measure(lambda inputs: inputs, batches)
    assert strict["exact_match"] == pytest.approx(0.25)  # item 3 is no longer predicted
    nothing = MultiLabel().measure(lambda inputs: inputs, [(logits, torch.zeros(4, 3))])
    assert "mean_average_precision" not in nothing


def test_distance_by_hand():
    # Teacher 3/4, network 1/2: 3/4 log(3/2) + 1/4 log(1/2). At temperature 2, logits are halved first, and 4 times as much.
    task, teacher, output = MultiLabel(), torch.tensor([[THIRD]]), torch.zeros(1, 1)
    wanted = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert task.distance(output, teacher, 1.0).item() == pytest.approx(wanted)
    assert task.distance(output, 2 * teacher, 2.0).item() == pytest.approx(4 * wanted)
    assert task.distance(teacher, teacher, 1.0).item() == 0


def test_a_run(tmp_path):
    inputs, labels = data()
    subnet = whole_run("multi_label", mlp(), {"train": (inputs, labels), "val": data(40, seed=1)}, tmp_path)
    assert subnet.origin.classes == 3
    found = ss.predict(subnet, inputs[:4], network=mlp())
    assert torch.allclose(found.probabilities, subnet.on(mlp()).eval()(inputs[:4]).sigmoid())
    assert torch.equal(found.labels, found.probabilities >= 0.5)
    assert found.rows()[0] == {"labels": found.labels[0].nonzero().view(-1).tolist()}
    assert len(found.plain()[0]["probabilities"]) == 3


def test_items_and_names():
    inputs, labels = data()
    subnet = ss.extract(mlp(), Pairs(inputs, labels, ["a", "b", "c"]), "snip", task="multi_label", recipe=ss.Recipe(epochs=1))
    found = ss.predict(subnet, inputs[:1])
    assert found.rows() == [{"labels": [name for name, one in zip("abc", found.labels[0].tolist(), strict=True) if one]}]


def test_a_built_in_network_gets_its_outputs():
    images = torch.randint(0, 255, (40, 1, 8, 8), dtype=torch.uint8)
    labels = torch.stack([images[:, 0, 0, 0] > 128, images[:, 0, 0, 1] > 128], 1)  # bool
    subnet = ss.extract("small_conv", (images, labels), "snip", task="multi_label", recipe=ss.Recipe(epochs=1))
    assert subnet.network()(torch.zeros(1, 1, 8, 8)).shape == (1, 2)


def test_labels_that_are_refused():
    inputs, labels = data()
    wanted = r"given data: multi_label needs labels of 0 and 1 with shape \(N, labels\), got "
    refused("multi_label", (inputs, labels[:, 0]), wanted + r"int32 of shape \(N\)", mlp())
    refused("multi_label", (inputs, labels * 2), wanted + "values from 0 to 2", mlp())
    refused("multi_label", (inputs, labels * 0.5), wanted + r"values from 0 to 0\.5", mlp())
    refused("multi_label", Pairs(inputs, labels - 1), wanted + "values from -1 to 0", mlp())
    refused("multi_label", {"x": inputs}, wanted + "none", mlp())
    shape = r"Sequential must return logits of shape \(batch, labels\) = \(2, 3\), got \(2, 5\)"
    refused("multi_label", (inputs, labels), shape, mlp(classes=5))
    parts = {"train": (inputs, labels), "val": (inputs + 1, labels[:, :2])}
    refused("multi_label", parts, r"given data \(validation\): there are 2 labels, but 3 in training", mlp())
