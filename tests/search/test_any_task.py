"""Studies, comparisons and tables of a task that is not classification: its metrics, their directions, the one that leads."""

import json
import re
from pathlib import Path

import pytest
import yaml

import subnet_search as ss
from subnet_search.analysis import plots
from subnet_search.analysis.plasticity import plasticity
from subnet_search.cli import main
from subnet_search.core.errors import UserError
from subnet_search.core.task_metrics import CLASSIFICATION, TaskMetrics, is_fraction, leading_in
from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.config_file import check
from subnet_search.search.engine.multiobjective_pruner import is_behind
from subnet_search.search.queries.queries import best_ranked, trial_rows
from subnet_search.search.queries.study_summary import summarise_study
from subnet_search.search.spec.metrics import find_measure, measures_of
from subnet_search.search.spec.study_spec import StudySpec, spec_of
from subnet_search.search.storage.connect import load_study, open_storage
from subnet_search.search.storage.ranking import direction
from subnet_search.search.storage.records import TASK, task_metrics
from subnet_search.search.studies.launcher import prepare_study, run_study
from subnet_search.tasks import create_task
from subnet_search.tasks.describe import catalogue, describe

MODULE = '''
from torch import nn


def make(num_classes=None):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 1))


class Depth:
    """How large the digit is."""

    leading = "rmse"
    directions = {"rmse": "minimize", "within_one": "maximize", "f1": "maximize"}

    def __init__(self, scale=1.0):
        self.scale = scale

    def error(self, network, batch):
        inputs, labels = batch
        return network(inputs).squeeze(1) - labels.float()

    def loss(self, network, batch):
        return self.scale * self.error(network, batch).square().mean()

    def metrics(self, network, batch):
        error = self.error(network, batch).abs()
        within = (error < 1).float().mean()
        return {"rmse": error.square().mean().sqrt(), "within_one": within, "f1": within, "undirected": 1.0}


class Leads(Depth):
    leading = "error"
    directions = {"error": "minimize"}
'''
TASK_NAME = "depth_of_tests:Depth"
RUN = {
    "network": "depth_of_tests:make",
    "data": {"name": "digits", "limit": 200},
    "task": TASK_NAME,
    "extractor": {"name": "random", "density": 0.5},
    "recipe": {"epochs": 2, "batch_size": 32, "threads": 1, "device": "cpu", "optimizer": "adam", "lr": 0.01},
}
SPACE = {"recipe.lr": {"float": [1e-5, 0.03], "log": True}}
URL = "sqlite:///s.db"


@pytest.fixture(autouse=True)
def in_a_folder_with_a_task(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # for workers
    monkeypatch.delenv("SUBNET_SEARCH_STORAGE", raising=False)
    (tmp_path / "depth_of_tests.py").write_text(MODULE)


def spec(name="toy", **more):
    return check(StudySpec, {"name": name, "run": RUN, "space": SPACE, "trials": 4, "storage": URL, **more})


def said(capsys, *words, code=0):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert ended.value.code == code, err
    return out if code == 0 else err


# Which metrics, in which direction, and which one leads


def test_the_default_objective_is_what_leads_in_the_task():
    assert spec().objective == ["val_rmse"]
    assert spec().directions == ["minimize"]
    assert spec(objective=["val_within_one", "density"]).directions == ["maximize", "minimize"]
    run = {key: value for key, value in RUN.items() if key != "task"}
    plain = spec(run={**run, "network": "lenet_300_100"})
    assert plain.objective == ["val_accuracy"]
    stored = json.loads(plain.to_json())
    assert stored["objective"] == ["val_accuracy"]
    assert "task" not in stored["run"]
    assert spec().differences(StudySpec.from_json(spec().to_json())) == []


def test_the_measures_of_a_task():
    task = create_task(TASK_NAME)
    found = measures_of(task)
    assert {"val_loss", "val_rmse", "val_within_one", "density", "latency"} <= found.keys()
    assert "val_accuracy" not in found
    assert "robustness" not in found
    assert [name for name, one in found.items() if one.available == "epoch"] == list(TaskMetrics.of(task).measures)
    assert find_measure("robustness", create_task("classification")).direction == "maximize"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"objective": "val_accuracy"}, "unknown objective 'val_accuracy'.*valid: .*val_rmse"),
        ({"objective": "val_undirected"}, "unknown objective 'val_undirected' .the task depth.*`directions`"),
        ({"objective": "robustness"}, "robustness is the accuracy under noise: it needs the task classification"),
        ({"constraints": {"robustness": ">= 0.1"}}, "robustness is the accuracy under noise"),
        ({"constraints": {"val_nll": "<= 1"}}, "unknown measure 'val_nll'"),
        ({"constraints": {"val_within_one": "a lot"}}, 'as in val_within_one: ">= 0.9"'),
        ({"pruner": "median", "objective": "flops"}, "the objective must be val_loss or val_rmse or .*, not flops"),
        ({"pruner": "median", "objective": ["val_rmse", "flops"]}, r"\(objective: val_rmse, constraints: {flops: "),
        ({"pruner": "rungs", "objective": ["flops", "bytes"]}, "one of them val_loss or val_rmse"),
        ({"space": {"task": {"choice": [TASK_NAME]}}}, "space.task: all trials of a study have one task"),
        ({"space": {"task.name": {"choice": [TASK_NAME]}}}, "space.task.name: all trials of a study have one task"),
        ({"space": {"task.shape": {"float": [1, 2]}}}, "does not accept {'shape': 1"),
        ({"run": {**RUN, "task": "depth_of_tests:Leads"}}, "the leading metric cannot be called error"),
        ({"run": {**RUN, "task": None}}, "the task of this run was passed from Python"),
    ],
)
def test_what_is_refused_before_training(more, message):
    with pytest.raises(UserError, match=message) as refused:
        spec(**more)
    assert "\n" not in str(refused.value)


