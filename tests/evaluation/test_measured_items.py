"""Metrics from items, intervals and paired tests: by hand, and the items of every task give its leading metric."""

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import nn

from subnet_search.evaluation.accuracy import calibration, quality
from subnet_search.evaluation.items import Items, interval, mcnemar, ratio
from subnet_search.tasks import create_task


def scores(values) -> Items:
    values = torch.as_tensor(values, dtype=torch.float64)
    return Items(torch.stack([values, torch.ones_like(values)], 1), ratio)


def test_mcnemar_by_hand():
    this = torch.tensor([True, True, True, True, False, False, False, False, False])
    other = torch.tensor([True, True, True, False, True, True, True, True, True])
    found = mcnemar(this, other)
    assert (found["only_this"], found["only_other"]) == (1, 5)
    # Of 6 items that one alone has right, at most 1 or at least 5: 2 (1 + 6) / 2^6.
    assert found["p_value"] == pytest.approx(14 / 64)
    assert mcnemar(other, this)["p_value"] == pytest.approx(14 / 64)
    assert mcnemar(this, this)["p_value"] == 1


def test_the_interval_of_a_fraction_is_that_of_the_binomial_distribution():
    found = interval(scores([1.0] * 80 + [0.0] * 20))
    # Resampled items that are right are binomial: 100 draws of 0.8.
    assert found["low"] == pytest.approx(binom.ppf(0.025, 100, 0.8) / 100, abs=0.0101)
    assert found["high"] == pytest.approx(binom.ppf(0.975, 100, 0.8) / 100, abs=0.0101)
    assert found == interval(scores([1.0] * 80 + [0.0] * 20))
    assert interval(scores(np.linspace(0, 1, 50))) != interval(scores(np.linspace(0, 1, 50)), seed=1)
    same = interval(scores([2.0] * 5))
    assert (same["low"], same["high"]) == (2, 2)


def test_the_interval_of_a_difference_is_paired():
    values = np.linspace(0, 1, 50)
    shifted = interval(scores(values + 0.1), scores(values))  # the same difference for all items
    assert (shifted["low"], shifted["high"]) == pytest.approx((0.1, 0.1))
    assert shifted["p_value"] == 0
    assert interval(scores(values), scores(values))["p_value"] == 1
    mixed = interval(scores([1.0, 0.0] * 20), scores([0.0, 1.0] * 20))
    assert mixed["low"] < 0 < mixed["high"]
    assert mixed["p_value"] > 0.5


def test_a_metric_that_is_no_mean():
    errors = torch.tensor([1.0, 9.0], dtype=torch.float64)
    items = Items(torch.stack([errors, torch.ones(2)], 1), lambda sums: ratio(sums) ** 0.5)
    assert items.resampled(np.array([[0, 0], [1, 1], [0, 1]])) == pytest.approx([1, 3, 5**0.5])
    found = interval(items)
    assert (found["low"], found["high"]) == (1, 3)


def test_top_five_and_calibration_by_hand():
    # Logits rank the classes 6, 5, ... 0: of the labels 6, 2 and 1 the first two are among the five most probable.
    logits = torch.arange(7.0).repeat(3, 1)
    assert quality(logits, torch.tensor([6, 2, 1])).top5_accuracy == pytest.approx(2 / 3)
    assert quality(logits[:, :5], torch.tensor([4, 2, 1])).top5_accuracy is None
    few = create_task("classification").measure(nn.Identity(), [(logits[:, :5], torch.tensor([4, 2, 1]))])
    assert "top5_accuracy" not in few
    # Confidences 0.9, 0.9, 0.9 and 0.55; right are two of the first three. Bins of a fifth.
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.55, 0.45]])
    labels = torch.tensor([0, 1, 1, 1])
    rows = calibration(p.log(), labels, bins=5)
    assert [(row["above"], row["up_to"], row["count"]) for row in rows] == [(0.4, 0.6, 1), (0.8, 1, 3)]
    assert [row["confidence"] for row in rows] == pytest.approx([0.55, 0.9])
    assert [row["accuracy"] for row in rows] == pytest.approx([0, 2 / 3])
    gap = sum(abs(row["confidence"] - row["accuracy"]) * row["count"] for row in rows) / 4
    assert quality(p.log(), labels, bins=5).ece == pytest.approx(gap) == (0.55 + 0.7) / 4


RNG = torch.Generator().manual_seed(0)
CASES = {
    "classification": (torch.randn(30, 7, generator=RNG), torch.randint(0, 7, (30,), generator=RNG)),
    "regression": (torch.randn(30, 2, generator=RNG), torch.randn(30, 2, generator=RNG)),
    "multi_label": (torch.randn(30, 4, generator=RNG), torch.randint(0, 2, (30, 4), generator=RNG)),
    "segmentation": (torch.randn(30, 3, 4, 4, generator=RNG), torch.randint(0, 3, (30, 4, 4), generator=RNG)),
}


@pytest.mark.parametrize("name", CASES)
def test_items_give_the_leading_metric(name):
    outputs, labels = CASES[name]
    settings = {"name": name, **({"ignore_index": 2} if name == "segmentation" else {})}
    task = create_task(settings)
    batches = [(outputs[:20], labels[:20]), (outputs[20:], labels[20:])]
    metrics, items = task.measure_items(nn.Identity(), batches)
    assert len(items.rows) == 30
    assert items.resampled(np.arange(30)) == pytest.approx(metrics[task.leading], rel=1e-6)
    plain = task.measure(nn.Identity(), batches)
    assert {key: metrics[key] for key in plain} == plain
    half = task.measure(nn.Identity(), [(outputs[10:20], labels[10:20])])
    assert items.resampled(np.arange(10, 20)) == pytest.approx(half[task.leading], rel=1e-6)


def test_items_of_a_language_model():
    task = create_task("language_modeling")
    logits = torch.randn(5, 6, 11, generator=RNG)
    targets = torch.randint(0, 11, (5, 6), generator=RNG)
    targets[0, 2:] = -100  # items of different lengths count by their tokens
    batches = [(torch.zeros(5, 6, dtype=torch.long), targets)]
    metrics, items = task.measure_items(lambda _: logits, batches)
    assert items.rows[:, 1].tolist() == [2, 6, 6, 6, 6]
    assert items.resampled(np.arange(5)) == pytest.approx(metrics["loss"])
    assert metrics == pytest.approx(task.measure(lambda _: logits, batches))
