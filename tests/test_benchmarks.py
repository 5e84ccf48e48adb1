"""Kept results of benchmarks: what a file holds, and what counts as a regression."""

import json
import platform
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def tools(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import records
    import timing

    return records, timing


def rows(timing, slow, fast, value):
    took = timing.Times({"slow": slow, "fast": fast})
    return [
        {"network": "small", "batch": 1, "ms": f"{1000 * took['fast']:.0f}", "speedup": took.ratio("slow", "fast", "higher")},
        {"network": "small", "batch": 1, "bytes": "1,024", "target ": timing.verdict(value, "<=", 2)},
    ]


def test_a_ratio_has_its_quartiles_over_rounds(tools):
    _, timing = tools
    # Rounds of 2, 3, 4 and 5 times: quartiles 2.25 and 4.75, and medians of 3.5 and 1.
    ratio = timing.Times({"a": [2.0, 3.0, 4.0, 5.0], "b": [1.0] * 4}).ratio("a", "b", "lower")
    assert (ratio, ratio.low, ratio.high, str(ratio)) == (3.5, 2.25, 4.75, "3.50")


def test_a_result_is_kept_and_a_regression_is_marked(tools, tmp_path):
    records, timing = tools
    when = records.circumstances()
    slow, same, fast = [2.0, 2.2, 2.4], [2.1, 2.2, 2.5], [1.0, 1.0, 1.0]
    days = {"01": (slow, 2), "02": (same, 2), "03": ([1.5, 1.6, 1.7], 3)}
    said = {}
    for day, (times, value) in days.items():
        path = records.write("toy", {**when, "date": f"2026-01-{day} 10:00 UTC"}, rows(timing, times, fast, value), tmp_path)
        assert path.name == f"toy-2026-01-{day}-1000.json"
        said[day] = records.compare("toy", tmp_path)
    kept = json.loads((tmp_path / "toy-2026-01-01-1000.json").read_text())
    assert kept["rows"] == [
        {"network": "small", "batch": 1, "ms": 1000.0, "speedup": {"value": 2.2, "low": 2.0, "high": 2.4, "better": "higher"}},
        {"network": "small", "batch": 1, "bytes": 1024.0, "target ": "<= 2: met"},
    ]
    assert {"subnet-search", "torch", "python"} <= kept["versions"].keys()
    assert said == {
        "01": [],
        "02": [
            "toy: 2026-01-02 10:00 UTC against 2026-01-01 10:00 UTC",
            "  small, 1, speedup: 2.2 (2.1 to 2.5), before 2.2 (2 to 2.4)",
        ],
        "03": [
            "toy: 2026-01-03 10:00 UTC against 2026-01-02 10:00 UTC",
            "  small, 1, speedup: 1.6 (1.5 to 1.7), before 2.2 (2.1 to 2.5)  WORSE",
            "  small, 1, target: <= 2: missed, before <= 2: met  WORSE",
        ],
    }


@pytest.mark.parametrize("path", sorted(FOLDER.glob("results/*.json")), ids=lambda path: path.stem)
def test_the_results_in_the_repository_name_no_machine(path):
    kept = json.loads(path.read_text())
    assert path.name.startswith(f"{kept['benchmark']}-{kept['date'][:10]}")
    assert platform.node() not in json.dumps(kept["machine"]).split('"')
    assert "/" not in json.dumps(kept["machine"])
