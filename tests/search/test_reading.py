"""Reading whole studies: the same trials as Optuna's own reader gives."""

import math

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from sqlalchemy import event

from subnet_search.search.storage.connect import open_storage, rdb
from subnet_search.search.storage.read import read_trials, study_states

pytest_plugins = ["servers"]
DOMAINS = {
    "lr": FloatDistribution(1e-5, 1.0, log=True),
    "coarse": FloatDistribution(0.0, 1.0, step=0.25),
    "every": IntDistribution(1, 100, log=True),
    "unit": CategoricalDistribution(["weight", None, True, 2, 2.5, "ünit"]),
}


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request, tmp_path):
    if request.param == "sqlite":
        return open_storage(f"sqlite:///{tmp_path}/studies.db", create=True)
    return open_storage(request.getfixturevalue("postgres").url())


def trial(state: TrialState, values=None, reported=None, **params):
    return create_trial(
        state=state,
        values=values,
        params=params,
        distributions={name: DOMAINS[name] for name in params},
        user_attrs={
            "config": {"seed": 1, "long": "é" * 3000},
            "density": 0.25,
            "log": 'a"\n\\',
            "none": None,
            "nested": [[], {}],
        },
        system_attrs={"constraints:density": [-0.5]} if params else {},
        intermediate_values=reported or {},
    )


def fill(storage, name: str = "s") -> optuna.Study:
    """Every kind of trial, number and parameter that a study may hold; two studies, so that they could be mixed up."""
    study = optuna.create_study(storage=storage, study_name=name, directions=["maximize", "minimize"])
    other = optuna.create_study(storage=storage, study_name=f"{name}2")
    infinity = float("inf")
    study.add_trial(
        trial(TrialState.COMPLETE, [0.1 + 0.2, -infinity], {0: 1e-300, 5: infinity, 2: -infinity}, lr=1e-3, unit=None)
    )
    other.add_trial(trial(TrialState.COMPLETE, [7.0], {3: 1.0}, lr=1.0))
    for unit in DOMAINS["unit"].choices:
        study.add_trial(trial(TrialState.COMPLETE, [infinity, 2], unit=unit, every=3, coarse=0.75))
    study.add_trial(trial(TrialState.PRUNED, None, {1: 0.5}, every=100))
    study.add_trial(trial(TrialState.FAIL))
    study.enqueue_trial({"lr": 0.5})
    study.add_trial(trial(TrialState.RUNNING, None, {10: 0.1, 9: 0.2}, lr=0.1))
    study.add_trial(create_trial(state=TrialState.WAITING))
    return study


def test_trials_are_what_optuna_reads(storage):
    study = fill(storage)
    ours, theirs = read_trials(study), optuna.load_study(study_name="s", storage=storage).get_trials()
    assert ours == theirs
    assert len(ours) == 12
    for one, two in zip(ours, theirs, strict=True):  # dictionaries are equal in any order, but tables are not
        assert list(one.params) == list(two.params)
        assert one.duration == two.duration
        assert [type(value) for value in one.params.values()] == [type(value) for value in two.params.values()]
    [pending] = [t for t in ours if t.system_attrs.get("fixed_params")]
    assert pending.state == TrialState.WAITING


def test_a_reported_nan_is_a_nan(storage):
    study = optuna.create_study(storage=storage)
    study.ask().report(float("nan"), 3)
    [read] = read_trials(study)
    assert list(read.intermediate_values) == [3]
    assert math.isnan(read.intermediate_values[3])


def test_attributes_that_nobody_looks_at_are_left_out(storage):
    read = read_trials(fill(storage), without=("config", "log"))
    assert read[0].user_attrs == {"density": 0.25, "none": None, "nested": [[], {}]}


def test_an_empty_study_and_a_storage_without_a_database(storage):
    assert read_trials(optuna.create_study(storage=storage)) == []
    study = optuna.create_study()
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    assert read_trials(study) == study.get_trials()


def test_trials_are_of_one_moment(storage):
    """An attribute that another process writes while the tables are read is not half there."""
    study = optuna.create_study(storage=storage, study_name="s")
    running = study.ask()
    other = optuna.load_study(study_name="s", storage=open_storage(rdb(storage).url))
    reads = []

    @event.listens_for(storage.engine, "after_cursor_execute")
    def meanwhile(connection, cursor, statement, *_):
        if statement.startswith("SELECT trials.trial_id"):
            reads.append(statement)
            other.add_trial(trial(TrialState.COMPLETE, [1.0], lr=0.5))
            other._storage.set_trial_user_attr(running._trial_id, "late", 1)

    [read] = read_trials(study)
    assert reads
    assert read.user_attrs == {}
    assert [t.user_attrs.get("late") for t in read_trials(study)][:2] == [1, None]


def test_states_of_every_study(storage):
    fill(storage)
    optuna.create_study(storage=storage, study_name="empty")
    statements = []
    event.listen(storage.engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    states = study_states(storage)
    assert len(statements) == 1
    assert list(states) == ["s", "s2", "empty"]
    assert {state.name: count for state, count in states["s"].items()} == {
        "COMPLETE": 7,
        "PRUNED": 1,
        "FAIL": 1,
        "RUNNING": 1,
        "WAITING": 2,
    }
    assert (states["s2"], states["empty"]) == ({TrialState.COMPLETE: 1}, {})
    in_memory = optuna.storages.InMemoryStorage()
    fill(in_memory)
    assert study_states(in_memory) == {name: states[name] for name in ("s", "s2")}
