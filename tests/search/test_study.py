"""Studies: what is searched, what is stored, what is refused, and that trials can be had again."""

import json
import os
import subprocess
from pathlib import Path

import optuna
import pytest

import subnet_search as ss
from subnet_search.core.errors import Interrupted, RunError, UserError
from subnet_search.extraction.config_file import check
from subnet_search.search.engine.scheduler import Scheduler
from subnet_search.search.engine.worker import run_worker
from subnet_search.search.queries.queries import find_trial, list_studies, trial_rows
from subnet_search.search.queries.study_summary import summarise_study
from subnet_search.search.spec.study_spec import StudySpec, read_study, spec_of
from subnet_search.search.storage.connect import DEFAULT_STORAGE, load_study, open_storage
from subnet_search.search.storage.ranking import best_ranked
from subnet_search.search.studies.launcher import prepare_study, run_study
from subnet_search.search.studies.reproduce import retrain_trial

RUN = {
    "network": "lenet_300_100",
    "data": {"name": "digits", "limit": 200},
    "recipe": {"epochs": 2, "threads": 1, "device": "cpu"},
}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def spec(name="toy", **more):
    values = {"name": name, "run": RUN, "space": {"recipe.lr": {"float": [1, 100], "log": True}}, "trials": 3, **more}
    return check(StudySpec, values)


def best_trials(study):
    return [ranked.trial for ranked in best_ranked(study)]


def finished(study):
    return [t for t in study.get_trials(deepcopy=False) if t.state.name in ("COMPLETE", "PRUNED")]


# What is searched


def test_extractor_domains_all_listed_narrowed_and_pinned():
    everything = spec(space={"extractor": "all"}).searched.words()
    assert {"extractor.density", "extractor.temperature", "extractor.rescale"} <= everything.keys()
    assert list(spec(space={"extractor": ["temperature"]}).searched.words()) == ["extractor.temperature"]
    mixed = spec(space={"extractor": {"temperature": None, "density": {"float": [0.1, 0.2]}, "rescale": "fan_in"}})
    assert mixed.searched.words() == {
        "extractor.temperature": "0.3 to 3, log",
        "extractor.density": "0.1 to 0.2",
    }
    assert mixed.config({}).extractor.rescale == "fan_in"


def test_any_key_of_a_run_can_be_searched():
    found = spec(space={"network": {"choice": ["conv2", "lenet5"]}, "recipe.augment": {"choice": [[], ["crop"]]}})
    config = found.config({"network": "conv2", "recipe.augment": ["crop"]})
    assert (config.network.name, config.recipe.augment) == ("conv2", ("crop",))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"space": {"recipe.lrr": {"float": [1, 2]}}}, "unknown key of a run 'recipe.lrr'.*did you mean 'recipe.lr'"),
        ({"space": {"recipe.lr": {"float": [2, 1]}}}, "space.recipe.lr: the low end of a range"),
        ({"space": {"recipe.lr": {"float": [0, 1], "log": True}}}, "must start above 0"),
        ({"space": {"recipe.lr": {"float": [1]}}}, r"space.recipe.lr: float takes \[low, high\]"),
        ({"space": {"recipe.lr": {"float": [-1, 1]}}}, "space: recipe.lr: input should be greater than 0, got -1"),
        ({"space": {"recipe.lr": {"float": [1, 2], "steps": 1}}}, "float cannot be combined with steps"),
        (
            {"space": {"recipe.lr": {"float": [1, 2], "step": 0.3}}},
            "number of steps above the low end, got 1 to 2, step 0.3",
        ),
        ({"space": {"recipe.lr": {"float": [1, 2], "step": 0}}}, "step of a range must be a number above 0, got 0"),
        ({"space": {"recipe.lr": {"float": [1, 2], "step": "a"}}}, "step of a range must be a number above 0, got 'a'"),
        (
            {"space": {"recipe.lr": {"float": [1, 2], "step": 1, "log": True}}},
            "recipe.lr: a logarithmic range has no step",
        ),
        ({"space": {"recipe.epochs": {"int": [1, 3], "step": 0.5}}}, "the step of int is a whole number, got 0.5"),
        ({"space": {"recipe.epochs": {"choice": [1, 3], "step": 2}}}, "choice cannot be combined with step"),
        ({"space": {"network": {"choice": ["conv2", "con4"]}}}, "unknown network 'con4'"),
        ({"space": {"extractor": ["temprature"]}}, "did you mean 'temperature'"),
        ({"space": {"extractor": {"final_temperature": None}}}, "declares no domain for it"),
        ({"space": {"seed": {"int": [0, 9]}}}, "each trial's seed is derived"),
        ({"space": {}}, "space"),
        ({"sampler": "tpee"}, "unknown sampler 'tpee': did you mean 'tpe'"),
        ({"pruner": "hyper"}, "unknown pruner 'hyper'"),
        ({"objective": "accuracy"}, "unknown objective 'accuracy': did you mean 'val_accuracy'"),
        (
            {"objective": ["val_accuracy", "density"], "pruner": "median"},
            'supports one objective.*constraints: {density: "<= ..."}',
        ),
        ({"trials": 0}, "trials: input should be greater than or equal to 1"),
        (
            {"sampler": {"n_startup": 3}},
            r"unknown option 'n_startup' \(sampler tpe\): did you mean 'n_startup_trials'",
        ),
        ({"sampler": "TPESampler"}, r"sampler: {name: tpe, n_startup_trials: 5}, .*; got TPESampler, which is named tpe"),
        ({"sampler": optuna.samplers.TPESampler()}, "each worker makes its own; got TPESampler, which is named tpe"),
        ({"sampler": optuna.samplers.GridSampler({"x": [1]})}, "each worker makes its own; got GridSampler"),
        ({"pruner": "optuna.pruners.MedianPruner"}, r"pruner: {name: median, n_startup_trials: 5}, .*which is named median"),
        ({"pruner": {"name": optuna.pruners.NopPruner()}}, "got NopPruner, which is named none"),
        ({"objective": {"val_accuracy": "minimize"}}, "as in objective: val_accuracy or .*each has its own direction"),
    ],
)
def test_a_wrong_spec_is_refused_before_anything_runs(more, message):
    with pytest.raises(UserError, match=message):
        run_study(spec(**more), storage="sqlite:///s.db")


