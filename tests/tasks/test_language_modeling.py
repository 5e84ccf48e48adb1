"""Language modeling: what a batch may be, loss and metrics by hand, tokens that do not count, runs."""

import math

import numpy as np
import pytest
import torch
from task_runs import refused, whole_run
from torch import nn
from torch.utils.data import Dataset

import subnet_search as ss
from subnet_search.core.errors import RunError
from subnet_search.tasks import LanguageModeling, create_task

THIRD = math.log(3)  # the logit, against 0, of 3/4


class Net(nn.Module):
    """Called as Hugging Face's models are, or with one tensor."""

    def __init__(self, vocabulary=11):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(vocabulary, 8)
        self.hidden = nn.Linear(8, 32)
        self.out = nn.Linear(32, vocabulary)

    def forward(self, input_ids, attention_mask=None):
        return {"logits": self.out(self.hidden(self.embedding(input_ids)).relu())}


class Rows(Dataset):
    """Items as Hugging Face's data sets have them: lists of numbers."""

    def __init__(self, tokens, **more):
        self.columns = {"input_ids": tokens, **more}

    def __len__(self):
        return len(self.columns["input_ids"])

    def __getitem__(self, index):
        return {name: rows[index].tolist() for name, rows in self.columns.items()}


def tokens(count=60, length=9, vocabulary=11, start=0):
    """Each token is the one before, plus 1."""
    return (torch.arange(start, start + count)[:, None] + torch.arange(length)) % vocabulary


def test_what_a_batch_may_be():
    row, task = torch.tensor([[3, 4, 5]]), LanguageModeling()
    ignored = -100
    inputs, targets = task.split(row)
    assert (inputs.tolist(), targets.tolist()) == ([[3, 4]], [[4, 5]])
    inputs, targets = task.split((row, row + 1))
    assert (inputs.tolist(), targets.tolist()) == ([[3, 4, 5]], [[4, 5, 6]])
    inputs, targets = task.split({"input_ids": row, "labels": torch.tensor([[3, ignored, 5]])})
    assert (list(inputs), targets.tolist()) == (["input_ids"], [[ignored, 5, ignored]])
    inputs, targets = task.split({"input_ids": row, "attention_mask": torch.tensor([[1, 1, 0]])})
    assert (list(inputs), targets.tolist()) == (["input_ids", "attention_mask"], [[4, ignored, ignored]])
    assert task.split({"input_ids": row})[1].tolist() == [[4, 5, ignored]]
    assert task.split(row.to(torch.uint8))[0].dtype == torch.long


def test_loss_and_metrics_by_hand():
    # Two sequences of two tokens, of a vocabulary of two. The probabilities of the right tokens are 3/4, 1/4 and 3/4, and the
    # last token does not count.
    logits = torch.tensor([[[0.0, THIRD], [0.0, THIRD]], [[THIRD, 0.0], [0.0, 0.0]]])
    targets = torch.tensor([[1, 0], [0, -100]])
    wanted = -(2 * math.log(0.75) + math.log(0.25)) / 3
    task = create_task({"name": "language_modeling", "bytes_per_token": 4})
    assert task.criterion(logits, targets).item() == pytest.approx(wanted)
    metrics = {"loss": wanted, "perplexity": math.exp(wanted), "bits_per_byte": wanted / math.log(2) / 4}

    def network(inputs):  # which sequences of the two these are
        return logits[inputs[:, 0]]

    rows = torch.tensor([[0, 0], [1, 0]])
    for parts in ([(rows, targets)], [(rows[:1], targets[:1]), (rows[1:], targets[1:])]):
        assert task.measure(network, parts) == pytest.approx(metrics)  # not the mean of the batches' means
    with pytest.raises(RunError, match="no token that counts: all targets are -100"):
        task.measure(network, [(rows, torch.full_like(targets, -100))])
    with pytest.raises(RunError, match="token 8 is outside the vocabulary, 0 to 1"):
        task.measure(network, [(rows, targets + 7)])
    assert task.criterion(logits, torch.full_like(targets, -100)).item() == 0


