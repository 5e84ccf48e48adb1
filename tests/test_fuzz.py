"""A share of the mutated inputs of `fuzz.py`; its command runs as many as one likes."""

import pytest
from fuzz import TARGETS, attempt

COUNTS = {"run": 50, "override": 120, "study": 40, "filter": 20, "file": 60, "data": 60}


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_inputs_are_taken_as_they_are_meant_or_refused_in_one_line(name, tmp_path):
    said = [attempt(name, seed, tmp_path) for seed in range(COUNTS.get(name, 40))]
    assert any(said)  # some are refused,
    assert name in ("file", "data") or not all(said)  # and some are taken: the rest of their reading is tried too