def test_options_of_the_default_sampler_need_no_name():
    assert spec(sampler={"n_startup_trials": 3}).sampler == {"name": "tpe", "n_startup_trials": 3}


def test_a_mistyped_option_of_a_sampler_names_its_line(tmp_path):
    (tmp_path / "s.yaml").write_text("name: s\nsampler:\n  name: tpe\n  n_startup_trails: 3\n")
    with pytest.raises(UserError, match=r"did you mean 'n_startup_trials'.*s\.yaml, line 4\)"):
        read_study(tmp_path / "s.yaml")


def test_a_spec_file_names_its_line(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("name: a\nrun:\n  recipe:\n    epochs: -1\n")
    with pytest.raises(UserError, match=r"run.recipe.epochs: .* \(.*s.yaml, line 4\)"):
        read_study(path)


# What is stored


def test_a_study_from_python_is_optunas_own():
    study = ss.run_study(spec())
    assert isinstance(study, optuna.Study)
    assert len(study.trials) == 3
    assert 0 < study.best_value <= 1
    for trial in study.trials:
        attrs = trial.user_attrs
        assert attrs["config"]["recipe"]["lr"] == trial.params["recipe.lr"]
        assert attrs["config"]["seed"] == attrs["seed"]
        assert {"density", "val_accuracy", "test_accuracy", "seconds", "sha256", "versions", "worker"} <= attrs.keys()
    assert len({trial.user_attrs["seed"] for trial in study.trials}) == 3
    assert os.path.exists("runs/studies.db")
    with open_storage("sqlite:///runs/studies.db").engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


def test_inspection():
    study = ss.run_study(spec())
    storage = open_storage("sqlite:///runs/studies.db")
    (listed,) = list_studies(storage)
    assert (listed["name"], listed["states"], listed["best"]) == ("toy", {"COMPLETE": 3}, study.best_value)
    assert [row["number"] for row in trial_rows(study)] == [0, 1, 2]
    assert best_trials(study)[0].number == study.best_trial.number
    assert json.loads(json.dumps(summarise_study(study)))["states"] == {"COMPLETE": 3}
    with pytest.raises(UserError, match="has no trial 7"):
        find_trial(study, 7)
    with pytest.raises(UserError, match=r"unknown study 'toi' .in sqlite:///.*: did you mean 'toy'"):
        load_study("toi", storage)


CHANNELS = {**RUN, "network": "small_conv", "extractor": {"name": "l1_filters"}, "recipe": {**RUN["recipe"], "lr": 0.05}}
WIDTHS = {"target.flops": {"float": [0.2, 0.8]}, "round_to": {"choice": [1, 4]}}


@pytest.mark.slow
def test_latency_as_an_objective_alone_and_beside_accuracy(tmp_path):
    study = ss.run_study(spec(run=CHANNELS, space=WIDTHS, objective="latency"))
    assert [direction.name for direction in study.directions] == ["MINIMIZE"]
    assert best_trials(study)[0].value == min(trial.value for trial in study.trials)
    assert all(0 < trial.value == trial.user_attrs["latency"] < 1000 for trial in study.trials)
    again = retrain_trial(best_trials(study)[0], tmp_path / "again")
    assert again.same
    assert again.subnetwork.origin.unit == "channel"
    for trial in study.trials:  # met within a unit, or as many as go together
        assert trial.user_attrs["flops_ratio"] == pytest.approx(
            trial.params["target.flops"], abs=0.015 * trial.params["round_to"]
        )
    front = ss.run_study(spec("front", run=CHANNELS, space=WIDTHS, objective=["val_accuracy", "latency"]))
    assert {trial.number for trial in best_trials(front)} == {trial.number for trial in front.best_trials}
    assert [t.user_attrs["sha256"] for t in front.trials] == [t.user_attrs["sha256"] for t in study.trials]


@pytest.mark.parametrize(("bound", "broken"), [("<= 1000", {}), ("<= 0.000001", {"latency": 3})])
def test_latency_as_a_constraint(bound, broken):
    study = ss.run_study(spec(run=CHANNELS, space=WIDTHS, constraints={"latency": bound}))
    record = summarise_study(study)
    assert record["states"] == {"COMPLETE": 3}  # it is measured when a run has ended
    assert record["broken"] == broken
    assert bool(best_trials(study)) == (not broken)
    for row in trial_rows(study):
        assert row["constraints"]["latency"] == pytest.approx(row["measured"]["latency"] - float(bound[3:]))


def test_several_objectives_give_a_front():
    study = ss.run_study(spec(objective=["val_accuracy", "density"], space={"extractor": {"density": None}}, sampler="nsga2"))
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert len(best_trials(study)) >= 1


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "cmaes", "nsga2"])
def test_every_sampler_runs(sampler):
    assert len(finished(ss.run_study(spec(sampler=sampler)))) == 3


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_pruners_stop_trials_early(pruner):
    run = {**RUN, "recipe": {**RUN["recipe"], "epochs": 9}}
    options = {"median": {"name": "median", "n_startup_trials": 2, "n_warmup_steps": 1}, "hyperband": {"name": "hyperband"}}
    study = ss.run_study(
        spec(run=run, pruner=options[pruner], parallel=1, trials=8, space={"recipe.lr": {"float": [0.001, 100], "log": True}})
    )
    states = [t.state.name for t in study.trials]
    assert states.count("PRUNED") >= 1
    assert len(finished(study)) == 8
    pruned = next(t for t in study.trials if t.state.name == "PRUNED")
    assert pruned.user_attrs["reason"].startswith(f"{pruner} stopped it after epoch")
    assert pruned.last_step < 9


