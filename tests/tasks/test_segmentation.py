"""Segmentation: losses and metrics by hand, classes that do not occur, pixels that do not count, a run."""

import math
from itertools import pairwise

import pytest
import torch
from task_runs import refused, whole_run
from torch import nn
from torch.utils.data import Dataset

import subnet_search as ss
from subnet_search.core.errors import RunError
from subnet_search.tasks import Segmentation, create_task, load_data

THIRD = math.log(3)  # the logit, against 0, of 3/4


def net(classes=2):
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, classes, 1))


def data(count=40, seed=0, ignored=None):
    images = torch.randint(0, 256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    labels = (images[:, 0] > 128).to(torch.uint8)
    if ignored is not None:
        labels[:, 0] = ignored
    return images, labels


def task(**settings):
    return create_task({"name": "segmentation", **settings})


class Pairs(Dataset):
    def __init__(self, *pair):
        self.pair = pair

    def __len__(self):
        return len(self.pair[0])

    def __getitem__(self, index):
        return self.pair[0][index], self.pair[1][index]


# One image of 1x3 pixels: class 1 has probability 3/4, 3/4 and 1/4; the labels are 1, 0 and 255.
LOGITS = torch.tensor([[[[0.0, 0.0, THIRD]], [[THIRD, THIRD, 0.0]]]])
LABELS = torch.tensor([[[1, 0, 255]]], dtype=torch.uint8)


def test_losses_by_hand():
    entropy = -(math.log(0.75) + math.log(0.25)) / 2
    assert task(ignore_index=255).criterion(LOGITS, LABELS).item() == pytest.approx(entropy)
    # Class 0: p = 1/4 and 1/4, y = 0 and 1: 2 * 1/4 / (1/2 + 1). Class 1: p = 3/4 and 3/4, y = 1 and 0: 2 * 3/4 / (3/2 + 1).
    dice = 1 - (1 / 3 + 3 / 5) / 2
    assert task(ignore_index=255, loss="dice").criterion(LOGITS, LABELS).item() == pytest.approx(dice)
    assert task(ignore_index=255, loss="both").criterion(LOGITS, LABELS).item() == pytest.approx(entropy + dice)
    # Smoothed by 0.2, each label is 0.9 right and 0.1 wrong.
    smooth = -(0.9 * math.log(0.75) + 0.1 * math.log(0.25) + 0.9 * math.log(0.25) + 0.1 * math.log(0.75)) / 2
    assert task(ignore_index=255).criterion(LOGITS, LABELS, 0.2).item() == pytest.approx(smooth)
    nothing = task(ignore_index=255, loss="both").criterion(LOGITS, torch.full_like(LABELS, 255))
    assert nothing.isfinite()
    # A third class that this image has not: it has a share of the probability, and no Dice coefficient.
    three = torch.cat([LOGITS, torch.full_like(LOGITS[:, :1], -math.inf)], 1)
    assert task(ignore_index=255, loss="dice").criterion(three, LABELS).item() == pytest.approx(dice)


@pytest.mark.parametrize("kind", [lambda *pair: pair, Pairs])
def test_weights_by_hand(kind):
    images, labels = torch.zeros(2, 3, 1, 4, dtype=torch.uint8), torch.tensor([[[0, 0, 0, 1]], [[0, 0, 255, 255]]])
    loaded = load_data({"train": kind(images, labels), "val": kind(images + 1, labels)}, "segmentation")
    balanced = task(class_weights="balanced", ignore_index=255).fitted(loaded, "cpu")
    assert balanced.outputs(loaded) == 2
    assert balanced.weights(loaded).tolist() == pytest.approx([6 / 10, 6 / 2])  # of 6 pixels, 5 and 1
    loss = balanced.criterion(LOGITS, LABELS).item()
    assert loss == pytest.approx(-(3 * math.log(0.75) + 0.6 * math.log(0.25)) / 2)
    assert task(ignore_index=255, classes=4, class_weights="balanced").weights(loaded).tolist()[2:] == pytest.approx([3, 3])
    assert task().outputs(loaded) == 256
    with pytest.raises(ss.UserError, match=r"task\.class_weights has 3 weights, but there are 2 classes"):
        task(class_weights=[1, 2, 3], ignore_index=255).fitted(loaded, "cpu")


def test_metrics_by_hand():
    # Two images of 1x4 pixels with 4 outputs; class 3 is nowhere. Of 7 pixels that count, these are the labels
    # 0 0 1 1 | 0 2 1 - and the predictions 0 1 1 1 | 0 1 1 0: TP 2 3 0, FP 0 2 0, FN 1 0 1.
    labels = torch.tensor([[[0, 0, 1, 1]], [[0, 2, 1, 255]]])
    predicted = torch.tensor([[[0, 1, 1, 1]], [[0, 1, 1, 0]]])
    logits = nn.functional.one_hot(predicted, 4).permute(0, 3, 1, 2).float()
    wanted = {"miou": (2 / 3 + 3 / 5 + 0) / 3, "pixel_accuracy": 5 / 7, "dice": (4 / 5 + 6 / 8 + 0) / 3}
    for parts in ([0, 2], [0, 1, 2]):
        batches = [(logits[start:end], labels[start:end]) for start, end in pairwise(parts)]
        found = task(ignore_index=255).measure(lambda inputs: inputs, batches)
        assert found == pytest.approx(wanted)
    with pytest.raises(RunError, match="label 255 is outside the classes 0 to 3"):
        task().measure(lambda inputs: inputs, [(logits, labels)])


def test_distance_by_hand():
    # At two of three pixels network and teacher are equal; at the third the teacher gives 3/4, the network 1/2.
    output = LOGITS.clone()
    output[0, 1, 0, 0] = 0
    wanted = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 3
    assert task().distance(output, LOGITS, 1.0).item() == pytest.approx(wanted)
    assert task().distance(2 * output, 2 * LOGITS, 2.0).item() == pytest.approx(4 * wanted)


def test_a_run(tmp_path):
    settings = {"name": "segmentation", "ignore_index": 255, "loss": "both", "class_weights": "balanced"}
    subnet = whole_run(settings, net(), {"train": data(ignored=255), "val": data(16, 1, 255)}, tmp_path)
    assert subnet.origin.classes == 2
    images = data()[0][:3]
    found = ss.predict(subnet, images, network=net())
    assert (found.classes.shape, found.probabilities.shape) == ((3, 8, 8), (3, 2, 8, 8))
    assert torch.equal(found.classes, found.probabilities.argmax(1))
    [row] = ss.predict(subnet, images[:1], network=net()).rows()
    assert sum(row["pixels"].values()) == pytest.approx(1)
    assert row["pixels"]["1"] == pytest.approx(found.classes[0].float().mean().item())


def test_items_of_a_dataset_give_the_same_task():
    found = [load_data({"train": kind(*data()), "val": kind(*data(16, 1))}, "segmentation") for kind in (Pairs, lambda *a: a)]
    one, other = (task(class_weights="balanced").weights(loaded) for loaded in found)
    assert torch.equal(one, other)
    subnet = ss.extract(net(), Pairs(*data()), "snip", task="segmentation", recipe=ss.Recipe(epochs=1, batch_size=8))
    assert 0 <= subnet.metrics["val_miou"] <= 1


def test_an_output_as_torchvision_returns_it():
    class Out(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()

        def forward(self, images):
            return {"out": self.inner(images)}

    subnet = ss.extract(Out(), data(), "snip", task="segmentation", recipe=ss.Recipe(epochs=1, batch_size=8))
    assert ss.predict(subnet, data()[0][:2]).classes.shape == (2, 8, 8)


def test_labels_and_outputs_that_are_refused():
    images, labels = data()
    wanted = r"given data: segmentation needs labels that are class indices with shape \(N, height, width\), got "
    refused("segmentation", (images, labels.float()), wanted + r"float32 of shape \(N, 8, 8\)", net())
    refused("segmentation", (images, labels[:, None]), wanted + r"uint8 of shape \(N, 1, 8, 8\)", net())
    refused("segmentation", (images, labels[:, 0, 0]), wanted + r"uint8 of shape \(N\)", net())
    refused("segmentation", (images, labels.long() * 2**21), wanted + "label 2097152", net())
    below = r"label -1 is outside the classes 0 to 1: if such pixels do not count, set task\.ignore_index"
    refused("segmentation", (images, labels.long() * 2 - 1), below, net())
    above = {"name": "segmentation", "classes": 2}
    refused(above, (images, labels * 255), "label 255 is outside the classes 0 to 1: if such pixels", net())
    refused("segmentation", (images, labels * 4), "has 2 outputs for each pixel, but there are 5 classes", net())
    size = r"must return logits of shape \(batch, classes, height, width\) = \(2, 2, 4, 8\), got \(2, 2, 8, 8\)"
    refused("segmentation", (images, labels[:, :4]), size, net())
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    refused("segmentation", (images, labels), r"= \(2, 2, 8, 8\), got \(2, 2\)", flat)
    parts = {"train": (images, labels), "val": (images + 1, labels + 1)}
    refused("segmentation", parts, r"given data \(validation\): label 2 is outside the classes 0 to 1", net())
    same = {"name": "segmentation", "ignore_index": 1}
    refused(same, (images, labels * 0 + 1), "all pixels have the label 1, which does not count", net())


def test_a_bad_test_split_costs_no_training():
    images, labels = data()
    parts = {"train": (images, labels), "test": (images + 1, labels + 1)}
    subnet = ss.extract(net(), parts, "snip", task="segmentation", recipe=ss.Recipe(epochs=1, batch_size=8))
    assert subnet.metrics["test_miou"] is None
    assert subnet.metrics["test_error"] == "label 2 is outside the classes 0 to 1"
    assert Segmentation().leading == "miou"
