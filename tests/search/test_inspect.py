"""Looking into studies: what is shown of them is what is in the storage, and questions that make no sense are one line."""

import csv
import io
import json
import subprocess
import sys
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from rich.console import Console

from subnet_search.cli import main
from subnet_search.cli.render import format, study_page
from subnet_search.core.errors import UserError
from subnet_search.core.task_metrics import CLASSIFICATION, TaskMetrics
from subnet_search.search.queries.importance import importance
from subnet_search.search.queries.queries import (
    find_trial,
    list_studies,
    need_best,
    ranked_row,
    trial_details,
    trial_row,
    trial_rows,
)
from subnet_search.search.queries.study_diff import diff_studies, differences
from subnet_search.search.queries.study_summary import summarise_study
from subnet_search.search.queries.trial_table import arrange, columns_of, find_column, flat_rows, select
from subnet_search.search.spec.metrics import MEASURES
from subnet_search.search.storage.connect import DEFAULT_STORAGE, open_storage, rdb
from subnet_search.search.storage.leases import is_dead, this_process
from subnet_search.search.storage.ranking import HIGHER_IS_BETTER, best_ranked, front
from subnet_search.search.storage.read import Snapshot
from subnet_search.search.storage.records import TrialRecord
from subnet_search.search.storage.write import insert_trials
from subnet_search.search.studies.progress import _ending as ending
from subnet_search.tasks import Classification

LR, METHOD = FloatDistribution(0.01, 1.0, log=True), CategoricalDistribution(["rigl", "gumbel"])
EVERY = FloatDistribution(1.0, 9.0)
SPEC = {
    "space": {"recipe.lr": {"float": [0.01, 1.0], "log": True}},
    "objective": ["val_accuracy"],
    "constraints": {"density": "<= 0.1"},
    "sampler": {"name": "tpe", "n_startup_trials": 8},
    "pruner": {"name": "none"},
    "trials": 6,
    "steps": None,
    "repeats": 3,
    "run": {"network": "lenet5", "data": {"name": "digits"}, "recipe": {"epochs": 3}},
}
GONE = {"host": "elsewhere", "pid": 7, "token": "x"}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SUBNET_SEARCH_STORAGE", raising=False)


def trial(state="COMPLETE", value=None, lr=0.1, beyond=None, reported=None, params=None, **attrs):
    """A trial as a worker leaves it. `beyond`: by how much it breaks the constraint."""
    params = {"recipe.lr": lr} if params is None else params
    known = {"recipe.lr": LR, "extractor": METHOD, "extractor.every @rigl": EVERY}
    return create_trial(
        state=TrialState[state],
        values=value if isinstance(value, list) else None if value is None else [value],
        params=params,
        distributions={name: known[name] for name in params},
        user_attrs=attrs,
        intermediate_values=reported or {},
        constraints={} if beyond is None else {"density": beyond},
    )


def study_of(*trials, name="toy", objective=("val_accuracy",), spec=SPEC, directions=None):
    storage = open_storage(DEFAULT_STORAGE, create=True)
    higher = {*HIGHER_IS_BETTER, *CLASSIFICATION.maximized}
    directions = directions or ["maximize" if one in higher else "minimize" for one in objective]
    study = optuna.create_study(storage=storage, study_name=name, directions=directions)
    if spec is not None:
        study.set_metric_names(list(objective))
        study.set_user_attr("spec", json.dumps({**spec, "name": name, "objective": list(objective)}))
    insert_trials(rdb(storage), study._study_id, trials)
    return study


def toy():
    """Seven trials: two good ones of which the luckier has the worse repeats, one of every other ending, two under way."""
    return study_of(
        trial(value=0.8, lr=0.1, beyond=0.0, density=0.1, val_accuracy=0.8, steps=30, seconds=2.0, seed=1),
        trial(value=0.9, lr=0.2, beyond=0.0, density=0.1, val_accuracy=0.9, steps=30, seconds=2.0, seed=2),
        trial(value=0.95, lr=0.3, beyond=0.2, density=0.3, val_accuracy=0.95, steps=30, seconds=2.0, seed=3),
        trial("PRUNED", 0.3, lr=0.4, density=0.1, val_accuracy=0.3, steps=10, reason="hyperband stopped it after epoch 1"),
        trial("FAIL", lr=0.5, reason="the loss is nan at step 12", log=["first", "last"], traceback="Traceback ..."),
        trial("FAIL", lr=0.6, reason="the loss is nan at step 15"),
        trial(
            "RUNNING",
            lr=0.7,
            reported={1: 0.4, 2: 0.5},
            worker=GONE,
            interruptions=[{"why": "gone", "host": "a", "pid": 1, "died": True}],
        ),
        trial(value=0.84, lr=0.1, beyond=0.0, density=0.1, val_accuracy=0.84, steps=30, repeats=0, seed=4),
        trial(value=0.82, lr=0.1, beyond=0.0, density=0.1, val_accuracy=0.82, steps=30, repeats=0, seed=5),
        trial(value=0.7, lr=0.2, beyond=0.0, density=0.1, val_accuracy=0.7, steps=30, repeats=1, seed=6),
        trial(value=0.71, lr=0.2, beyond=0.0, density=0.1, val_accuracy=0.71, steps=30, repeats=1, seed=7),
        trial(value=0.99, lr=0.9, beyond=0.0, density=0.1, val_accuracy=0.6, steps=500, known="older"),
    )


