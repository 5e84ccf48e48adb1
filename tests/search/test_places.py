"""Trials by their place: any number of workers, in any order, some of them stopped, finds the same trials."""

import random

import numpy as np
import pytest
from optuna.trial import TrialState

import subnet_search as ss
from subnet_search.core.errors import RunError
from subnet_search.extraction.config_file import check
from subnet_search.search.engine.multiobjective_pruner import behind
from subnet_search.search.engine.scheduler import Scheduler
from subnet_search.search.engine.trial_runner import Ending
from subnet_search.search.engine.worker import run_worker
from subnet_search.search.spec.study_spec import StudySpec
from subnet_search.search.storage.connect import load_study, open_storage
from subnet_search.search.storage.ranking import rank
from subnet_search.search.studies.launcher import prepare_study

pytestmark = pytest.mark.slow

RUN = {
    "network": "lenet_300_100",
    "data": {"name": "digits", "limit": 200},
    "recipe": {"epochs": 9, "device": "cpu"},
}
SPACE = {"recipe.lr": {"float": [0.1, 100], "log": True}, "extractor": ["temperature", "rescale"]}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def spec(**more):
    return check(StudySpec, {"name": "toy", "run": RUN, "space": SPACE, "trials": 18, "parallel": 4, **more})


def value(lease, seed=0):
    """A stand-in for training: a function of the configuration alone."""
    config = lease.config
    return -abs(config.recipe.lr - 10) / 100 + config.extractor.temperature / 10 + (config.seed % 7) / 1000


class Steps:
    """A trial in the hands of a worker that can be left alone after any epoch."""

    def __init__(self, lease, spec):
        self.lease, self.spec, self.epoch = lease, spec, max(lease.reports, default=0)
        for step, seen in sorted(lease.reports.items()):
            lease.in_memory.report(seen, step)
            lease.in_memory.should_prune()

    def go_on(self):
        """One epoch; whether the trial has ended."""
        self.epoch += 1
        now = value(self.lease) * self.epoch / 9
        single = len(self.spec.objective) == 1
        if single:
            self.lease.in_memory.report(now, self.epoch)
            self.lease.report(self.epoch, now)
            if self.epoch < 9 and self.lease.in_memory.should_prune():
                self.lease.end(TrialState.PRUNED, [now], {"reason": "pruned", "steps": self.epoch})
                return True
        if self.epoch < 9:
            return False
        density = self.lease.config.extractor.temperature
        self.lease.end(TrialState.COMPLETE, [now] if single else [now, density], {"steps": 9, "sha256": self.lease.config.seed})
        return True


def run_with(spec, workers, seed, url, deaths=0.0):
    """A study by so many workers that take turns at random; with `deaths`, they leave trials half done."""
    rng = random.Random(seed)
    prepare_study(spec, url)
    desks = [Scheduler(load_study(spec.name, open_storage(url)), spec, spec.trials) for _ in range(workers)]
    hands = [None] * workers
    done = set()
    while len(done) < workers:
        index = rng.randrange(workers)
        if hands[index] is None:
            lease = desks[index].next()
            if lease == "done":
                done.add(index)
            elif lease != "wait":
                hands[index] = Steps(lease, spec)
        elif rng.random() < deaths:
            hands[index].lease.release("killed")
            hands[index] = None
        elif hands[index].go_on():
            hands[index] = None
    return load_study(spec.name, open_storage(url))


def rows(study):
    return [
        (t.number, t.state.name, t.params, t.values, t.intermediate_values, t.user_attrs["config"]) for t in study.get_trials()
    ]


LR, FEW = SPACE["recipe.lr"], {"n_startup_trials": 4}
TWO = ["val_accuracy", "density"]
METHODS = {"choice": {"gumbel": ["temperature"], "concrete": {"temperature": {"float": [0.3, 3]}}}}
CASES = {
    "tpe": {"sampler": {"name": "tpe", **FEW}},
    "random": {"sampler": "random"},
    "gp": {"sampler": {"name": "gp", **FEW}, "trials": 12},
    "cmaes": {"sampler": {"name": "cmaes"}, "space": {"recipe.lr": LR, "extractor": ["temperature"]}},
    "nsga2": {"sampler": {"name": "nsga2", "population_size": 5}, "objective": TWO},
    "tpe, two objectives": {"sampler": {"name": "tpe", **FEW}, "objective": TWO},
    "tpe, hyperband": {"sampler": {"name": "tpe", **FEW}, "pruner": {"name": "hyperband", "reduction_factor": 3}},
    "random, median": {"sampler": "random", "pruner": {"name": "median", "n_startup_trials": 3}},
    "methods": {"sampler": {"name": "tpe", **FEW}, "space": {"extractor": METHODS, "recipe.lr": LR}},
}
QUICK = ("tpe", "random, median")
LONGER = ("random", "cmaes", "gp", "nsga2", "tpe, two objectives")  # like others that are always run
SPEED = {**dict.fromkeys(CASES, pytest.mark.slow), **dict.fromkeys(QUICK, ()), **dict.fromkeys(LONGER, pytest.mark.long)}


