"""A study begun by version 0.1.0 before its modules moved to folders by layer: it is read, and goes on to the same trials.

`golden/format2/study` was written at commit 6666b45, with one worker: three trials are complete, one failed, four were
stopped by the pruner or by a constraint, and trial 8 waits with a checkpoint after two of its four epochs.
`undisturbed.json` has the trials of the same study without an interruption, one of them a repeat of the best.
(Its database was made smaller by SQLite's VACUUM.)
"""

import json
import shutil
from pathlib import Path

import pytest

from subnet_search.cli import main

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parents[1] / "golden" / "format2"
STUDY = GOLDEN / "study"
EXPECTED = json.loads((STUDY / "undisturbed.json").read_text())
FOLDER = Path("runs/trials/golden-1aec3573")
STATES = {"COMPLETE": 3, "PRUNED": 4, "FAIL": 1, "WAITING": 1}
ALLOW = ("--allow-import", "tiny_network")


@pytest.fixture(autouse=True)
def in_a_folder_with_the_study(tmp_path, monkeypatch):
    shutil.copytree(STUDY / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(GOLDEN)
    monkeypatch.delenv("SUBNET_SEARCH_STORAGE", raising=False)


def command(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main(["study", *map(str, words)])
    out, err = capsys.readouterr()
    assert ended.value.code == 0, err
    return out


def from_json(capsys, *words):
    return json.loads(command(capsys, *words, "--json"))


def trials(capsys):
    """Every trial by what the two codes agree on."""
    rows = from_json(capsys, "trials", "golden")
    return [{key: row[key] for key in ("number", "state", "values", "params", "sha256")} for row in rows]


def test_it_is_read_before_it_goes_on(capsys):
    (listed,) = from_json(capsys, "list")
    assert listed["states"] == from_json(capsys, "show", "golden")["states"] == STATES
    best = from_json(capsys, "best", "golden")
    assert (best["number"], best["values"]) == (0, [0.7])
    assert trials(capsys)[:8] == EXPECTED[:8]
    waiting = from_json(capsys, "trial", "golden", 8)
    assert (waiting["state"], waiting["params"]) == ("WAITING", EXPECTED[8]["params"])
    assert [one["why"] for one in waiting["interruptions"]] == ["interrupted"]
    failed = from_json(capsys, "trial", "golden", 1)
    assert failed["reason"] == "a score is not a number at step 4: try a lower learning rate"
    table = command(capsys, "trials", "golden", "--csv").splitlines()
    assert len(table) == 10
    assert "70.00 %" in command(capsys, "show", "golden")


def test_it_goes_on(capsys):
    finished = {path: path.read_bytes() for path in FOLDER.glob("000[0-7]/**/*") if path.is_file()}
    epochs = (FOLDER / "0008/metrics.jsonl").read_text()
    command(capsys, "run", "golden", *ALLOW)
    assert trials(capsys) == EXPECTED
    assert {path: path.read_bytes() for path in finished} == finished
    after = (FOLDER / "0008/metrics.jsonl").read_text()
    assert after.startswith(epochs)  # seconds too: those epochs were not trained again
    assert len(after.splitlines()) == 4
    assert from_json(capsys, "show", "golden")["status"].startswith("finished")
    assert from_json(capsys, "best", "golden")["number"] == 0
    again = from_json(capsys, "extract", "golden", "--best", "--out", "best", *ALLOW)
    assert (again["same"], again["sha256"]) == (True, EXPECTED[0]["sha256"])
    assert command(capsys, "retry", "golden", 1)


def test_it_is_exported_and_imported_and_goes_on(capsys):
    command(capsys, "export", "golden", "golden.db")
    shutil.rmtree("runs")
    command(capsys, "import", "golden.db")
    assert from_json(capsys, "show", "golden")["states"] == STATES
    command(capsys, "run", "golden", *ALLOW)
    assert trials(capsys) == EXPECTED