def said(capsys, *words, code=0):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert ended.value.code == code, err
    return out if code == 0 else err


def from_json(capsys, *words):
    return json.loads(said(capsys, *words, "--json"))


# What is the same in several places, so that torch need not be imported to look


def test_names_that_are_written_twice_are_the_same():
    ours = {name for name, measure in MEASURES.items() if measure.direction == "maximize"}
    assert ours == set(HIGHER_IS_BETTER)
    assert TaskMetrics.of(Classification()) == CLASSIFICATION


# Single trials


def test_a_snapshot_is_the_study_without_what_is_long():
    study = toy()
    seen = Snapshot(study)
    assert [t.number for t in seen.trials] == list(range(12))
    assert seen.get_trials()[4].user_attrs == {"reason": "the loss is nan at step 12"}
    assert [t.number for t in seen.get_trials(states=(TrialState.FAIL,))] == [4, 5]
    assert seen.best_trial.number == study.best_trial.number
    study.add_trial(trial(value=0.1))
    assert len(seen.trials) == 12


def test_rows_hold_the_keys_that_programs_count_on():
    row = trial_rows(toy())[2]
    wanted = {"number": 2, "state": "COMPLETE", "values": [0.95], "params": {"recipe.lr": 0.3}, "density": 0.3, "seconds": 2.0}
    assert wanted.items() <= row.items()
    assert {"sha256", "reason", "seed", "last", "steps"} <= row.keys()
    assert row["constraints"] == {"density": pytest.approx(0.2)}


def test_a_trial_that_is_not_there():
    study = toy()
    assert find_trial(study, 11).number == 11
    for number in (12, -1):
        with pytest.raises(UserError, match=f"the study 'toy' has no trial {number}: it has 12, numbered from 0"):
            find_trial(study, number)


def test_the_end_of_a_log_is_that_of_the_file_or_what_was_stored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("runs") / "trials" / "toy"
    study = study_of(
        trial("FAIL", folder=str(folder / "0"), log=["stored"]), trial("FAIL", folder=str(folder / "1"), log=["stored"])
    )
    (folder / "0").mkdir(parents=True)
    (folder / "0" / "log.txt").write_text("".join(f"line {n} of postgresql://me:hidden@host\n" for n in range(30)))
    with pytest.raises(UserError):
        open_storage("postgresql://me:hidden@127.0.0.1:1/none")
    lines = TrialRecord(find_trial(study, 0)).log_tail()
    assert lines == [f"line {n} of postgresql://me:***@host" for n in range(10, 30)]
    assert TrialRecord(find_trial(study, 1)).log_tail() == ["stored"]


def test_everything_about_a_trial():
    record = trial_details(toy(), 1)
    assert record["objectives"] == {"val_accuracy": 0.9}
    assert record["repeated"] == [
        {"number": 9, "state": "COMPLETE", "values": [0.7]},
        {"number": 10, "state": "COMPLETE", "values": [0.71]},
    ]
    failed = trial_details(optuna.load_study(study_name="toy", storage=DEFAULT_STORAGE), 4)
    assert (failed["reason"], failed["log"], failed["traceback"]) == (
        "the loss is nan at step 12",
        ["first", "last"],
        "Traceback ...",
    )


# The best


def test_the_best_is_so_over_its_seeds_and_within_the_constraints():
    (best,) = best_ranked(toy())
    assert ranked_row(best).items() >= {"number": 0, "seeds": 3}.items()
    assert ranked_row(best)["mean"] == [pytest.approx(0.82)]
    assert ranked_row(best)["spread"] == [[0.8, 0.84]]


def test_seeds_within_a_trial_are_its_spread():
    seeds = [{"seed": 1, "values": [0.5], "sha256": ""}, {"seed": 2, "values": [0.7], "sha256": ""}]
    (best,) = best_ranked(study_of(trial(value=0.6, seeds=seeds)))
    row = ranked_row(best)
    assert (row["seeds"], row["mean"], row["spread"]) == (2, [pytest.approx(0.6)], [[0.5, 0.7]])
    assert row["over_seeds"] == {}  # of an earlier version, which stored nothing else of each seed


def test_every_metric_of_the_best_is_over_the_same_seeds(capsys):
    """Trial 0 and its repeat: test accuracies 0.4 and 0.6, whose mean is 0.5 and whose deviation is the root of 0.02."""
    first = trial(value=0.7, val_accuracy=0.7, test_accuracy=0.4, steps=8)
    again = trial(value=0.9, val_accuracy=0.9, test_accuracy=0.6, steps=8, repeats=0)
    (best,) = best_ranked(study := study_of(first, again))
    row = ranked_row(best)
    assert row["test_accuracy"] == 0.4  # that of the trial itself
    assert row["over_seeds"]["test_accuracy"] == pytest.approx(
        {"mean": 0.5, "deviation": 0.02**0.5, "low": 0.4, "high": 0.6, "seeds": 2}
    )
    assert row["deviation"] == [pytest.approx(0.02**0.5)]
    study_page.best([row], ["val_accuracy"], len(study.trials))
    shown = " ".join(capsys.readouterr().out.split())
    assert "test accuracy 50.00 % ± 14.14 % (40.00 % to 60.00 %)" in shown
    assert "steps 8 " in shown
    study_page.best([{**row, "over_seeds": {}}], ["val_accuracy"], 2)
    assert "test accuracy 40.00 % (seed " in " ".join(capsys.readouterr().out.split())