@pytest.mark.parametrize("case", [pytest.param(case, marks=SPEED[case]) for case in CASES])
def test_any_number_of_workers_finds_the_same_trials(case):
    wanted = spec(**CASES[case])
    alone = run_with(wanted, 1, 0, "sqlite:///alone.db")
    many = run_with(wanted, 6, 1, "sqlite:///many.db", deaths=0.1)
    assert rows(many) == rows(alone)
    finished = [t for t in alone.get_trials() if t.state.name in ("COMPLETE", "PRUNED")]
    assert len(finished) == wanted.trials == len(alone.get_trials())
    if "pruner" in CASES[case]:
        assert any(t.state.name == "PRUNED" for t in finished)
    assert len({str(t.params) for t in finished}) > wanted.trials // 2


def test_more_workers_than_parallel_wait():
    wanted = spec(parallel=2)
    study = prepare_study(wanted, "sqlite:///s.db")
    desks = [Scheduler(study, wanted, wanted.trials) for _ in range(3)]
    assert [desk.next() == "wait" for desk in desks] == [False, False, True]


def fake(lease, spec, load, should_stop):
    """A trial that takes no time."""
    if lease.config.recipe.lr > 50:
        return Ending(TrialState.FAIL, None, {"reason": "too fast"})
    attrs = {"steps": 10, "sha256": str(lease.config.seed), "val_accuracy": value(lease), "density": 0.1}
    return Ending(TrialState.COMPLETE, [value(lease)], attrs)


def by_fake(wanted, **more):
    prepare_study(wanted, "sqlite:///s.db")
    run_worker("toy", "sqlite:///s.db", objective=fake, **more)
    return load_study("toy", open_storage("sqlite:///s.db"))


def test_failed_trials_do_not_count():
    study = by_fake(spec(sampler="random", parallel=1))
    states = [t.state.name for t in study.get_trials()]
    assert states.count("COMPLETE") == 18
    assert "FAIL" in states
    assert states[-1] == "COMPLETE"


def test_the_best_are_repeated_on_fresh_seeds_and_ranked_by_their_mean():
    wanted = spec(sampler="random", repeats=3, promising=2)
    study = by_fake(wanted)
    trials = study.get_trials()
    repeats = [t for t in trials if "repeats" in t.user_attrs]
    first = sorted((t for t in trials if t.state.name == "COMPLETE" and t not in repeats), key=lambda t: -t.values[0])[:2]
    assert [t.user_attrs["repeats"] for t in repeats] == [first[0].number] * 2 + [first[1].number] * 2
    assert len({t.user_attrs["seed"] for t in repeats} | {t.user_attrs["seed"] for t in first}) == 6
    for trial in repeats:
        base = trials[trial.user_attrs["repeats"]]
        assert trial.params == base.params
        assert trial.user_attrs["config"] == {**base.user_attrs["config"], "seed": trial.user_attrs["seed"]}
    best = rank(study)
    assert {ranked.trial.number for ranked in best} == {t.number for t in first}
    assert best[0].mean == max(ranked.mean for ranked in best)
    assert len(best[0].values) == 3
    assert best[0].spread[0] == (min(best[0].values)[0], max(best[0].values)[0])
    by_fake(wanted)
    assert len(study.get_trials()) == len(trials)


@pytest.mark.parametrize("duplicates", ["rerun", "reuse", "prune"])
def test_configurations_that_come_again(duplicates):
    space = {"recipe.lr": {"choice": [1.0, 2.0]}, "extractor": {"temperature": {"choice": [0.5, 1.0]}}}
    study = by_fake(spec(sampler="random", duplicates=duplicates, space=space, parallel=1, trials=12))
    trials, seen = study.get_trials(), {}
    again = [t for t in trials if seen.setdefault(str(t.params), t) is not t]
    assert len(seen) == 4
    assert len(trials) == 12
    for trial in again:
        twin = seen[str(trial.params)]
        if duplicates == "reuse":
            assert (trial.values, trial.user_attrs["reuses"]) == (twin.values, twin.number)
        elif duplicates == "prune":
            assert (trial.state.name, trial.user_attrs["reason"]) == ("PRUNED", f"the same as trial {twin.number}")
        else:
            assert trial.user_attrs["sha256"] != twin.user_attrs["sha256"]


def test_a_budget_in_steps():
    study = by_fake(spec(sampler="random", parallel=1, steps=75))
    assert sum(t.user_attrs.get("steps", 0) for t in study.get_trials()) == 80


def test_a_timeout_begins_nothing_more():
    prepare_study(spec(), "sqlite:///s.db")
    assert run_worker("toy", "sqlite:///s.db", objective=fake, timeout=1e-9) == []