def test_a_task_object_stays_in_its_process():
    import depth_of_tests

    run = RunConfig(task=depth_of_tests.Depth())
    with pytest.raises(UserError, match=r"^task is a Python object, which only this process has: run it with workers=1, or"):
        ss.run_study(check(StudySpec, {"name": "toy", "run": run, "space": SPACE}), storage=URL, workers=2)
    with pytest.raises(UserError, match=r"^task is a Python object"):
        ss.compare(run, ["random"], [0.5], storage=URL, workers=2)


def test_settings_of_a_task_are_searched():
    found = spec(space={"task.scale": {"float": [0.5, 2]}})
    assert found.config({"task.scale": 0.75}).dump()["task"] == {"name": TASK_NAME, "scale": 0.75}
    weights = spec(run={"network": "lenet5"}, space={"task.class_weights": {"choice": [None, "balanced"]}})
    assert weights.config({"task.class_weights": "balanced"}).task.class_weights == "balanced"


def test_metrics_in_a_study_are_read_whatever_they_are():
    good = {"leading": "rmse", "directions": {"rmse": "minimize"}}
    assert TaskMetrics.read(good) == TaskMetrics("rmse", {"rmse": "minimize"})
    for bad in (None, 3, [], {}, {"leading": "rmse"}, {**good, "leading": "mae"}, {**good, "directions": {"rmse": "up"}}):
        assert TaskMetrics.read(bad) == CLASSIFICATION


def test_fractions_and_the_leading_metric_of_a_record():
    assert all(map(is_fraction, ("val_accuracy", "balanced_accuracy", "f1", "test_miou", "val_macro_f1", "dice")))
    assert not any(map(is_fraction, ("rmse", "val_nll", "val_ece", "perplexity", "recipe.lr", "within_one")))
    assert leading_in({"test_error": None, "test_rmse": 1.0, "val_mae": 2.0}) == "rmse"
    assert leading_in({"test_error": None}) == "accuracy"


# Studies


@pytest.fixture
def study():
    wanted = spec(pruner="median", constraints={"val_rmse": "<= 4.5"}, sampler="random", trials=5, workers=2, repeats=2)
    study = run_study(wanted)
    return load_study(study.study_name, open_storage(URL))