def test_no_best_says_why():
    with pytest.raises(UserError, match="no trial of 'a' is complete yet"):
        need_best(study_of(trial("RUNNING"), name="a"))
    with pytest.raises(UserError, match=r"none of the 2 complete trials of 'b' satisfies its constraints \(density <= 0.1\)"):
        need_best(study_of(trial(value=0.9, beyond=0.1), trial(value=0.8, beyond=0.2), name="b"))
    study = study_of(trial(value=0.9, config={"seed": 3}), name="c")
    assert need_best(study)[0].user_attrs["config"] == {"seed": 3}


def test_studies_in_a_list():
    toy()
    study_of(name="empty")
    study_of(trial(value=[0.5, 0.1]), name="two", objective=("val_accuracy", "density"))
    rows = list_studies(open_storage(DEFAULT_STORAGE))
    assert [row["name"] for row in rows] == ["toy", "empty", "two"]
    assert rows[0]["states"] == {"RUNNING": 1, "COMPLETE": 8, "PRUNED": 1, "FAIL": 2}
    assert [row["best"] for row in rows] == [pytest.approx(0.82), None, None]


# A study on a page


def test_a_study_under_way():
    record = summarise_study(toy())
    assert record["status"] == "running"
    assert (record["budget"], record["finished"], record["repeated"], record["imported"]) == (6, 4, 4, 1)
    assert (record["steps"], record["seconds"]) == (220, 6.0)
    assert record["space"] == {"recipe.lr": "0.01 to 1, log"}
    assert (record["network"], record["data"], record["extractor"]) == ("lenet5", "digits", None)
    assert record["failures"] == {"the loss is nan at step 12 to 15": 2}
    assert record["stopped_early"] == {"hyperband stopped it after epoch 1": 1}
    assert record["interruptions"] == {"trials": 1, "times": 1, "died": 1, "ended": 0}
    assert record["workers"] == [{"trial": 6, "host": "elsewhere", "pid": 7, "gone": False, "last": 0.5}]
    assert [row["number"] for row in record["best"]] == [0]
    assert record["importance"]["note"] == "too few: it takes 10 complete trials, and there are 4"
    assert json.loads(json.dumps(record)) == record


def test_an_empty_study_a_finished_one_and_one_that_was_left():
    study = study_of(name="empty")
    study.set_user_attr("space", {"recipe.lr": "0.01 to 1, log"})
    empty = summarise_study(study)
    assert (empty["status"], empty["states"], empty["best"], empty["elapsed"]) == ("not started", {}, [], None)
    assert empty["space"] == {"recipe.lr": "0.01 to 1, log"}
    done = study_of(*[trial(value=0.1)] * 6, name="done")
    assert summarise_study(done)["status"] == "finished"
    left = study_of(trial(value=0.1), trial("WAITING"), name="left")
    assert summarise_study(left)["status"] == "interrupted (no live worker)"
    left.set_user_attr("stopped", True)
    assert summarise_study(left)["status"] == "stopped"


def test_a_worker_that_is_gone_is_said_to_be():
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    worker = replace(this_process("x"), pid=process.pid, started="0")
    process.communicate(b"")
    assert is_dead(worker)
    record = summarise_study(study_of(trial("RUNNING", worker=asdict(worker))))
    assert record["workers"][0]["gone"] is True
    assert record["status"] == "interrupted (no live worker)"


def test_versions_are_told_when_there_are_several():
    old, new = {"torch": "2.6", "python": "3.11"}, {"torch": "2.7", "python": "3.11"}
    study = study_of(trial(value=0.1, versions=old), trial(value=0.1, versions=new), trial(value=0.1, versions=new))
    assert summarise_study(study)["versions"] == {"torch": {"2.6": 1, "2.7": 2}}


def test_a_study_of_somebody_else_and_one_with_several_objectives():
    plain = optuna.create_study(storage=open_storage(DEFAULT_STORAGE, create=True), study_name="plain")
    plain.optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=3)
    record = summarise_study(plain)
    assert (record["objective"], record["budget"], record["sampler"]) == (["value"], None, None)
    assert record["best"][0]["values"] == [plain.best_value]
    two = study_of(
        trial(value=[0.9, 0.5]),
        trial(value=[0.8, 0.1]),
        trial(value=[0.7, 0.2]),
        name="two",
        objective=("val_accuracy", "density"),
    )
    assert [row["number"] for row in summarise_study(two)["best"]] == [0, 1]


