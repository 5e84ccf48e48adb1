"""Warm starts: what a study tries first, and what it knows from others."""

import logging
import math

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

import subnet_search as ss
from subnet_search.core.errors import UserError
from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.config_file import check
from subnet_search.search.engine.scheduler import Scheduler
from subnet_search.search.spec.study_spec import StudySpec
from subnet_search.search.storage.connect import open_storage
from subnet_search.search.storage.transfer import write_export
from subnet_search.search.studies.launcher import prepare_study
from subnet_search.search.studies.processes import finished

pytestmark = pytest.mark.slow

RUN = {
    "network": "lenet_300_100",
    "data": {"name": "digits", "limit": 200},
    "extractor": "random",
    "recipe": {"epochs": 1, "threads": 1, "device": "cpu"},
}
SPACE = {"recipe.lr": {"float": [0.01, 1], "log": True}, "recipe.momentum": {"float": [0, 0.95]}}
URL = "sqlite:///s.db"


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def spec(name="new", **more):
    return check(StudySpec, {"name": name, "run": RUN, "space": SPACE, "trials": 2, "parallel": 1, **more})


def trial(lr, accuracy, state=TrialState.COMPLETE, momentum=0.9, method="random", **attrs):
    """A trial as a search over the learning rate alone would leave it."""
    config = check(RunConfig, {**RUN, "extractor": method, "recipe": {"lr": lr, "momentum": momentum}, "seed": 7}).resolve()
    return create_trial(
        state=state,
        values=[accuracy] if state == TrialState.COMPLETE else None,
        params={"recipe.lr": lr},
        distributions={"recipe.lr": FloatDistribution(1e-4, 10, log=True)},
        user_attrs={"config": config.dump(), "seed": 7, "val_accuracy": accuracy, "density": 0.1, **attrs},
    )


def source(*trials, name="old"):
    study = optuna.create_study(study_name=name, storage=open_storage(URL, create=True), direction="maximize")
    study._storage.set_study_system_attr(study._study_id, "study:metric_names", ["val_accuracy"])
    for one in trials:
        study.add_trial(one)
    return study


# What is tried first


def test_values_of_some_keys_are_tried_first_and_the_rest_is_drawn():
    study = ss.run_study(spec(enqueue=[{"recipe.lr": 0.5}, {"recipe.lr": 0.02, "recipe.momentum": 0}]), storage=URL)
    assert [t.params["recipe.lr"] for t in study.trials] == [0.5, 0.02]
    assert 0 < study.trials[0].params["recipe.momentum"] < 0.95
    assert study.trials[1].user_attrs["config"]["recipe"]["momentum"] == 0


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"recipe.lrr": 0.5}, "enqueue, item 2: unknown searched key 'recipe.lrr': did you mean 'recipe.lr'"),
        ({"recipe.lr": 5}, "enqueue, item 2: recipe.lr: 5 is outside the searched domain 0.01 to 1, log"),
        ({}, "enqueue, item 2: it has no values"),
        ({"study": "odl", "best": 2}, "enqueue, item 2: unknown study 'odl' .in sqlite:///.*db.*: did you mean 'old'"),
        ({"study": "old", "bets": 2}, r"enqueue, item 2: takes `study` \(a name\) and `best` \(a whole number, 1 or more\)"),
        ({"study": "old", "best": 0}, "enqueue, item 2: takes `study`"),
        ({"study": "old", "best": True}, "enqueue, item 2: takes `study`"),
        ({"study": 3}, "enqueue, item 2: takes `study`"),
        ({"study": "new"}, "enqueue, item 2: a study cannot import its own results"),
        ({"study": "old.db"}, "enqueue, item 2: cannot read old.db: No such file"),
    ],
)
def test_an_item_that_cannot_be_is_named_and_leaves_no_study(item, message):
    source(trial(0.1, 0.9))
    with pytest.raises(UserError, match=message):
        prepare_study(spec(enqueue=[{"recipe.lr": 0.5}, item]), URL)
    assert optuna.get_all_study_names(open_storage(URL)) == ["old"]


def queued(study):
    return [t.system_attrs["fixed_params"] for t in study.trials]