def test_a_study_on_two_workers(study, capsys):
    rows = trial_rows(study)
    complete = [row for row in rows if row["state"] == "COMPLETE"]
    assert study.directions[0].name == "MINIMIZE"
    assert study.user_attrs[TASK] == {"leading": "rmse", "directions": dict(create_task(TASK_NAME).directions)}
    assert all(row["values"] == [row["val_rmse"]] and row["test_rmse"] > 0 for row in complete)
    assert not any(key.endswith("accuracy") for row in rows for key in row)
    for row in complete:
        assert row["constraints"]["val_rmse"] == pytest.approx(row["val_rmse"] - 4.5)
    feasible = [row for row in complete if row["val_rmse"] <= 4.5 and row["repeats"] is None]
    assert 0 < len(feasible) < len(complete) + sum(row["state"] == "PRUNED" for row in rows)
    (best,) = (ranked.trial for ranked in best_ranked(study))
    repeated = [row for row in complete if row["repeats"] == best.number]
    assert len(repeated) == 1
    assert direction(study, "test_rmse").name == "MINIMIZE"

    page = said(capsys, "study", "show", "toy", "--storage", URL)
    assert "objective     val_rmse (minimize)" in page
    assert f"task {TASK_NAME}" in " ".join(page.split())
    assert re.search(r"validation rmse +\d\.\d+|validation rmse +\d", page)
    assert "test rmse" in page
    assert "accuracy" not in page
    record = json.loads(said(capsys, "study", "show", "toy", "--storage", URL, "--json"))
    assert record["task"] == TASK_NAME
    assert record["best"][0]["val_rmse"] > 0
    listed = json.loads(said(capsys, "study", "trials", "toy", "--storage", URL, "--json"))
    assert [row["val_rmse"] for row in listed] == [row["val_rmse"] for row in rows]
    told = json.loads(said(capsys, "study", "trial", "toy", best.number, "--storage", URL, "--json"))
    assert told["objectives"]["val_rmse"] == best.value
    assert "validation rmse" in said(capsys, "study", "trial", "toy", best.number, "--storage", URL)
    assert "validation rmse" in " ".join(told["log"])
    shown = json.loads(said(capsys, "study", "best", "toy", "--storage", URL, "--json"))
    assert shown["mean"] == [pytest.approx((best.value + repeated[0]["val_rmse"]) / 2)]
    pareto = json.loads(
        said(capsys, "study", "pareto", "toy", "--objectives", "test_rmse,val_rmse", "--storage", URL, "--json")
    )
    assert pareto[0]["test_rmse"] == min(row["test_rmse"] for row in pareto)

    said(capsys, "study", "extract", "toy", best.number, "--storage", URL, "--out", "again", "--allow-import", "depth_of_tests")
    config = yaml.safe_load(Path("again/config.yaml").read_text())
    assert config["task"] == {"name": TASK_NAME}


def test_the_pruner_keeps_what_is_low():
    wanted = spec(
        pruner={"name": "median", "n_startup_trials": 1, "n_warmup_steps": 0},
        space={"recipe.lr": {"choice": [0.01, 1e-7]}},
        enqueue=[{"recipe.lr": 0.01}, {"recipe.lr": 1e-7}],
        trials=2,
        parallel=1,
    )
    good, bad = run_study(wanted).trials
    assert (good.state.name, bad.state.name) == ("COMPLETE", "PRUNED")
    assert bad.user_attrs["val_rmse"] > good.user_attrs["val_rmse"]
    assert "stopped it after epoch 1" in bad.user_attrs["reason"]


def test_rungs_keep_what_is_low():
    objective = ["val_rmse", "val_within_one", "density"]
    wanted = spec(pruner={"name": "rungs", "reduction_factor": 2}, objective=objective, sampler="nsga2", parallel=1, trials=3)
    study = run_study(wanted)
    rungs = [trial.user_attrs["rungs"]["1"] for trial in study.trials]
    assert all(len(values) == 3 for values in rungs)

    class Lease:
        number = 9

    Lease.study = study
    low, high = [0.0, 1.0, 0.1], [99.0, 0.0, 0.9]
    assert not is_behind(Lease, spec_of(study), "1", low)
    assert is_behind(Lease, spec_of(study), "1", high)


def test_early_stopping_keeps_the_lowest():
    epochs = []
    recipe = {**RUN["recipe"], "epochs": 6, "patience": 1, "lr": 0.3}
    subnet = ss.run(check(RunConfig, {**RUN, "recipe": recipe}), on_epoch=epochs.append)
    assert subnet.metrics["val_rmse"] == min(epoch.metrics["val_rmse"] for epoch in epochs)