def cell(method, seed, value):
    return trial(value=value, params={}, cell={"method": method, "density": 0.1, "seed": seed, "values": {}}, seed=seed)


def test_the_best_of_a_comparison_is_an_arm(capsys):
    lucky = [cell("snip", 0, 0.9), cell("snip", 1, 0.5)]
    study = study_of(*lucky, cell("random", 0, 0.8), cell("random", 1, 0.7), cell("dense", 0, 0.99), spec={**SPEC, "space": {}})
    record = summarise_study(study)
    assert [(row["params"]["method"], row["seeds"]) for row in record["rows"]] == [("dense", 1), ("random", 2), ("snip", 2)]
    (best,) = record["best"]  # of those with all seeds
    assert (best["number"], best["mean"], best["spread"]) == (2, [0.75], [[0.7, 0.8]])
    assert (record["status"], record["importance"]) == ("finished", None)
    note = importance(Snapshot(study))["note"]
    assert note.startswith("none, because a comparison does not sample")
    assert note.endswith("subnet-search study show toy")
    assert "random 0.1 2 75.00 % 70.00 % 80.00 %" in " ".join(said(capsys, "study", "show", "toy").split())


# Tables


def test_columns_filters_and_order():
    rows = flat_rows(Snapshot(toy()))
    columns = columns_of(rows)
    assert {"number", "state", "val_accuracy", "density", "recipe.lr", "reason", "feasible", "interruptions"} <= set(columns)
    assert "config" not in columns
    numbers = lambda *conditions: [row["number"] for row in select(rows, conditions, columns)]  # noqa: E731
    assert numbers("state=COMPLETE", "density<=0.1", "lr>0.1") == [1, 9, 10, 11]
    assert numbers("state=fail") == [4, 5]
    assert numbers("state != complete") == [3, 4, 5, 6]
    assert numbers("reason~NAN") == [4, 5]
    assert numbers("feasible=no") == [2]
    assert numbers("reason!=none", "number<5") == [3, 4]
    assert numbers("val_accuracy>0.9") == [2, 11]  # the objective's value, not what an import had measured
    by = lambda column, descending=False: [row["number"] for row in arrange(rows, column, descending)]  # noqa: E731
    assert by("val_accuracy", True)[:3] == [11, 2, 1]
    assert by("val_accuracy")[:3] == [3, 9, 10]
    assert by("val_accuracy")[-3:] == by("val_accuracy", True)[-3:] == [4, 5, 6]


def test_a_parameter_is_found_by_the_end_of_its_name():
    columns = ["number", "density", "extractor.density", "recipe.lr", "recipe.gamma", "extractor.gamma"]
    assert find_column("lr", columns) == "recipe.lr"
    assert find_column("density", columns) == "density"
    with pytest.raises(UserError, match=r"'gamma' is ambiguous: recipe\.gamma or extractor\.gamma"):
        find_column("gamma", columns)
    with pytest.raises(UserError, match="unknown column 'densty': did you mean 'density'"):
        find_column("densty", columns)


def test_conditional_parameters_share_a_column():
    study = study_of(
        trial(value=0.1, params={"extractor": "rigl", "extractor.every @rigl": 2.0}),
        trial(value=0.1, params={"extractor": "gumbel"}),
    )
    assert [row.get("extractor.every") for row in flat_rows(Snapshot(study))] == [2.0, None]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--filter", "density"], "a filter is a column, one of <= < >= > = != ~ (contains), and a value"),
        (["--filter", "densty<1"], "unknown column 'densty': did you mean 'density'"),
        (["--filter", "density<few"], "density is a number, got 'few'"),
        (["--sort", "accuracy"], "unknown column 'accuracy': did you mean 'val_accuracy'"),
        (["--columns", "number,nmber"], "unknown column 'nmber': did you mean 'number'"),
        (["--csv", "--json"], "use either --csv or --json"),
    ],
)
def test_wrong_questions_about_trials_are_one_line(capsys, words, message):
    toy()
    err = said(capsys, "study", "trials", "toy", *words, code=2)
    assert message in err
    assert err.count("\n") == 1


def test_trials_as_a_table_as_csv_and_as_json(capsys, monkeypatch):
    toy()
    command = ["study", "trials", "toy", "--filter", "state=COMPLETE", "--sort", "lr", "--desc", "--limit", "3"]
    assert [row["number"] for row in from_json(capsys, *command)] == [11, 2, 1]
    assert from_json(capsys, *command, "--columns", "lr,number")[1] == {"recipe.lr": 0.3, "number": 2}
    rows = list(csv.DictReader(io.StringIO(said(capsys, *command, "--csv"))))
    assert [row["recipe.lr"] for row in rows] == ["0.9", "0.3", "0.2"]
    assert rows[0]["reason"] == ""
    monkeypatch.setattr(format.console, "width", 60)
    lines = said(capsys, "study", "trials", "toy").splitlines()
    assert lines[0].split() == ["number", "state", "val_accuracy", "lr", "density", "feasible"]
    assert lines[1].split() == ["0", "COMPLETE", "80.00", "%", "0.1", "0.1", "yes"]
    assert len(lines) == 15
    assert max(map(len, lines[:13])) <= 60
    assert lines[-1] == "12 trials; hidden columns: repeats, seconds, reason (use --columns or --csv)"
    assert said(capsys, "study", "trials", "toy", "--filter", "number>99") == "no trial matches the filters\n"