def test_the_best_of_another_study_come_with_what_was_set_there():
    source(trial(0.1, 0.7), trial(0.2, 0.9), trial(0.3, 0.8, momentum=0.5), trial(0.4, 0.1))
    study = prepare_study(spec(enqueue=[{"study": "old", "best": 3}]), URL)
    assert queued(study) == [
        {"recipe.lr": 0.2, "recipe.momentum": 0.9},
        {"recipe.lr": 0.3, "recipe.momentum": 0.5},
        {"recipe.lr": 0.1, "recipe.momentum": 0.9},
    ]
    assert len(prepare_study(spec("one", enqueue=[{"study": "old"}]), URL).trials) == 1


def test_what_this_study_does_not_look_at_is_left_out_and_told(caplog):
    write_export(source(trial(5, 0.9), trial(5, 0.8), trial(0.1, 0.7, method="snip")), "old.db")
    with caplog.at_level(logging.WARNING):
        study = prepare_study(spec(enqueue=[{"study": "old.db", "best": 3}]), URL)
    assert queued(study) == [{"recipe.momentum": 0.9}]  # the second would be the same once more
    assert (
        "enqueue, item 1: left out, not in this study's space: recipe.lr 5.0 of trial 0; recipe.lr 5.0 of trial 1;"
        in caplog.text
    )
    assert "trial 2, of another method (snip)" in caplog.text
    with pytest.raises(UserError, match="enqueue, item 1: no complete trial of 'old' has values in this study's search space"):
        prepare_study(spec("more", space={"recipe.lr": {"float": [20, 30]}}, enqueue=[{"study": "old"}]), URL)


def test_the_best_of_a_study_across_methods_keep_their_method():
    space = {"extractor": {"choice": ["random", "snip"]}, "recipe.lr": [{"when": {"extractor": "snip"}, "float": [0.01, 1]}]}
    source(trial(0.1, 0.9, method="snip"), trial(0.2, 0.8))
    study = prepare_study(spec(space=space, enqueue=[{"study": "old", "best": 2}]), URL)
    first, second = queued(study)
    assert (first["extractor"], first["recipe.lr @snip"]) == ("snip", 0.1)
    assert second["extractor"] == "random"
    assert not any(name.startswith("recipe.lr") for name in second)
    assert {name for name in second if "density" in name} == {"extractor.density @random"}


# What is known from the start


def test_results_of_another_study_are_known_and_do_not_count(caplog):
    old = source(
        trial(0.1, 0.7, sha256="a"),
        trial(0.2, 0.6, TrialState.PRUNED),
        trial(0.3, 0.8),
        trial(5, 0.9),
        trial(0.4, 0.5, method="snip"),
        trial(0.3, 0.75, repeats=2),
        trial(0.3, 0.8, TrialState.FAIL),
    )
    with caplog.at_level(logging.WARNING):
        study = prepare_study(spec(imports=["old"]), URL)
    assert "imports: 2 results of 'old' cannot be used, 2 can: 1 with recipe.lr outside" in caplog.text
    assert "1 of another method (snip)" in caplog.text
    first, second = study.trials
    assert (first.params, first.values) == ({"recipe.lr": 0.1, "recipe.momentum": 0.9}, [0.7])
    assert first.distributions == {
        "recipe.lr": FloatDistribution(0.01, 1, log=True),
        "recipe.momentum": FloatDistribution(0, 0.95),
    }
    assert first.user_attrs == {
        **{key: old.trials[0].user_attrs[key] for key in ("config", "seed", "sha256", "val_accuracy", "density")},
        "known": "old",
    }
    assert second.params["recipe.lr"] == 0.3
    assert finished(study) == 0


def test_known_results_steer_the_sampler_and_the_budget_is_met_beside_them():
    tpe = {"name": "tpe", "n_startup_trials": 12}
    source(*(trial(0.05 + index / 1000, 0.99 if index < 5 else 0.1, momentum=index / 30) for index in range(20)))
    found = {}
    for name, imports in (("cold", []), ("warm", ["old"]), ("again", ["old"])):
        study = ss.run_study(spec(name, imports=imports, sampler=tpe), storage=URL)
        found[name] = [t.params for t in study.trials if "known" not in t.user_attrs]
        assert len(found[name]) == 2
        assert len(study.trials) == 2 + 20 * bool(imports)
    assert found["warm"] == found["again"]  # the same specification and sources give the same study
    assert found["warm"] != found["cold"]
    assert found["warm"][0]["recipe.momentum"] < 5 / 30 + 0.2  # near the best that are known; those begin without a start-up


