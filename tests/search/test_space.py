"""Spaces: methods with their own domains, conditions, densities by layer, and what is refused."""

import optuna
import pytest

from subnet_search.core.errors import UserError
from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.config_file import check
from subnet_search.search.queries.study_summary import _words
from subnet_search.search.spec.search_space import Space
from subnet_search.search.spec.study_spec import StudySpec

RUN = {"network": "lenet5", "data": "digits", "recipe": {"epochs": 2, "device": "cpu"}}
METHODS = ["gumbel", "edge_popup", "granet", "lottery", "synflow"]


def space(given, **run):
    return Space(given, check(RunConfig, {**RUN, **run}))


def draws(found, count=40):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(count):
        trial = study.ask()
        yield trial, found.suggest(trial)


def test_every_method_opens_its_own_domains_and_no_others():
    found = space({"extractor": {"choice": METHODS}})
    assert found.methods() == METHODS
    assert found.conditional
    seen = set()
    for trial, values in draws(found):
        method = values["extractor"]
        seen.add(method)
        assert all(name == "extractor" or name.endswith(f" @{method}") for name in trial.params)
        config = found.config(values)
        assert config.extractor.name == method
        for key, value in values.items():
            if key != "extractor":
                assert getattr(config.extractor, key.removeprefix("extractor.")) == value
    assert seen == set(METHODS)


def test_one_density_for_all_methods_and_a_choice_of_what_is_searched_of_each():
    found = space(
        {
            "extractor": {"choice": {"gumbel": ["temperature"], "synflow": None, "rigl": {"drop_fraction": 0.2}}},
            "extractor.density": 0.1,
        }
    )
    assert "extractor.density" not in {entry.key for entry in found.searched}
    for _, values in draws(found):
        extractor = found.config(values).extractor
        assert extractor.density == 0.1
        if extractor.name == "rigl":
            assert (extractor.drop_fraction, set(values)) == (0.2, {"extractor"})
    assert found.words()["extractor"] == "gumbel | synflow | rigl"


def test_conditions_by_hand_give_each_branch_a_parameter_of_its_own():
    found = space(
        {
            "extractor": {"choice": {"gumbel": [], "granet": [], "synflow": []}},
            "recipe.lr": [
                {"when": {"extractor": "gumbel"}, "float": [10, 100], "log": True},
                {"when": {"extractor": ["granet", "synflow"]}, "float": [0.01, 0.3], "log": True},
            ],
            "recipe.momentum": [{"when": {"extractor": "gumbel"}, "value": 0.5}],
        }
    )
    assert list(found.words()) == ["extractor", "recipe.lr @gumbel", "recipe.lr @granet|synflow"]
    for trial, values in draws(found):
        config = found.config(values)
        gumbel = values["extractor"] == "gumbel"
        assert (config.recipe.lr >= 10) == gumbel == ("recipe.lr @gumbel" in trial.params)
        assert (config.recipe.momentum == 0.5) == gumbel


def test_rates_of_weights_are_not_those_of_relevance():
    run = {"recipe": {**RUN["recipe"], "lr": 0.05}}
    found = space({"extractor": {"choice": {"gumbel": [], "granet": []}}}, **run)
    assert found.config({"extractor": "granet"}).recipe.lr == 0.05
    assert found.config({"extractor": "gumbel"}).recipe.lr == 50
    own = space({"extractor": {"choice": {"gumbel": [], "granet": []}}}, extractor={"name": "gumbel", "density": 0.2}, **run)
    assert (own.config({"extractor": "gumbel"}).recipe.lr, own.config({"extractor": "gumbel"}).extractor.density) == (0.05, 0.2)


def test_densities_by_layer_keep_the_total():
    found = space(
        {
            "extractor": {"choice": {"rigl": [], "edge_popup": []}},
            "extractor.density": 0.2,
            "density_per_layer": ["conv1", "fc"],
        }
    )
    (_, values), *_ = draws(found, 1)
    assert {"density_per_layer.conv1", "density_per_layer.fc"} <= values.keys()
    config = found.config(values)
    shares = config.extractor.allocation
    assert shares == {"conv1": values["density_per_layer.conv1"], "fc": values["density_per_layer.fc"]}


UNITS = {
    "extractor": {"choice": {"granet": [], "gumbel": [], "synflow": [], "l1_filters": []}},
    "unit": [
        {"when": {"extractor": ["granet", "gumbel", "synflow"]}, "choice": ["weight", "channel", "2:4"]},
        {"when": {"extractor": "l1_filters"}, "value": "channel"},
    ],
    "round_to": {"when": {"unit": "channel"}, "choice": [1, 8, 16]},
}


@pytest.mark.parametrize("amount", [{"extractor.density": 0.5}, {"target.flops": {"float": [0.3, 0.7]}}], ids=str)
def test_units_multiples_and_targets_are_searched_of_methods_that_have_them(amount):
    found, seen = space({**UNITS, **amount}), set()
    for trial, values in draws(found, 60):
        config = found.config(values)
        seen.add((config.extractor.name, config.unit))
        assert config.unit == values.get("unit", "channel")
        assert config.round_to == values.get("round_to")
        assert ("round_to @channel" in trial.params) == (config.unit == "channel")
        assert config.target == ({"flops": values["target.flops"]} if "target.flops" in values else None)
        assert config.extractor.density == values.get("target.flops", 0.5)
    three = {(name, unit) for name in ("granet", "gumbel", "synflow") for unit in ("weight", "channel", "2:4")}
    assert seen == three | {("l1_filters", "channel")}