def test_distance_by_hand():
    teacher, output = torch.tensor([[[0.0, THIRD], [0.0, 0.0]]]), torch.zeros(1, 2, 2)
    wanted = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    assert LanguageModeling().distance(output, {"logits": teacher}, 1.0).item() == pytest.approx(wanted)


@pytest.mark.parametrize("kind", ["tokens", "pair", "mapping", "items"])
def test_a_run(kind, tmp_path):
    train, val = tokens(), tokens(22, start=100)
    parts = {
        "tokens": (train, val),
        "pair": tuple((part[:, :-1], part[:, 1:]) for part in (train, val)),
        "mapping": tuple({"input_ids": p, "attention_mask": torch.ones_like(p), "labels": p} for p in (train, val)),
        "items": (Rows(train, attention_mask=torch.ones_like(train)), Rows(val, attention_mask=torch.ones_like(val))),
    }[kind]
    data = dict(zip(("train", "val"), parts, strict=True))
    recipe = {"lr": 0.02, "epochs": 20, "optimizer": "adam"}
    subnet = whole_run("language_modeling", Net(), data, tmp_path, stop=7, recipe=recipe)
    assert subnet.metrics["val_perplexity"] < 2  # of 11 tokens, each is a function of the one before
    assert subnet.origin.classes == 11
    inputs = tokens(3, 4)
    if kind in ("mapping", "items"):
        inputs = {"input_ids": inputs, "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])}
        with pytest.raises(ss.UserError, match="the inputs are one tensor; the subnetwork takes input_ids, attention_mask"):
            ss.predict(subnet, inputs["input_ids"], network=Net())
    found = ss.predict(subnet, inputs, network=Net())  # of another length than in training
    assert found.tokens.tolist() == ([4, 3, 3] if kind in ("mapping", "items") else [4, 5, 6])
    assert found.probabilities.shape == (3, 11)
    assert found.rows()[0]["token"] == 4


def test_unsigned_tokens_of_numpy():
    recipe = ss.Recipe(epochs=1, batch_size=8)
    for kind in (np.uint16, np.uint8):
        subnet = ss.extract(Net(), tokens().numpy().astype(kind), "snip", task="language_modeling", recipe=recipe)
        assert subnet.metrics["val_loss"] < 3
    subnet = ss.extract(
        Net(30), tokens(), "snip", task={"name": "language_modeling", "vocabulary": 20}, recipe=ss.Recipe(epochs=1)
    )
    assert (subnet.origin.classes, ss.predict(subnet, tokens(2)).probabilities.shape) == (20, (2, 20))


def test_tokens_and_outputs_that_are_refused():
    task, found = "language_modeling", tokens()
    wanted = r"given data: language_modeling needs tokens \(N, T \+ 1\), a pair .*, got "
    refused(task, found.float(), wanted + r"\(1, 9\) float32", Net())
    refused(task, {"ids": found}, wanted + r"ids \(1, 9\) int64", Net())
    refused(task, (found[:, 0], found), wanted + r"int64 of shape \(N\)", Net())
    refused(task, (found, found.float()), wanted + r"float32 of shape \(N, 9\)", Net())
    refused(task, found - 1, "token -1 is below 0; targets that do not count are -100", Net())
    refused(task, found[:, :1], "needs at least two tokens in each item", Net())
    short = {"name": task, "vocabulary": 7}
    refused(short, found, "token 10 is outside the vocabulary, 0 to 6", Net())
    refused(task, found, "Net has 5 outputs for each token, but the vocabulary has 11", Narrow())
    shape = r"Sequential must return logits of shape \(batch, tokens, vocabulary\) = \(2, 8, 11\), got \(2, 11\)"
    refused(task, found, shape, nn.Sequential(nn.Embedding(11, 4), nn.Flatten(), nn.Linear(32, 11)))
    parts = {"train": found, "val": found + 5}
    refused(task, parts, r"given data \(validation\): token 15 is outside the vocabulary, 0 to 10", Net())
    with pytest.raises(ss.UserError, match="data must be a name, a pair"):
        ss.extract(Net(), found)  # classification needs labels


def Narrow():
    found = Net()
    found.out = nn.Linear(32, 5)
    return found