# Continuing


def params(study):
    return [trial.params for trial in study.trials]


@pytest.mark.parametrize("sampler", ["random", {"name": "tpe", "n_startup_trials": 3}])
def test_continued_is_the_same_as_never_stopped(sampler):
    whole = ss.run_study(spec(sampler=sampler, trials=6), storage="sqlite:///whole.db")
    for trials in (2, 5, 6):
        parts = ss.run_study(spec(sampler=sampler), storage="sqlite:///parts.db", trials=trials)
    assert params(parts) == params(whole)
    assert [t.user_attrs["sha256"] for t in parts.trials] == [t.user_attrs["sha256"] for t in whole.trials]


def test_a_finished_study_runs_nothing_more():
    ss.run_study(spec())
    assert len(ss.run_study(spec()).trials) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"space": {"recipe.lr": {"float": [1, 50], "log": True}}}, "space.recipe.lr was 1 to 100, log, now 1 to 50, log"),
        ({"run": {**RUN, "network": "lenet5"}}, "run.network.name was lenet_300_100, now lenet5"),
        ({"seed": 1}, "seed was 0, now 1"),
    ],
)
def test_a_changed_study_is_refused(change, message):
    ss.run_study(spec(trials=1))
    with pytest.raises(UserError, match=f"the study 'toy' exists with another specification: {message}"):
        ss.run_study(spec(**change))


