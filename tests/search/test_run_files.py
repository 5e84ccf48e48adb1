"""Files of trials on disk: counted, and removed where nothing needs them."""

import json
import shutil
from pathlib import Path

import optuna
import pytest
from filelock import FileLock
from optuna.trial import TrialState, create_trial

from subnet_search.core.errors import RunError, UserError
from subnet_search.extraction.config_file import check
from subnet_search.extraction.run_folder import LOCK
from subnet_search.search.engine.artifact_store import uploaded
from subnet_search.search.queries.study_summary import summarise_study
from subnet_search.search.spec.study_spec import StudySpec, spec_of
from subnet_search.search.storage.connect import open_storage
from subnet_search.search.storage.run_files import kept_trials, run_folders
from subnet_search.search.storage.study_folder import folder_of
from subnet_search.search.studies import admin
from subnet_search.search.studies.admin import prune_files
from subnet_search.search.studies.launcher import prepare_study, run_study

URL = "sqlite:///s.db"
RUN = {
    "network": "lenet_300_100",
    "data": {"name": "digits", "limit": 200},
    "extractor": "random",
    "recipe": {"epochs": 1, "threads": 1, "device": "cpu"},
}
SPACE = {"recipe.lr": {"float": [0.01, 1], "log": True}}
COMPLETE, FAIL, RUNNING, WAITING, PRUNED = (
    TrialState.COMPLETE,
    TrialState.FAIL,
    TrialState.RUNNING,
    TrialState.WAITING,
    TrialState.PRUNED,
)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def spec(**more):
    return check(StudySpec, {"name": "toy", "run": RUN, "space": SPACE, "trials": 3, "sampler": "random", **more})


def study_of(*trials, **more):
    """A study with trials of a state, value and attributes, each with a run folder of 1,000 bytes."""
    study = prepare_study(spec(**more), URL)
    for number, (state, value, attrs) in enumerate(trials):
        folder = folder_of(study) / f"{number:04d}"
        (folder / "checkpoint").mkdir(parents=True)
        (folder / "log.txt").write_bytes(b"x" * 400)
        (folder / "checkpoint" / "state.safetensors").write_bytes(b"x" * 600)
        values = None if value is None else [value] if isinstance(value, float) else value
        there = {"folder": str(folder), "worker": {}, **attrs}
        study.add_trial(create_trial(state=state, values=values, user_attrs=there))
    return study


def left(study):
    return sorted(int(path.name) for path in folder_of(study).iterdir())


MIXED = (
    (COMPLETE, 0.5, {}),
    (COMPLETE, 0.9, {}),
    (FAIL, None, {}),
    (RUNNING, None, {}),
    (WAITING, None, {}),
    (PRUNED, 0.95, {}),
    (COMPLETE, 0.7, {}),
    (COMPLETE, 0.8, {"repeats": 1}),
)


@pytest.mark.parametrize(("keep", "best"), [(1, [1, 7]), (2, [1, 6, 7]), (9, [0, 1, 6, 7])])
def test_the_best_with_its_repeats_and_all_unfinished_trials_keep_their_files(keep, best):
    study = study_of(*MIXED)
    planned = prune_files(study, keep, dry_run=True)
    assert left(study) == list(range(8))
    assert prune_files(study, keep) == planned
    assert left(study) == sorted([*best, 3, 4])
    assert planned.trials == tuple(left(study))
    assert planned.kept == {"folders": len(best) + 2, "bytes": 1000 * (len(best) + 2)}
    assert planned.deleted == {"folders": 6 - len(best), "bytes": 1000 * (6 - len(best))}
    assert prune_files(study, keep).deleted == {"folders": 0, "bytes": 0}
    assert len(study.trials) == 8


def test_the_summary_has_what_is_on_disk():
    study = study_of(*MIXED)
    folder, thousand = str(folder_of(study)), {"folders": 4, "bytes": 4000}
    assert summarise_study(study)["files"] == {"folder": folder, "kept": thousand, "not_kept": thousand}
    shutil.rmtree(folder)
    assert summarise_study(study)["files"] is None
    assert summarise_study(optuna.create_study())["files"] is None


def test_the_whole_front_is_kept():
    values = ([0.9, 0.5], [0.8, 0.2], [0.7, 0.4], [0.5, 0.1])
    study = study_of(*((COMPLETE, pair, {}) for pair in values), objective=["val_accuracy", "density"])
    prune_files(study)
    assert left(study) == [0, 1, 3]