def test_the_objectives_and_constraints_are_this_studys(caplog):
    source(trial(0.1, 0.7, flops=500.0), trial(0.2, 0.8), trial(0.3, 0.9, flops=math.nan), trial(0.3, 0.9, flops=900.0))
    asked = {"objective": ["flops", "val_accuracy"], "constraints": {"density": "<= 0.05", "val_accuracy": ">= 0.75"}}
    study = prepare_study(spec(imports=["old"], **asked), URL)
    assert [t.values for t in study.trials] == [[500.0, 0.7], [900.0, 0.9]]
    assert [t.constraints["val_accuracy"] for t in study.trials] == [pytest.approx(0.05), pytest.approx(-0.15)]
    assert all(t.constraints["density"] == pytest.approx(0.05, rel=1e-2) for t in study.trials)
    assert "2 without flops" in caplog.text


@pytest.mark.parametrize(
    ("imports", "more", "message"),
    [
        (["old"], {"constraints": {"latency": "<= 3"}}, "imports: no usable result in 'old': 1 without latency"),
        (["old"], {"space": {"recipe.lr": {"float": [1, 2]}}}, "1 with recipe.lr outside this study's domain"),
        (["old"], {"space": {"network.init": {"choice": ["signed_constant"]}}}, "1 with network.init outside"),
        (["empty"], {}, "imports: no usable result in 'empty': it has no complete trial"),
        (["new"], {}, "import its own results"),
        (["nil"], {}, "unknown study 'nil'"),
        (["nil.db"], {}, "cannot read nil.db"),
    ],
)
def test_sources_of_which_nothing_fits_are_refused(imports, more, message):
    source(trial(0.1, 0.7))
    source(trial(0.1, 0.7, TrialState.FAIL), name="empty")
    with pytest.raises(UserError, match=message):
        prepare_study(spec(imports=imports, **more), URL)
    assert "new" not in optuna.get_all_study_names(open_storage(URL))


def test_a_study_that_is_not_ours_is_known_by_its_metric_names():
    study = source(name="theirs")
    choices = CategoricalDistribution(["sgd", "adam"])
    for optimizer in ("sgd", "adam"):
        params = {"recipe.optimizer": optimizer}
        study.add_trial(create_trial(params=params, distributions={"recipe.optimizer": choices}, value=0.5))
    space = {"recipe.optimizer": {"choice": ["adam", "sgd"]}}
    ours = prepare_study(spec(space=space, imports=["theirs"], enqueue=[{"study": "theirs"}]), URL)
    assert [t.params.get("recipe.optimizer") for t in ours.trials] == ["sgd", "adam", None]
    assert [t.values for t in ours.trials] == [[0.5], [0.5], None]


def test_a_file_and_a_study_that_already_knows_another_are_sources_too():
    write_export(source(trial(0.1, 0.7)), "old.db")
    prepare_study(spec("middle", imports=["old.db"]), URL).add_trial(trial(0.2, 0.8))
    sources = {"last": ["middle"], "both": ["old.db", "middle"]}
    for name, imports in sources.items():  # nothing is known twice
        study = prepare_study(spec(name, imports=imports), URL)
        assert [t.values for t in study.trials] == [[0.7], [0.8]]
        assert {t.user_attrs["known"] for t in study.trials} == set(imports)


def test_a_configuration_that_is_known_is_not_run_again():
    run = {**RUN, "recipe": {"lr": 0.1, "momentum": 0.9}}
    source(trial(0.1, 0.7, sha256="a"))
    study = prepare_study(
        spec(run=run, space={"recipe.lr": {"choice": [0.1]}}, imports=["old"], duplicates="reuse", trials=1), URL
    )
    scheduler = Scheduler(study, spec(run=run, space={"recipe.lr": {"choice": [0.1]}}, duplicates="reuse"), 1)
    assert scheduler.next() == "done"
    assert study.trials[1].user_attrs["reuses"] == 0
    assert study.trials[1].values == [0.7]