def failed(reports):
    return optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL, intermediate_values=reports)


def test_a_study_that_trained_nothing_gives_its_name_to_the_corrected_one():
    prepare_study(spec(), DEFAULT_STORAGE).add_trial(failed({}))
    study = prepare_study(spec(seed=1), DEFAULT_STORAGE)
    assert (spec_of(study).seed, study.trials) == (1, [])
    study.add_trial(failed({}))
    assert len(prepare_study(spec(seed=1, trials=9), DEFAULT_STORAGE).trials) == 1  # a larger budget is no other specification


@pytest.mark.parametrize("begun", ["trained and failed", "interrupted", "running", "complete"])
def test_a_study_that_trained_something_is_kept(begun):
    study = prepare_study(spec(), DEFAULT_STORAGE)
    match begun:
        case "trained and failed":
            study.add_trial(failed({1: 0.5}))
        case "interrupted":
            study.enqueue_trial({}, user_attrs={"worker": {}})
        case "running":
            study.ask()
        case "complete":
            study.add_trial(optuna.trial.create_trial(value=0.5))
    with pytest.raises(UserError, match="exists with another specification: seed was 0, now 1"):
        prepare_study(spec(seed=1), DEFAULT_STORAGE)
    assert len(load_study("toy", open_storage(DEFAULT_STORAGE)).trials) == 1


def same(study, other):
    """Everything of the trials that does not depend on when and where they ran."""
    times = ("worker", "beat", "interruptions", "seconds", "folder")

    def rows(one):
        return [
            (
                t.number,
                t.state,
                t.params,
                t.values,
                t.intermediate_values,
                {k: v for k, v in t.user_attrs.items() if k not in times},
            )
            for t in one.get_trials()
        ]

    return rows(study) == rows(other)


def test_an_interrupted_trial_goes_on_from_its_checkpoint():
    whole = ss.run_study(spec(trials=2), storage="sqlite:///whole.db")
    calls = []

    def stop_in_the_first_trial():
        calls.append(1)
        return len(calls) >= 3

    with pytest.raises(Interrupted):
        ss.run_study(spec(trials=2), storage="sqlite:///parts.db", should_stop=stop_in_the_first_trial)
    study = load_study("toy", open_storage("sqlite:///parts.db"))
    assert [t.state.name for t in study.trials] == ["WAITING"]
    assert study.trials[0].user_attrs["interruptions"][0]["why"] == "interrupted"
    study = ss.run_study(spec(trials=2), storage="sqlite:///parts.db")
    assert same(study, whole)


def test_a_trial_of_a_killed_process_goes_on():
    whole = ss.run_study(spec(trials=3), storage="sqlite:///whole.db")
    gone = subprocess.Popen(["true"])
    gone.wait()
    study = ss.run_study(spec(trials=1))
    scheduler = Scheduler(study, spec(), 3)
    lease = scheduler.next()
    lease.note(worker={**lease.study.trials[1].user_attrs["worker"], "pid": gone.pid, "token": "another"})
    study = ss.run_study(spec(trials=3), trials=3)
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 3
    assert study.trials[1].user_attrs["interruptions"][0]["died"]
    assert same(study, whole)


# Failing


def test_a_loss_that_is_no_number_fails_the_trial_and_not_the_study():
    lr = {"recipe.lr": {"choice": [10.0, 1e30]}, "extractor": {"rescale": "none"}}
    study = ss.run_study(
        spec(run={**RUN, "extractor": "random"}, space={"recipe.lr": lr["recipe.lr"]}, trials=3, sampler="random", seed=1)
    )
    failed = [t for t in study.trials if t.state.name == "FAIL"]
    assert len(finished(study)) == 3
    assert failed
    assert all("the loss is" in t.user_attrs["reason"] and "at step" in t.user_attrs["reason"] for t in failed)


def test_a_study_whose_every_trial_fails_stops():
    with pytest.raises(RunError, match="5 trials failed in a row, the last: the loss is"):
        ss.run_study(spec(run={**RUN, "extractor": "random"}, space={"recipe.lr": {"float": [1e30, 2e30]}}, trials=50))