def test_a_duplicate_and_an_imported_result_keep_the_metrics():
    space = {"recipe.lr": {"choice": [0.01]}}
    study = run_study(spec(space=space, duplicates="reuse", parallel=1, trials=2))
    first, again = (trial.user_attrs for trial in study.trials)
    assert again["reuses"] == 0
    assert [again[key] for key in ("val_rmse", "test_rmse")] == [first[key] for key in ("val_rmse", "test_rmse")]
    warm = prepare_study(spec("warm", space=space, imports=["toy"]), URL)
    assert warm.trials[0].user_attrs["test_rmse"] == first["test_rmse"]
    assert warm.trials[0].value == first["val_rmse"]


def test_the_stored_metrics_follow_the_task(tmp_path):
    study = prepare_study(spec(), URL)
    study.set_user_attr(
        TASK, {"leading": "loss", "directions": {"loss": "minimize"}}
    )  # as an earlier version of the module said
    assert task_metrics(prepare_study(spec(), URL)) == spec().task_metrics
    assert TASK not in prepare_study(spec("other", run={"network": "lenet5"}), URL).user_attrs
    assert "task" not in summarise_study(load_study("other", open_storage(URL)))


# Comparisons and analyses


@pytest.mark.long
def test_a_comparison(capsys):
    record = ss.compare(RUN, ["random", "magnitude"], [0.5], seeds=2, storage=URL, workers=2)
    assert {"val_rmse", "test_rmse"} <= record["rows"][0].keys()
    assert not any("accuracy" in key for key in (*record["rows"][0], *record["cells"][0]))
    assert [row["complete"] for row in record["rows"]] == [2, 2, 2]
    Path("run.yaml").write_text(yaml.safe_dump(RUN))
    words = ("compare", "run.yaml", "--extractors", "random,magnitude", "--densities", "0.5", "--seeds", 2, "--name", "compare")
    page = said(capsys, *words, "--storage", URL)
    assert re.search(r"validation rmse +test rmse", page)
    assert re.search(r"random +0\.5 +2/2 +\d\.\d+ \(\d\.\d+-\d\.\d+\)", page)
    assert "%" not in page.partition("Mean over seeds")[0]
    same = json.loads(said(capsys, *words, "--storage", URL, "--json"))
    assert same["rows"] == record["rows"]
    assert f"{same['name']}: test rmse" in Path(same["plot"]).read_text()
    assert "val_rmse" in said(capsys, "study", "show", "compare", "--storage", URL)


def test_sanity_of_a_task(capsys):
    Path("run.yaml").write_text(yaml.safe_dump({**RUN, "extractor": {"name": "snip", "density": 0.5}}))
    page = said(capsys, "sanity", "run.yaml", "--seeds", 1, "--storage", URL)
    assert "validation rmse" in page
    assert "shuffled" in page


def test_plasticity_of_a_task(capsys):
    config = check(RunConfig, RUN)
    (record,) = plasticity(config, 1, at=[0.5], rate=[0.5], regrow=0, out="p")
    assert record["rmse_won_back"] == record["rmse_pruned"] - record["rmse_after"]
    assert record["rmse_difference"] == record["rmse_after"] - record["rmse_unpruned"]
    assert yaml.safe_load(Path("p/config.yaml").read_text())["task"] == {"name": TASK_NAME}
    assert plots.metric_of([record]) == "rmse"
    Path("run.yaml").write_text(yaml.safe_dump(RUN))
    words = ("--epochs", 1, "--at", 0.5, "--rate", 0.5, "--regrow", 0, "--out", "p", "--json")
    assert json.loads(said(capsys, "plasticity", "run.yaml", *words)) == [record]
    assert "validation rmse" in Path("p/plasticity.html").read_text()
    assert "Validation rmse; in p/plasticity.json" in said(capsys, "plasticity", "run.yaml", *words[:-1])


def test_densities_of_one_run(capsys):
    Path("run.yaml").write_text(yaml.safe_dump({**RUN, "extractor": {"name": "gumbel"}}))
    page = said(capsys, "extract", "run.yaml", "--densities", "0.5,0.2", "--out", "run")
    assert re.search(r"density +validation rmse +test rmse", page)
    assert {"val_rmse", "test_rmse"} <= json.loads(Path("run/curve.json").read_text())[0].keys()