def test_a_condition_may_name_more_than_the_space_has():
    when = {"extractor": ["gumbel", "edge_popup"]}
    found = space({"extractor": {"choice": {"gumbel": [], "granet": []}}, "recipe.lr": {"when": when, "float": [10, 100]}})
    assert {"recipe.lr" in values for _, values in draws(found)} == {True, False}
    with pytest.raises(UserError, match=r"unknown extractor 'edge_popup' .`when` of space.recipe.lr.: valid: granet, synflow"):
        space({"extractor": {"choice": ["granet", "synflow"]}, "recipe.lr": {"when": {"extractor": "edge_popup"}, "value": 1}})


def test_values_to_try_first_may_name_what_the_space_sets():
    found = space(UNITS)
    tried = found.named({"extractor": "synflow", "unit": "channel", "round_to": 8})
    assert tried == {"extractor": "synflow", "unit @granet|gumbel|synflow": "channel", "round_to @channel": 8}
    assert found.named({"extractor": "l1_filters", "unit": "channel"}) == {"extractor": "l1_filters"}
    with pytest.raises(UserError, match="unknown searched key 'unit'"):
        found.named({"extractor": "l1_filters", "unit": "weight"})
    with pytest.raises(UserError, match="unknown searched key 'round_to'"):
        found.named({"extractor": "synflow", "unit": "weight", "round_to": 8})


def test_where_a_target_says_how_much_is_kept_all_is_without_the_density():
    searched = {"target.flops": {"float": [0.2, 0.8]}}
    for given, run in (({"extractor": "all"}, {"target": {"flops": 0.5}}), ({"extractor": "all", **searched}, {})):
        keys = {entry.key for entry in space(given, extractor="granet", **run).searched}
        assert "extractor.drop_fraction" in keys
        assert "extractor.density" not in keys
    moved = space(searched, extractor={"name": "granet", "density": 0.5}, target={"flops": 0.5}).config({"target.flops": 0.3})
    assert (moved.target, moved.extractor.density) == ({"flops": 0.3}, 0.3)


def test_layers_are_those_of_the_units_that_trials_have():
    by_weights, by_channels = ["0", "3", "7", "9"], ["0", "3", "7"]  # the last layer has the classes
    given = {"extractor": {"choice": {"granet": [], "synflow": []}}, "density_per_layer": True}
    assert space(given).layers() == space({**given, "unit": "2:4"}).layers() == by_weights
    assert space({**given, "unit": "channel"}).layers() == space(given, unit="channel").layers() == by_channels
    with pytest.raises(UserError, match="the units channel and weight have different layers: use one unit"):
        space({**given, "unit": {"choice": ["weight", "channel"]}}).layers()
    with pytest.raises(UserError, match="the units channel and weight have different layers"):
        space({"extractor": {"choice": {"granet": [], "l1_filters": []}}, "density_per_layer": True}).layers()