def test_a_space_without_valid_runs_ends(monkeypatch):
    wanted = spec(sampler="random")
    prepare_study(wanted, "sqlite:///s.db")

    def refuse(self, values):
        raise ss.UserError("no such run")

    monkeypatch.setattr(StudySpec, "config", refuse)
    with pytest.raises(RunError, match="20 trials in a row had an invalid configuration, the last: no such run"):
        run_worker("toy", "sqlite:///s.db", objective=fake)


def test_queued_trials_come_first():
    first = {"recipe.lr": 3.0, "extractor.temperature": 1.0}
    study = by_fake(spec(sampler="random", enqueue=[first, {"recipe.lr": 4.0}], trials=4))
    params = [t.params for t in study.get_trials()]
    assert {key: params[0][key] for key in first} == first
    assert params[0].keys() == params[1].keys() == params[3].keys()
    assert params[1]["recipe.lr"] == 4.0


def test_constraints_known_before_training_save_the_training():
    run = {**RUN, "extractor": {"name": "random"}, "recipe": {**RUN["recipe"], "epochs": 1}}
    wanted = spec(
        run=run,
        space={"extractor": {"density": {"choice": [0.05, 0.4]}}},
        constraints={"density": "<= 0.1", "flops_ratio": "<= 0.5"},
        sampler="random",
        trials=6,
    )
    study = ss.run_study(wanted, storage="sqlite:///c.db")
    trials = study.get_trials()
    assert {t.state.name for t in trials} == {"COMPLETE", "PRUNED"}
    for trial in trials:
        broken = trial.params["extractor.density"] == 0.4
        assert (trial.state.name == "PRUNED") == broken
        assert (trial.constraints["density"] > 0) == broken
        if broken:
            assert trial.user_attrs["reason"] == "density <= 0.1 is violated before training: 0.4"
            assert not (tmp := trial.user_attrs.get("steps")), tmp
    assert study.best_trial.params["extractor.density"] == 0.05


def test_wilcoxon_compares_the_seeds_of_trials():
    run = {**RUN, "extractor": {"name": "random", "density": 0.3}, "recipe": {**RUN["recipe"], "epochs": 2}}
    wanted = spec(run=run, space={"recipe.lr": {"choice": [0.3, 1e-5]}}, sampler="random", seed=1, parallel=1, trials=4)
    wanted = check(
        StudySpec, {**wanted.model_dump(), "run": run, "pruner": {"name": "wilcoxon", "p_threshold": 0.3}, "repeats": 4}
    )
    study = ss.run_study(wanted, storage="sqlite:///w.db")
    good = next(t for t in study.get_trials() if t.params["recipe.lr"] == 0.3)
    poor = [t for t in study.get_trials() if t.params["recipe.lr"] == 1e-5 and t.number > good.number]
    assert len(good.user_attrs["seeds"]) == len({s["seed"] for s in good.user_attrs["seeds"]}) == 4
    assert good.values[0] == pytest.approx(sum(s["values"][0] for s in good.user_attrs["seeds"]) / 4)
    assert poor
    assert all(t.state.name == "PRUNED" and "wilcoxon stopped it after" in t.user_attrs["reason"] for t in poor)


def test_rungs_stop_what_is_behind_in_every_objective():
    run = {**RUN, "extractor": {"name": "random"}, "recipe": {"epochs": 9, "device": "cpu", "lr": 0.1}}
    space = {"extractor": {"density": {"float": [0.05, 0.5]}}, "recipe.lr": {"choice": [0.1, 1e-5]}}
    wanted = spec(
        run=run, space=space, objective=["val_accuracy", "density"], pruner="rungs", sampler="random", parallel=2, trials=14
    )
    study = ss.run_study(wanted, storage="sqlite:///r.db")
    pruned = [t for t in study.get_trials() if t.state.name == "PRUNED"]
    assert pruned
    assert all(t.user_attrs["reason"].startswith("pruned by rank at rung") for t in pruned)
    for trial in pruned:
        rung, (accuracy, density) = list(trial.user_attrs["rungs"].items())[-1]
        seen = [t.user_attrs["rungs"].get(rung, [0, 1]) for t in study.get_trials()[: trial.number - 1]]
        assert any(a >= accuracy and d <= density for a, d in seen)


@pytest.mark.parametrize(
    ("costs", "stops"),
    [
        ([[1, 1], [9, 9]], False),  # fewer than three at the rung: go on
        ([[1, 1], [2, 2], [3, 3]], True),
        ([[2, 2], [3, 3], [1, 1]], False),
        ([[1, 3], [3, 1], [2, 2]], False),  # nobody is better in both
        ([[1, 3], [3, 1], [0, 0], [2, 4]], True),
        ([[1, 1], [2, 2], [3, 3], [4, 4], [5, 5], [1.5, 1.5]], False),  # second of six: within the best third
    ],
)
def test_who_is_behind(costs, stops):
    assert behind(np.array(costs, dtype=float), 3) == stops