# One run at the command line


def test_a_run_and_its_file(capsys):
    words = ["-s", "network=depth_of_tests:make", "-s", "data.limit=200", "-s", "extractor=random", "-s", "recipe.epochs=1"]
    page = said(capsys, "extract", *words, "-s", "recipe.device=cpu", "--task", TASK_NAME, "--out", "run")
    assert re.search(r"validation rmse +\d", page)
    assert yaml.safe_load(Path("run/config.yaml").read_text())["task"] == {"name": TASK_NAME}
    file = "run/subnetwork.safetensors"
    told = said(capsys, "evaluate", file, "--network", "depth_of_tests:make", code=2)
    own = ("--network", "depth_of_tests:make", "--task", TASK_NAME)
    whole = f"The whole command: subnet-search evaluate {file} {' '.join(own)}"
    assert told == f"error: the task of this run is not built in: pass it, task=... or --task {TASK_NAME}. {whole}\n"
    page = said(capsys, "evaluate", file, *own)
    assert re.search(r"rmse \(val, \d+ items\) +\d", page)
    assert re.search(r"within one +0", page)
    assert re.search(r"f1 +\d+\.\d\d %", page)
    record = json.loads(said(capsys, "evaluate", file, *own, "--split", "test", "--json"))
    assert record["rmse"] == pytest.approx(record["test_rmse"])
    told = said(capsys, "evaluate", file, *own, "--noise", code=2)
    assert told == f"error: accuracy under noise and corruptions needs the task classification, got {TASK_NAME}\n"
    page = said(capsys, "export", file, "small.safetensors", "--to", "state-dict", "--network", "depth_of_tests:make")
    assert re.search(r"rmse: \d+\.\d+ on the validation split, \d+\.\d+ on the test split, from the run", page)
    told = said(capsys, "export", file, "x.safetensors", "--to", "state-dict", *own, code=2)
    assert told.startswith("error: task is only used to recalibrate batch norm")


def test_predictions_of_a_task(capsys):
    import numpy as np

    said(capsys, "extract", "-s", "network=depth_of_tests:make", "-s", "data.limit=200", "-s", "extractor=random", "-s",
         "recipe.epochs=1", "-s", "recipe.device=cpu", "-s", f"task={TASK_NAME}", "--out", "run")  # fmt: skip
    np.save("x.npy", np.zeros((3, 8, 8, 1), dtype=np.uint8))
    own = ("--network", "depth_of_tests:make")
    rows = json.loads(said(capsys, "predict", "run/subnetwork.safetensors", "x.npy", *own, "--json"))
    assert [row["input"] for row in rows] == ["0", "1", "2"]
    assert all(len(row["output"]) == 1 for row in rows)
    assert "output" in said(capsys, "predict", "run/subnetwork.safetensors", "x.npy", *own)


def test_a_task_that_is_passed_as_an_object(capsys):
    import depth_of_tests

    subnet = ss.extract(
        depth_of_tests.make(), "digits", "random", task=depth_of_tests.Depth(), recipe=ss.Recipe(**RUN["recipe"]), out="run"
    )
    assert subnet.summary()["val_rmse"] > 0
    stored = yaml.safe_load(Path("run/config.yaml").read_text())
    assert (stored["network"], stored["task"]) == (None, None)
    told = said(capsys, "extract", "--resume", "--out", "run", "-s", "network=depth_of_tests:make", code=2)
    assert "the task of this run was passed from Python: give its name" in told


def test_the_list_of_tasks(capsys):
    rows = json.loads(said(capsys, "tasks", "--json"))
    assert rows == json.loads(json.dumps(catalogue()))
    (row,) = [row for row in rows if row["name"] == "classification"]
    assert row["leading"] == "accuracy"
    assert row["metrics"]["nll"] == "minimize"
    assert [setting["name"] for setting in row["settings"]] == ["labels", "class_weights"]
    page = said(capsys, "tasks")
    assert "accuracy*, nll" in page
    page = said(capsys, "tasks", "classification")
    assert "accuracy (maximize), nll (minimize)" in page
    assert "class_weights" in page
    assert "unknown task 'classify': did you mean 'classification'" in said(capsys, "tasks", "classify", code=2)
    assert describe("classification")["summary"] == "Classify each input."