def test_the_searched_method_is_among_the_first_columns(capsys, monkeypatch):
    searched = {"extractor": "rigl", "extractor.every @rigl": 5.0, "recipe.lr": 0.1}
    study_of(trial(value=0.8, params=searched, beyond=0.0, density=0.1, val_accuracy=0.8, steps=30, seconds=2.0, seed=1))
    monkeypatch.setattr(format.console, "width", 60)
    header = said(capsys, "study", "trials", "toy").splitlines()[0].split()
    assert header[:5] == ["number", "state", "val_accuracy", "extractor", "every"]


def test_parameters_of_all_trials_come_before_costs_and_those_of_one_method_after(capsys, monkeypatch):
    monkeypatch.setattr(format.console, "width", 120)
    rigl = {"extractor": "rigl", "recipe.lr": 0.1, "extractor.every @rigl": 5.0}
    gumbel = {"extractor": "gumbel", "recipe.lr": 0.2}
    costs = {"density": 0.1, "seconds": 2.0}
    study_of(*(trial(value=0.8, params=one, beyond=0.0, **costs) for one in (rigl, gumbel)), trial("WAITING", params={}))
    header = said(capsys, "study", "trials", "toy").splitlines()[0].split()
    assert header == ["number", "state", "val_accuracy", "extractor", "lr", "density", "feasible", "seconds", "every"]


def test_only_a_complete_trial_is_feasible_and_any_can_be_known_not_to_be():
    ends = [("COMPLETE", 0.5), ("PRUNED", None), ("FAIL", None)]
    study = study_of(*(trial(state, value, beyond=beyond) for state, value in ends for beyond in (-0.1, 0.1)))
    assert [row["feasible"] for row in flat_rows(Snapshot(study))] == [True, False, None, False, None, False]


def test_reasons_that_differ_in_numbers_are_one_with_their_ranges():
    reasons = ("flops_ratio <= 0.35 is violated: 0.9", "flops_ratio <= 0.35 is violated: 0.41", "no weights left in 2 layers")
    record = summarise_study(study_of(*(trial("PRUNED", reason=reason) for reason in reasons)))
    assert record["stopped_early"] == {"flops_ratio <= 0.35 is violated: 0.41 to 0.9": 2, "no weights left in 2 layers": 1}


def test_texts_are_wrapped_in_a_terminal_and_whole_lines_elsewhere(capsys, monkeypatch):
    toy()
    study_of(*(trial(value=0.1 * n, lr=0.1 * n) for n in range(1, 11)), name="ten")
    monkeypatch.setattr(format.console, "width", 60)
    commands = (("importance", "ten"), ("trials", "toy"))
    whole = [said(capsys, "study", *words) for words in commands]
    assert all(max(map(len, text.splitlines())) > 60 for text in whole)
    monkeypatch.setattr(format, "console", Console(width=60, highlight=False, force_terminal=True, no_color=True))
    for words, text in zip(commands, whole, strict=True):
        wrapped = said(capsys, "study", *words)
        assert max(map(len, wrapped.splitlines())) <= 60
        assert wrapped.split() == text.split()


def test_more_finished_trials_than_the_specification_has(capsys):
    study_of(*(trial(value=0.1) for _ in range(7)))
    assert "finished: 7 trials (of the specification: 6)" in " ".join(said(capsys, "study", "show", "toy").split())


# Fronts


def points():
    return study_of(
        trial(value=0.9, density=0.5, latency=1.0),
        trial(value=0.8, density=0.1, latency=2.0),
        trial(value=0.8, density=0.2, latency=0.5),
        trial(value=0.95, density=0.9, latency=9.0, beyond=0.8),
        trial(value=0.99),
        trial("PRUNED", 0.99, density=0.01),
    )


def test_a_front_over_whatever_was_recorded():
    rows = front(Snapshot(points()))
    assert [(row["number"], row["front"], row["feasible"]) for row in rows] == [
        (3, True, False),
        (0, True, True),
        (1, True, True),
        (2, False, True),
    ]
    study = Snapshot(optuna.load_study(study_name="toy", storage=DEFAULT_STORAGE))
    assert {row["number"] for row in front(study, ["val_accuracy", "density", "latency"]) if row["front"]} == {0, 1, 2, 3}
    assert [row["number"] for row in front(study, ["latency", "density"]) if row["front"]] == [2, 1]
    with pytest.raises(UserError, match=r"unknown measure 'latncy'.*did you mean 'latency'"):
        front(study, ["latncy", "density"])
    for names in (["density"], ["density", "density"]):
        with pytest.raises(UserError, match=r"two or more different metrics; recorded: val_accuracy, density, latency"):
            front(study, names)


def test_a_front_is_of_means_over_seeds():
    row = next(row for row in front(Snapshot(toy())) if row["number"] == 0)
    assert (row["val_accuracy"], row["seeds"]) == (pytest.approx(0.82), 3)