def test_a_comparison_keeps_all_seeds_of_its_best_arm():
    cells = [("snip", 0, 0.6), ("rigl", 0, 0.7), ("dense", 0, 0.95), ("snip", 1, 0.8), ("rigl", 1, 0.5)]
    attrs = [
        {"cell": {"method": method, "density": 1.0 if method == "dense" else 0.1, "seed": seed, "values": {}}}
        for method, seed, _ in cells
    ]
    study = study_of(*((COMPLETE, cell[2], one) for cell, one in zip(cells, attrs, strict=True)))
    assert kept_trials(study) == {0, 3}  # dense has one seed, others two
    assert kept_trials(study, 2) == {0, 1, 3, 4}
    dense = {"cell": {"arm": "dense", "density": 1.0, "seed": 1, "values": {}}}  # the key of earlier versions
    study.add_trial(create_trial(state=COMPLETE, values=[0.9], user_attrs=dense))
    assert kept_trials(study) == {0, 2, 3, 5}  # the best is dense, so the best sparse row is kept too


def test_folders_that_are_not_the_studys_are_left_alone(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    other = Path("runs/trials/other-1/0000")
    other.mkdir(parents=True)
    study = study_of(*MIXED[:3], (COMPLETE, 0.1, {"folder": str(other)}), (FAIL, None, {"folder": str(elsewhere)}))
    shutil.rmtree(folder_of(study) / "0000")
    (folder_of(study) / "0000").symlink_to(elsewhere)
    (folder_of(study) / "0042").mkdir()  # of no trial
    with FileLock(folder_of(study) / "0002" / LOCK):  # of a worker that lost its trial
        prune_files(study)
    assert left(study) == [0, 1, 2, 3, 4, 42]
    prune_files(study)
    assert (left(study), run_folders(study).keys()) == ([0, 1, 3, 4, 42], {1})
    assert elsewhere.is_dir()
    assert other.is_dir()
    assert admin.RUN_LOCK == LOCK


def test_a_copied_study_does_not_remove_files_of_the_original():
    study = study_of(*MIXED[:3])
    optuna.copy_study(from_study_name="toy", from_storage=URL, to_storage=URL, to_study_name="copy")
    copied = optuna.load_study(study_name="copy", storage=open_storage(URL))
    assert summarise_study(copied)["files"] is None
    assert prune_files(copied).deleted == {"folders": 0, "bytes": 0}
    assert left(study) == [0, 1, 2]


def test_what_cannot_be_pruned_is_one_line(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="was not created by subnet-search, so it has no run folders"):
        prune_files(optuna.create_study())
    study = study_of(*MIXED[:3])
    with pytest.raises(UserError, match="keep must be 1 or more, got 0"):
        prune_files(study, 0)
    monkeypatch.setattr(shutil, "rmtree", lambda path: Path(path, "log.txt", "x").stat())
    with pytest.raises(RunError, match=r"cannot delete runs/trials/toy-.*/0000/log.txt/x: Not a directory; the other"):
        prune_files(study)
    folder_of(study).rename(tmp_path / "moved")
    folder_of(study).symlink_to(tmp_path / "moved")
    with pytest.raises(UserError, match="is a symbolic link"):
        prune_files(study)


def test_artifacts_are_removed_with_the_folders_and_the_study_continues():
    with_store = {"artifacts": "kept", "trials": 3}
    study = run_study(spec(**with_store), storage=URL)
    best = study.best_trial.number
    stored = uploaded(study, study.trials)
    pruned = prune_files(study)
    assert pruned.artifacts == sum(len(names) for number, names in stored.items() if number != best)
    assert sorted(path.name for path in Path("kept").iterdir()) == sorted(stored[best])
    again = optuna.load_study(study_name="toy", storage=open_storage(URL))
    assert {number for number, names in uploaded(again, again.trials).items() if names} == {best}
    assert prune_files(again).artifacts == 0
    shutil.rmtree("runs/trials")  # pruned on another machine: folders are elsewhere, and the store is shared
    assert prune_files(again).kept == {"folders": 0, "bytes": 0}
    continued = run_study(spec(**with_store | {"trials": 5}), storage=URL)
    undisturbed = run_study(spec(trials=5), storage="sqlite:///other.db")
    assert [(t.params, t.values, t.user_attrs["sha256"]) for t in continued.trials] == [
        (t.params, t.values, t.user_attrs["sha256"]) for t in undisturbed.trials
    ]


@pytest.mark.slow
def test_an_interrupted_study_of_an_earlier_version_continues_to_the_same_trials(monkeypatch):
    golden = Path(__file__).parents[1] / "golden" / "format2"
    shutil.copytree(golden / "study" / "runs", "runs")
    monkeypatch.syspath_prepend(golden)
    url = "sqlite:///runs/studies.db"
    study = optuna.load_study(study_name="golden", storage=open_storage(url))
    assert prune_files(study).trials == (0, 8)  # the best, and one that waits with a checkpoint
    done = run_study(spec_of(study), storage=url, allow_imports=["tiny_network"])
    expected = json.loads((golden / "study" / "undisturbed.json").read_text())
    assert [(t.params, t.values, t.user_attrs.get("sha256")) for t in done.trials] == [
        (one["params"], one["values"], one["sha256"]) for one in expected
    ]