def test_values_by_key_become_parameters_by_name():
    found = space({"extractor": {"choice": METHODS}, "recipe.augment": {"choice": [[], ["crop"]]}})
    named = found.named({"extractor": "gumbel", "extractor.temperature": 1.0, "recipe.augment": ["crop"]})
    assert named == {"extractor": "gumbel", "extractor.temperature @gumbel": 1.0, "recipe.augment": "['crop']"}
    with pytest.raises(UserError, match=r"extractor.temperature: 99 is outside the searched domain 0.3 to 3, log"):
        found.named({"extractor": "gumbel", "extractor.temperature": 99})
    with pytest.raises(UserError, match=r"unknown searched key 'recipe.lr'"):
        found.named({"recipe.lr": 1.0})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"extractor": {"choice": ["gumbel", "granett"]}}, "unknown extractor 'granett': did you mean 'granet'"),
        ({"extractor": {"choice": []}}, "`choice` takes a list of methods"),
        ({"extractor": {"choice": ["gumbel"], "temperature": None}}, "`choice` takes a list of methods"),
        (
            {"extractor": {"choice": {"gumbel": ["temprature"]}}},
            "unknown hyperparameter of gumbel 'temprature': did you mean 'temperature'",
        ),
        (
            {"extractor": {"choice": ["gumbel", "granet"]}, "extractor.temperature": 1.0},
            "unknown hyperparameter of granet 'temperature'",
        ),
        (
            {"recipe.lr": {"when": {"extractor": "gumbel"}, "float": [1, 2]}},
            "`when` refers to 'extractor', which the space does not search",
        ),
        (
            {"network": {"choice": ["lenet5", "conv2"]}, "recipe.lr": {"when": "lenet5", "float": [1, 2]}},
            "a condition takes `when: {key: value}`",
        ),
        ({"recipe.lr": 0.1}, "nothing is searched"),
        ({"extractor": "snip"}, "one method is set in run.extractor"),
        ({"extractor": {"categorical": ["snip"]}}, r"space.extractor: a domain is \{float: \[low, high\]"),
        ({"recipe.lr": {"low": 0.1, "high": 1, "log": True}}, "space.recipe.lr: a domain is"),
        ({"recipe.lr": {"suggest_float": [0.1, 1]}}, "space.recipe.lr: a domain is"),
        ({"recipe.lr": optuna.distributions.FloatDistribution(0.1, 1)}, "a domain is .*, got FloatDistribution"),
        ({"lr": {"float": [0.1, 1]}}, r"unknown key of a run 'lr' \(space\): .*valid: recipe.lr$"),
        ({"density_per_layer": "yes", "recipe.lr": {"float": [1, 2]}}, "takes true, or a list of layers"),
        (
            {"extractor": {"choice": ["gumbel", "granet"]}, "extractor.density": {"float": [0.1, 1.5]}},
            "space: extractor.density",
        ),
        (
            {"extractor": {"choice": {"granet": [], "l1_filters": []}}, "unit": {"choice": ["weight", "channel"]}},
            r"l1_filters does not support 'weight', only channel \(in trials with extractor l1_filters, unit weight\); "
            r"restrict the key with `when: {extractor: ...}`",
        ),
        (
            {"unit": {"choice": ["channel", "2:4"]}, "round_to": {"choice": [1, 8]}},
            r"got unit: 2:4 \(in trials with unit 2:4\); restrict the key with `when: {unit: ...}`",
        ),
        ({"unit": {"choice": ["weight", "2:3:4"]}}, "unit"),
        (
            {"unit": {"choice": ["weight", "channel"]}, "round_to": {"when": {"unit": "chanel"}, "choice": [1, 8]}},
            "unknown unit 'chanel' \\(`when` of space.round_to\\): did you mean 'channel'",
        ),
        (
            {"round_to": {"int": [0, 8]}, "unit": "channel"},
            "space: round_to: input should be greater than or equal to 1, got 0",
        ),
        ({"target.flops": {"float": [0.1, 1.2]}}, "space: target.flops: input should be less than or equal to 1, got 1.2"),
        ({"target.flop": {"float": [0.1, 1]}}, "unknown key of a run 'target.flop' .*did you mean 'target.flops'"),
        (
            {"target.flops": {"float": [0.1, 1]}, "target.parameters": 0.5},
            "target.flops and target.parameters both set the density: remove one of them",
        ),
        (
            {"extractor.density": {"float": [0.1, 1]}, "run": {"target": {"flops": 0.5}}},
            "extractor.density and target.flops both",
        ),
        (
            {"target.units": {"float": [0.1, 1]}, "run": {"target": {"flops": 0.5}}},
            "flops both set the density",
        ),
        (
            {"target.flops": {"float": [0.1, 1]}, "extractor.density": {"float": [0.1, 1]}},
            "target.flops and extractor.density both set the density: remove one of them",
        ),
    ],
)
def test_a_wrong_space_is_refused_in_one_line(given, message):
    run = given.pop("run", {})
    with pytest.raises(UserError, match=message) as caught:
        space(given, **run)
    assert "\n" not in str(caught.value)


def test_a_pruner_with_several_objectives_is_shown_the_constrained_form():
    with pytest.raises(UserError) as caught:
        check(StudySpec, {"name": "s", "run": RUN, "objective": ["val_accuracy", "flops"], "pruner": "hyperband"})
    assert 'objective: val_accuracy, constraints: {flops: "<= ..."}' in str(caught.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"objective": "flops", "pruner": "median"}, "needs a value after each epoch.*not flops"),
        ({"objective": ["val_accuracy", "val_accuracy"]}, "give at least one metric, each once"),
        ({"pruner": "rungs"}, "rungs needs several objectives"),
        ({"pruner": "wilcoxon"}, "set repeats to 2 or more"),
        ({"constraints": {"density": "0.1"}}, "a constraint is one of"),
        ({"constraints": {"flop": "<= 1"}}, "unknown measure 'flop': did you mean 'flops'"),
        ({"duplicates": "keep"}, "duplicates"),
    ],
)
def test_a_wrong_goal_is_refused(more, message):
    with pytest.raises(UserError, match=message):
        check(StudySpec, {"name": "s", "run": RUN, **more})


def test_a_range_with_a_step_has_optunas_values():
    found = Space(
        {"recipe.momentum": {"float": [0.1, 0.7], "step": 0.3}, "recipe.epochs": {"int": [1, 5], "step": 2}}, RunConfig()
    )
    assert found.words() == {"recipe.momentum": "0.1 to 0.7, step 0.3", "recipe.epochs": "1 to 5, step 2"}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [found.suggest(study.ask()) for _ in range(20)]
    assert {round(values["recipe.momentum"], 6) for values in drawn} == {0.1, 0.4, 0.7}
    assert {values["recipe.epochs"] for values in drawn} == {1, 3, 5}
    assert {key: _words(one) for key, one in study.trials[0].distributions.items()} == found.words()
