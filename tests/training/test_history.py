"""What the history of a run holds beside metrics: changes of the topology, and histograms of the scores."""

import json

import pytest
import torch

from subnet_search.core.errors import Interrupted
from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.extract import run
from subnet_search.topology.masks import Masks, pack
from subnet_search.training.history import BINS, _histogram, changes

RUN = {
    "network": "lenet_300_100",
    "data": {"name": "digits", "limit": 200},
    "recipe": {"epochs": 3, "batch_size": 25, "threads": 1, "device": "cpu"},
}


def bits(text):
    return torch.tensor([letter == "1" for letter in text])


def test_changes_of_eight_units():
    before, now = bits("11110000"), bits("11000111")  # of four kept, two are dropped; three are grown
    assert changes(Masks({"a": now}), {"a": pack(before)}) == {"dropped": 0.5, "grown": 0.75}
    assert changes(Masks({"a": now}), {"a": pack(now)}) == {"dropped": 0.0, "grown": 0.0}
    assert changes(Masks({"a": now}), {}) == {}


def test_a_histogram():
    found = _histogram([torch.arange(12.0), torch.arange(12.0, 24.0).reshape(3, 4)])
    assert (found["low"], found["high"], found["counts"]) == (0.0, 23.0, [1] * BINS)
    far = _histogram([torch.cat([torch.linspace(-1, 1, 1000), torch.tensor([1e3])])])
    assert far["high"] < 200  # the last bin also holds what is beyond it
    assert sum(far["counts"]) == 1001
    assert far["counts"][-1] == 1
    same = _histogram([torch.full((5,), 2.0)])
    assert same["low"] < 2.0 < same["high"]
    assert sum(same["counts"]) == 5
    assert _histogram([torch.tensor([float("inf")])]) is None
    assert _histogram([]) is None


@pytest.mark.parametrize(("method", "scores"), [({"name": "redraw", "every": 1}, "weights"), ({"name": "gumbel"}, "relevance")])
def test_a_run_that_was_interrupted_has_the_same_history(tmp_path, method, scores):
    settings = RunConfig.model_validate({**RUN, "extractor": {**method, "density": 0.2}})

    def history(folder):
        lines = [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        return [{key: line[key] for key in ("dropped", "grown", "scores")} for line in lines]

    run(settings, tmp_path / "whole", progress=False)
    steps = iter(range(100))
    with pytest.raises(Interrupted):
        run(settings, tmp_path / "parts", progress=False, should_stop=lambda: next(steps) == 8)  # in the second epoch
    run(settings, tmp_path / "parts", resume=True, progress=False)
    whole = history("whole")
    assert history("parts") == whole
    assert [row["scores"]["of"] for row in whole] == [scores] * 3
    assert whole[0]["dropped"] is None
    assert 0 < whole[1]["dropped"] == pytest.approx(whole[1]["grown"])  # the density stays the same