def traces(page):
    """What is drawn in a page of plotly's."""
    return json.JSONDecoder().raw_decode(page, page.index("[", page.index("Plotly.newPlot(")))[0]


def test_the_front_of_a_plain_study_with_one_objective(capsys):
    plain = optuna.create_study(storage=open_storage(DEFAULT_STORAGE, create=True), study_name="plain")
    plain.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    refused = said(capsys, "study", "pareto", "plain", code=2)
    assert refused == "error: a Pareto front needs two or more different metrics; recorded: value\n"


def test_a_front_drawn(capsys, tmp_path):
    pytest.importorskip("plotly")
    points()
    shown = said(capsys, "study", "pareto", "toy", "--objectives", "val_accuracy,density", "--plot", tmp_path / "front.html")
    assert "On the Pareto front: 3 of 4 complete trials" in shown
    page = (tmp_path / "front.html").read_text()
    drawn = {trace["name"]: (trace["x"], trace["y"]) for trace in traces(page)}
    assert {name: sorted(zip(*points, strict=True)) for name, points in drawn.items()} == {
        "trials": [(0.2, 0.8)],
        "Pareto front": [(0.1, 0.8), (0.5, 0.9), (0.9, 0.95)],
        "trials that break a constraint": [(0.9, 0.95)],
    }
    words = ["study", "pareto", "toy", "--objectives", "val_accuracy,density,latency", "--plot", tmp_path / "f.html"]
    assert "a plot shows two measures" in said(capsys, *words, code=2)


def test_without_plotly_a_plot_is_one_clear_line(capsys, monkeypatch):
    points()
    monkeypatch.setitem(sys.modules, "plotly", None)
    assert "plots need plotly: pip install" in said(capsys, "study", "pareto", "toy", "--plot", "f.html", code=2)


# Importance


def searched(count=60, name="toy"):
    """What matters is the learning rate, and in one of two branches how often; the method does not."""
    rng = __import__("random").Random(0)
    trials = []
    for _ in range(count):
        lr, method, every = 10 ** rng.uniform(-2, 0), rng.choice(["rigl", "gumbel"]), rng.uniform(1, 9)
        params = {"recipe.lr": lr, "extractor": method}
        if method == "rigl":
            params["extractor.every @rigl"] = every
        trials.append(trial(value=1 - abs(lr - 0.1) + rng.gauss(0, 0.001), params=params, density=lr))
    return study_of(*trials, name=name)


def test_importance_names_its_evaluator_and_its_trials():
    record = importance(Snapshot(searched()))
    assert (record["evaluator"], record["trials"], record["note"]) == ("PED-ANOVA", 60, None)
    assert next(iter(record["importances"])) == "recipe.lr"
    assert set(record["importances"]) == {"recipe.lr", "extractor", "extractor.every @rigl"}
    assert sum(record["importances"].values()) == pytest.approx(1)
    assert record["meaning"].startswith("by how much its values in the best 6 of 60 complete trials (by val_accuracy) differ")


def test_fanova_says_what_it_left_out(capsys):
    searched()
    record = from_json(capsys, "study", "importance", "toy", "--evaluator", "fanova")
    assert (record["evaluator"], record["trials"]) == ("fANOVA", 60)
    assert record["left_out"] == ["extractor.every @rigl"]
    assert record["importances"]["recipe.lr"] > 0.9
    branch = from_json(capsys, "study", "importance", "toy", "--evaluator", "fanova", "--filter", "extractor=rigl")
    assert (branch["left_out"], set(branch["importances"])) == ([], {"recipe.lr", "extractor", "extractor.every @rigl"})
    assert branch["trials"] < 60
    text = said(capsys, "study", "importance", "toy", "--evaluator", "fanova")
    assert "Left out, because not every trial has them: extractor.every @rigl" in text


@pytest.mark.parametrize("more", [[], ["--evaluator", "fanova"], ["--objective", "density"]])
def test_importance_drawn(capsys, tmp_path, more):
    pytest.importorskip("plotly")
    searched()
    record = from_json(capsys, "study", "importance", "toy", "--plot", tmp_path / "bars.html", *more)
    [bars] = traces((tmp_path / "bars.html").read_text())
    assert dict(zip(bars["y"], bars["x"], strict=True)) == pytest.approx(record["importances"])
    assert bars["y"][-1] == next(iter(record["importances"]))  # the largest on top
    assert bars["name"] == f"{record['evaluator']}, 60 trials: {record['meaning']}"


def test_importance_for_another_measure_and_for_a_front():
    study = Snapshot(searched())
    assert importance(study, objective="density")["objective"] == "density"
    with pytest.raises(UserError, match="unknown measure 'densty'"):
        importance(study, objective="densty")
    with pytest.raises(UserError, match="unknown evaluator 'anova': did you mean 'fanova'"):
        importance(study, "anova")
    two = study_of(
        *[trial(value=[lr, lr], lr=lr) for lr in (0.01 * n for n in range(1, 81))],
        name="two",
        objective=("val_accuracy", "density"),
    )
    assert importance(Snapshot(two))["importances"] == {"recipe.lr": 1.0}
    with pytest.raises(UserError, match="fANOVA explains one measure"):
        importance(Snapshot(two), "fanova")
    assert importance(Snapshot(two), "fanova", "density")["importances"] == {"recipe.lr": 1.0}