def test_a_fault_in_the_network_is_kept_with_its_traceback(tmp_path, monkeypatch):
    (tmp_path / "faulty.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Linear):\n"
        "    calls = 0\n"
        "    def forward(self, x):\n"
        "        self.calls += self.training\n"
        "        if self.calls > 3: raise KeyError('no such luck')\n"  # later than the trial before training
        "        return super().forward(x.flatten(1))\n"
        "def make(num_classes): return Net(64, num_classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RunError, match="no such luck"):
        ss.run_study(spec(run={**RUN, "network": "faulty:make"}))
    study = load_study("toy", open_storage("sqlite:///runs/studies.db"))
    assert study.trials[0].user_attrs["reason"] == "KeyError: 'no such luck' (faulty, line 6)"
    assert "faulty.py" in study.trials[0].user_attrs["traceback"]


def test_a_worker_of_a_finished_study_runs_nothing():
    ss.run_study(spec(trials=2))
    assert run_worker("toy", "sqlite:///runs/studies.db", trials=2) == []


@pytest.mark.parametrize("url", ["nonsense", "sqlite:///missing.db", "postgresql://me:secret@127.0.0.1:1/none"])
def test_a_storage_that_is_not_there(url):
    with pytest.raises(UserError) as caught:
        open_storage(url)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


# Again


def test_a_trial_trained_again_is_the_same_subnetwork(tmp_path):
    study = ss.run_study(spec())
    trial = best_trials(study)[0]
    again = retrain_trial(trial, tmp_path / "again")
    assert again.same
    assert again.overlap == 1.0
    assert again.in_words() == "the same subnetwork, bit for bit"
    assert ss.Subnetwork.load(tmp_path / "again" / "subnetwork.safetensors").sha256 == trial.user_attrs["sha256"]


def test_bytes_that_cannot_be_measured_cost_no_training():
    """The size of a file that is to hold a seed which will not make its weights."""
    run = {**RUN, "extractor": "magnitude", "weights": "seed"}
    with pytest.raises(RunError, match="magnitude trains weights, so a seed cannot generate them"):
        ss.run_study(spec(objective="bytes", run=run, space={"recipe.lr": {"float": [0.01, 0.1]}}, trials=5))
    assert not list(Path("runs").rglob("metrics.jsonl"))


def test_a_trial_trained_again_is_stored_the_other_way(tmp_path):
    """Its study asks for a seed, which will not make weights that were trained: said before training, and mended by a word."""
    study = ss.run_study(spec())
    trial = best_trials(study)[0]
    trial.user_attrs["config"] |= {"weights": "seed", "extractor": {"name": "magnitude"}}
    with pytest.raises(UserError, match="magnitude trains weights, so a seed cannot generate them"):
        retrain_trial(trial, tmp_path / "again", should_stop=pytest.fail)
    assert not (tmp_path / "again").exists()
    assert retrain_trial(trial, tmp_path / "again", weights="values").subnetwork.metrics["bytes"]
    with pytest.raises(UserError, match="weights: input should be 'values' or 'seed', got 'none'"):
        retrain_trial(trial, tmp_path / "more", weights="none")


def test_a_trial_that_comes_out_otherwise_says_by_how_much(tmp_path):
    study = ss.run_study(spec())
    trial = study.trials[0]
    trial.user_attrs["config"]["seed"] += 1
    trial.user_attrs["versions"]["torch"] = "1.0"
    again = retrain_trial(trial, tmp_path / "again")
    assert again.same is False
    assert 0 < again.overlap < 1
    assert again.in_words().startswith("not bit-identical (torch was 1.0, is ")


def test_densities_by_layer_are_searched_and_keep_the_total():
    run = {**RUN, "extractor": {"name": "random", "density": 0.2}}
    wanted = spec(run=run, space={"density_per_layer": True}, sampler="random", trials=2)
    ss.run_study(wanted, trials=1)
    study = ss.run_study(wanted, trials=2)  # `true` means the same layers again
    for trial in study.trials:
        shares = trial.user_attrs["config"]["extractor"]["allocation"]
        assert {f"density_per_layer.{layer}": share for layer, share in shares.items()} == trial.params
        assert len(shares) == 3
        assert trial.user_attrs["density"] == pytest.approx(0.2, abs=1e-4)
    assert study.trials[0].params != study.trials[1].params
