"""Spaces: methods with their own domains, conditions, densities by layer, and what is refused."""

import optuna
import pytest

from subnet_search.config import RunConfig, check
from subnet_search.errors import UserError
from subnet_search.search.space import Space
from subnet_search.search.spec import StudySpec

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


def test_values_by_key_become_parameters_by_name():
    found = space({"extractor": {"choice": METHODS}, "recipe.augment": {"choice": [[], ["crop"]]}})
    named = found.named({"extractor": "gumbel", "extractor.temperature": 1.0, "recipe.augment": ["crop"]})
    assert named == {"extractor": "gumbel", "extractor.temperature @gumbel": 1.0, "recipe.augment": "['crop']"}
    with pytest.raises(UserError, match=r"extractor.temperature is searched over 0.3 to 3, log, which 99 is not of"):
        found.named({"extractor": "gumbel", "extractor.temperature": 99})
    with pytest.raises(UserError, match=r"unknown searched key 'recipe.lr'"):
        found.named({"recipe.lr": 1.0})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"extractor": {"choice": ["gumbel", "granett"]}}, "unknown extractor 'granett': did you mean 'granet'"),
        ({"extractor": {"choice": []}}, "a choice is a list of methods"),
        ({"extractor": {"choice": ["gumbel"], "temperature": None}}, "a choice is a list of methods"),
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
            "`when` looks at 'extractor', which the space does not search",
        ),
        (
            {"network": {"choice": ["lenet5", "conv2"]}, "recipe.lr": {"when": "lenet5", "float": [1, 2]}},
            "it takes `when: {key: value}`",
        ),
        ({"recipe.lr": 0.1}, "nothing is searched"),
        ({"density_per_layer": "yes", "recipe.lr": {"float": [1, 2]}}, "is true, or a list of layers"),
        (
            {"extractor": {"choice": ["gumbel", "granet"]}, "extractor.density": {"float": [0.1, 1.5]}},
            "space: extractor.density",
        ),
    ],
)
def test_a_wrong_space_is_refused_in_one_line(given, message):
    with pytest.raises(UserError, match=message) as caught:
        space(given)
    assert "\n" not in str(caught.value)


def test_a_pruner_with_several_objectives_is_shown_the_constrained_form():
    with pytest.raises(UserError) as caught:
        check(StudySpec, {"name": "s", "run": RUN, "objective": ["val_accuracy", "flops"], "pruner": "hyperband"})
    assert 'objective: val_accuracy, constraints: {flops: "<= ..."}' in str(caught.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"objective": "flops", "pruner": "median"}, "watches validation after each epoch.*not flops"),
        ({"objective": ["val_accuracy", "val_accuracy"]}, "name each of them once"),
        ({"pruner": "rungs"}, "rungs is for several objectives"),
        ({"pruner": "wilcoxon"}, "set repeats to 2 or more"),
        ({"constraints": {"density": "0.1"}}, "the constraint on density is one of"),
        ({"constraints": {"flop": "<= 1"}}, "unknown measure 'flop': did you mean 'flops'"),
        ({"duplicates": "keep"}, "duplicates"),
    ],
)
def test_a_wrong_goal_is_refused(more, message):
    with pytest.raises(UserError, match=message):
        check(StudySpec, {"name": "s", "run": RUN, **more})