def test_too_little_for_importance_is_said():
    few = importance(Snapshot(searched(20, "few")))
    assert few["note"] == "unsure: the best tenth are 2 trials, and 5 or more are advised"
    assert few["importances"]
    same = importance(Snapshot(study_of(*[trial(value=0.5, lr=lr / 100) for lr in range(1, 21)], name="same")))
    assert (same["importances"], same["note"]) == ({}, "val_accuracy is the same in all 20 complete trials")


def test_ped_anova_needs_no_scikit_learn_and_leaves_optuna_whole():
    code = (
        "import sys, warnings; import optuna\n"
        "from subnet_search.search.queries.importance import importance\n"
        "from subnet_search.search.queries.queries import Snapshot\n"
        "study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))\n"
        "study.optimize(lambda t: t.suggest_float('x', 0, 1) + t.suggest_float('y', 0, 1) / 9, n_trials=60)\n"
        "ours = importance(Snapshot(study))['importances']\n"
        "assert 'sklearn' not in sys.modules\n"
        "theirs = optuna.importance.get_param_importances(study)\n"
        "assert ours == {k: float(v) for k, v in theirs.items()}, (ours, theirs)\n"
        "assert 'sklearn' in sys.modules\n"
        "optuna.importance.FanovaImportanceEvaluator(seed=0).evaluate(study)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Side by side


def test_two_studies_side_by_side():
    a = study_of(*[trial(value=v, steps=10) for v in (0.5, 0.7, 0.9, 0.6)], name="a")
    trials = [trial("PRUNED", 0.1, steps=2), trial(value=0.8, steps=10), trial("FAIL"), trial("PRUNED", 0.1, steps=2)]
    trials += [trial(value=0.85, steps=10), trial(value=0.99, beyond=1.0, steps=1)]
    b = study_of(*trials, name="b", spec={**SPEC, "sampler": {"name": "random"}})
    record = diff_studies(Snapshot(a), Snapshot(b))
    assert [(s["finished"], s["steps"]) for s in record["studies"]] == [(4, 40), (5, 25)]
    assert record["at_equal_trials"] == [
        {"trials": 1, "a": 0.5, "b": None},
        {"trials": 2, "a": 0.7, "b": 0.8},
        {"trials": 3, "a": 0.9, "b": 0.8},
        {"trials": 4, "a": 0.9, "b": 0.85},
    ]
    assert [(row["steps"], row["a"], row["b"]) for row in record["at_equal_steps"]] == [
        (2, None, None),
        (6, None, None),
        (12, 0.5, 0.8),
        (19, 0.5, 0.8),
        (25, 0.7, 0.85),
    ]
    assert record["studies"][0]["reaches_the_others_best"] == {"trials": 3, "steps": 30}
    assert record["studies"][1]["reaches_the_others_best"] is None
    assert {"key": "sampler.name", "a": "tpe", "b": "random"} in record["differences"]


def test_runs_that_differ_are_told_and_other_objectives_refused():
    other = {**SPEC, "run": {**SPEC["run"], "network": {"name": "conv2"}}, "trials": 99}
    assert differences(SPEC, other) == [
        {"key": "run.network", "a": "lenet5", "b": None},
        {"key": "run.network.name", "a": None, "b": "conv2"},
    ]
    a, b = study_of(name="a"), study_of(name="b", objective=("density",))
    with pytest.raises(UserError, match="'a' has val_accuracy, 'b' has density"):
        diff_studies(Snapshot(a), Snapshot(b))
    assert diff_studies(Snapshot(a), Snapshot(study_of(name="c")))["at_equal_trials"] == []


def test_fronts_side_by_side():
    two = ("val_accuracy", "density")
    a = study_of(trial(value=[0.9, 0.5]), trial(value=[0.8, 0.2]), name="a", objective=two)
    b = study_of(trial(value=[0.7, 0.2]), trial(value=[0.6, 0.1]), name="b", objective=two)
    assert diff_studies(Snapshot(a), Snapshot(b))["dominated"] == [1, 0]


# The commands


def test_every_page_for_people_and_for_programs(capsys, monkeypatch):
    toy()
    study_of(trial(value=0.5, steps=10), name="other")
    pages = (["list"], ["show", "toy"], ["trial", "toy", 4], ["best", "toy"], ["compare", "toy", "other"])
    pages += (["pareto", "toy"], ["importance", "toy"], ["trials", "other"], ["show", "other"])
    for words in pages:
        assert said(capsys, "study", *words).strip()
        json.loads(said(capsys, "study", *words, "--json"))
    monkeypatch.setattr(format.console, "width", 80)
    page = said(capsys, "study", "show", "toy")
    assert all(len(line) <= 80 for line in page.splitlines() if not line.startswith("Importance"))
    for text in (
        "running: 4 of 6 trials, 4 repeats, 1 imported",
        "2 x the loss is nan at step 12 to 15",
        "elsewhere 7: trial 6",
    ):
        assert text in " ".join(page.split())
    best = " ".join(said(capsys, "study", "best", "toy").split())
    assert "seeds 3 (mean ± standard deviation, lowest to highest)" in best
    assert "82.00 % ± 2.00 % (80.00 % to 84.00 %)" in best
    text = said(capsys, "study", "trial", "toy", 4)
    for part in ("the loss is nan at step 12", "End of the log", "last", "Traceback ..."):
        assert part in text


def test_latency_is_in_milliseconds_and_a_broken_constraint_is_said(capsys):
    bounds = {**SPEC, "constraints": {"latency": "<= 0.5"}, "repeats": 1}
    broken = {"latency": 0.25}
    shared = {"distributions": {"recipe.lr": LR}, "params": {"recipe.lr": 0.1}}
    kept = create_trial(value=0.8, user_attrs={"latency": 0.4}, constraints={"latency": -0.1}, **shared)
    study_of(kept, create_trial(value=0.9, user_attrs={"latency": 0.75}, constraints=broken, **shared), spec=bounds)
    page = " ".join(said(capsys, "study", "show", "toy").split())
    assert "constraints latency <= 0.5 (violated by 1 of 2 complete trials)" in page
    assert "Best: trial 0" in page
    assert "latency 0.4 ms" in page
    assert "latency 0.4 ms" in " ".join(said(capsys, "study", "best", "toy").split())
    text = " ".join(said(capsys, "study", "trial", "toy", 1).split())
    assert "latency 0.75 ms" in text
    assert "violates latency <= 0.5, by 0.25 ms" in text
    assert "breaks" not in said(capsys, "study", "trial", "toy", 0)
    assert from_json(capsys, "study", "trial", "toy", 1)["broken"] == {"latency": "<= 0.5"}
    assert "0.75 ms" in said(capsys, "study", "trials", "toy")
    study_of(create_trial(value=0.9, constraints=broken, **shared), name="none", spec=bounds)
    page = said(capsys, "study", "show", "none")
    assert "violated by 1 of 1 complete trials" in " ".join(page.split())
    assert "No complete trial satisfies the constraints, so there is no best trial." in page
    fastest = study_of(create_trial(value=0.75, **shared), name="fastest", objective=("latency",), spec=bounds)
    assert best_ranked(fastest)[0].mean == (0.75,)
    assert "0.75 ms" in said(capsys, "study", "best", "fastest")
    assert "0.75 ms" in said(capsys, "study", "list")


def test_a_trial_that_ends_says_what_it_measured_and_what_it_breaks():
    attrs = {"val_accuracy": 0.9, "density": 0.5, "latency": 0.75, "seed": 3}
    params, distributions = (
        {"unit @granet|synflow": "2:4"},
        {"unit @granet|synflow": CategoricalDistribution(["2:4", "weight"])},
    )
    one = create_trial(value=0.9, user_attrs=attrs, constraints={"latency": 0.25}, params=params, distributions=distributions)
    text = "validation 90.00 %, density 0.500, latency 0.75 ms, violates the constraint on latency  (unit=2:4)"
    assert ending(trial_row(one)) == f"complete: {text}"


def test_columns_keep_what_tells_them_apart(capsys):
    names = ["target.flops", "density_per_layer.0", "density_per_layer.conv1", "recipe.lr"]
    floats = dict.fromkeys(names, FloatDistribution(0, 1))
    study_of(create_trial(value=0.5, params=dict.fromkeys(names, 0.25), distributions=floats))
    assert said(capsys, "study", "trials", "toy", "--columns", ",".join(names)).splitlines()[0].split() == [
        "target.flops",
        "density_per_layer.0",
        "conv1",
        "lr",
    ]


def test_the_keys_that_are_fixed(capsys):
    toy()
    assert from_json(capsys, "study", "list")[0].keys() >= {"name", "states", "best"}
    wanted = {"number", "state", "values", "params", "density", "sha256", "seconds", "reason"}
    assert all(row.keys() >= wanted for row in from_json(capsys, "study", "trials", "toy"))
    best = from_json(capsys, "study", "best", "toy")
    assert (best["number"], best["values"]) == (0, [0.8])


def test_a_moment_is_shown_to_the_second():
    study = study_of(trial(value=0.1))
    began = Snapshot(study).get_trials()[0].datetime_start
    assert list_studies(study._storage)[0]["started"] == began.isoformat(" ", "seconds")
    assert datetime.fromisoformat(trial_details(study, 0)["started"]) == began.replace(microsecond=0)


@pytest.mark.slow
def test_looking_imports_no_torch():
    toy()
    words = [["list"], ["show", "toy"], ["trials", "toy"], ["trial", "toy", "0"], ["best", "toy"], ["compare", "toy", "toy"]]
    words += [["pareto", "toy"], ["importance", "toy"]]
    code = (
        "import contextlib, sys\n"
        "from subnet_search.cli import main\n"
        f"for words in {words}:\n"
        "    with contextlib.suppress(SystemExit): main(['study', *words])\n"
        "print({'torch', 'sklearn', 'plotly', 'pandas'} & sys.modules.keys(), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "set()\n"
