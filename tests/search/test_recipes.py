"""Recipes: what was published for each method, and the one that a comparison gives to all."""

import json

import pytest
import torch
import yaml
from test_compare import complete, in_an_empty_folder, said  # noqa: F401 (a fixture that every test here uses)
from toys import points, supernet

from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.config_file import check
from subnet_search.extractors import describe, extractor_names, get_extractor
from subnet_search.extractors.base import Extractor, trains_weights
from subnet_search.search.spec.search_space import Space
from subnet_search.search.studies.method_grid import SHARED, WEIGHTS, make_grid, method_grid, prepare_grid, sanity_grid
from subnet_search.training import Recipe, train
from subnet_search.training.optimizer import make_optimizer

RUN = {
    "network": "lenet_300_100",
    "data": {"name": "digits", "limit": 200},
    "recipe": {"epochs": 1, "batch_size": 32, "threads": 1, "device": "cpu"},
}
METHODS = [name for name in extractor_names() if get_extractor(name).__module__.startswith("subnet_search.")]
STEPS = {"schedule": "step", "milestones": (0.5, 0.75)}


# What was published

FIGURES = [
    ("grasp", {"lr": 0.1, "weight_decay": 5e-4, **STEPS}, 160),
    ("snip", {"lr": 0.1, "weight_decay": 5e-4, **STEPS}, 160),
    ("ac_dc", {"weight_decay": 5e-4, "schedule": "step"}, 200),
    ("mest", {"weight_decay": 1e-4, "schedule": "cosine"}, 160),
    ("cht", {"weight_decay": 5e-4, "schedule": "linear"}, 100),
    ("iterand", {"lr": 0.3, "weight_decay": 1e-4, "schedule": "cosine"}, 100),
    ("continuous_sparsification", {"nesterov": True, "schedule": "step", "milestones": (0.66, 0.84)}, 340),
    ("gumbel", {"lr": 50.0, "batch_size": 256}, 1000),
]


@pytest.mark.parametrize(("name", "settings", "epochs"), FIGURES, ids=[name for name, *_ in FIGURES])
def test_published_figures_fill_what_a_run_leaves_open(name, settings, epochs):
    run = check(RunConfig, {"extractor": name}).resolve()
    assert {key: getattr(run.recipe, key) for key in settings} == settings
    assert run.recipe.epochs == Recipe().epochs  # a published length is never a default
    assert get_extractor(name).published.epochs == epochs


def test_iterand_says_what_resnets_have():
    assert "lr 0.1, weight decay 5e-4" in get_extractor("iterand").published.note


def test_few_methods_state_no_settings():
    none = {name for name in METHODS if get_extractor(name).published.source.startswith("none: ")}
    assert none == {"apoz", "fbs", "hrank", "magnitude", "shuffled", "taylor", "weight_unification"}


def test_a_method_that_states_nothing_takes_the_defaults():
    """One of a user's own, which no suite has seen."""
    assert Extractor.published.recipe == {}
    assert Extractor.published.source.startswith("none: ")


def test_methods_say_their_settings_length_and_source(capsys):
    out = " ".join(said(capsys, "methods", "iterand").out.split())
    assert "lr 0.3, weight_decay 0.0001, schedule cosine; 100 epochs (stated, not a default)" in out
    assert "dchiji-ntt/iterand config.yaml" in out
    record = json.loads(said(capsys, "methods", "iterand", "--json").out)
    assert record["published"]["recipe"] == {"lr": 0.3, "weight_decay": 1e-4, "schedule": "cosine"}
    assert record["published"]["epochs"] == 100
    assert "none: a control" in said(capsys, "methods", "shuffled").out
    assert all(method["published"]["source"] for method in json.loads(said(capsys, "methods", "--json").out))


def test_the_page_of_methods_says_them_too():
    page = describe.markdown()
    assert page.count("\nPublished training settings: ") == len(extractor_names()) >= len(METHODS)
    assert "lr 0.1, weight_decay 0.0005, schedule step, milestones [0.5, 0.75]; 160 epochs (stated, not a default)." in page


# The optimizer of relevance


def test_relevance_that_is_learned_alone_has_an_optimizer_of_its_own():
    net = supernet("concrete", epochs=4, batch_size=30)
    assert isinstance(make_optimizer(net, net.recipe), torch.optim.Adam)
    found = []
    train(net, points(120), 0, on_step=lambda clock: found.append((net.learns, type(make_optimizer(net, net.recipe)).__name__)))
    assert dict.fromkeys(found) == {("relevance", "Adam"): None, ("weights", "SGD"): None}


def test_relevance_that_is_learned_with_weights_has_theirs():
    net = supernet("str", relevance_optimizer="adam")
    assert isinstance(make_optimizer(net, net.recipe), torch.optim.SGD)


# One recipe for all that are compared


def grid(methods, choice="shared", **changes):
    return method_grid("toy", check(RunConfig, {**RUN, **changes}), methods, [0.5], 1, choice)


def recipes(wanted):
    return {cell.row.method: wanted.spec.config(cell.attribute["values"]).resolve().recipe for cell in wanted.cells}


def of_weights(recipe):
    return {key: getattr(recipe, key) for key in WEIGHTS}


def comparable(unit="weight"):
    methods = map(get_extractor, METHODS)
    return [m.name for m in methods if "density" in m.model_fields and unit in m.paradigm.units and m.name != "shuffled"]


@pytest.mark.parametrize(("unit", "more"), [("weight", {}), ("2:4", {"unit": "2:4"}), ("channel", {"unit": "channel"})])
def test_methods_that_train_weights_share_one_recipe(unit, more):
    methods = comparable("n:m" if unit == "2:4" else unit)
    found = recipes(grid(methods, **more))
    assert set(found) == {*methods, "dense"}
    wanted = {**of_weights(Recipe()), **SHARED}
    assert wanted["lr"] == 0.1
    assert wanted["weight_decay"] == 5e-4
    assert {name for name in found if of_weights(found[name]) == wanted} == {
        "dense",
        *(name for name in methods if trains_weights(get_extractor(name))),
    }
    assert {(recipe.epochs, recipe.batch_size) for recipe in found.values()} == {(1, 32)}


def test_a_published_batch_size_is_not_taken():
    found = recipes(grid(["gumbel", "cht", "mest", "str"], recipe={"epochs": 1}))  # published: 256, 32, 64, 256
    assert {(recipe.epochs, recipe.batch_size) for recipe in found.values()} == {(1, 128)}
    found = recipes(method_grid("toy", RunConfig(extractor={"name": "cht"}), ["cht", "gumbel"], [0.5], 1, "published"))
    assert {(recipe.epochs, recipe.batch_size) for recipe in found.values()} == {(20, 128)}


def test_relevance_beside_weights_keeps_its_published_settings():
    found = recipes(grid(["concrete", "gem_miner", "continuous_sparsification"]))
    concrete, gem_miner, sparsification = (found[name] for name in ("concrete", "gem_miner", "continuous_sparsification"))
    assert (concrete.relevance_optimizer, concrete.relevance_lr, concrete.relevance_decay) == ("adam", 0.1, 0.0)
    assert (gem_miner.relevance_lr, gem_miner.relevance_decay) == (0.1, 2e-4)
    assert sparsification.relevance_decay == 0.0


def test_methods_that_train_no_weights_have_their_own_settings():
    wanted = grid(["gumbel", "iterand", "random"])
    found = recipes(wanted)
    assert (found["gumbel"].lr, found["gumbel"].weight_decay, found["gumbel"].schedule) == (50.0, 0.0, "constant")
    assert (found["iterand"].lr, found["iterand"].weight_decay, found["iterand"].schedule) == (0.3, 1e-4, "cosine")
    assert wanted.masks_alone == ("gumbel", "iterand")


def test_what_the_configuration_sets_holds_for_all_that_train_weights():
    set_ = {"lr": 0.03, "schedule": "step", "milestones": [0.4], "nesterov": True}
    found = recipes(grid(["rigl", "str", "gumbel"], recipe={**RUN["recipe"], **set_}))
    for name in ("rigl", "str", "dense"):
        recipe = found[name]
        assert (recipe.lr, recipe.schedule, recipe.milestones, recipe.nesterov) == (0.03, "step", (0.4,), True)
        assert (recipe.momentum, recipe.weight_decay, recipe.label_smoothing) == (0.9, 5e-4, 0.0)
    assert found["gumbel"].lr == 50.0


@pytest.mark.parametrize("choice", ["shared", "published"])
def test_a_rate_of_masks_is_not_taken_for_weights(choice):
    """The configuration is written for a method that trains no weights, and its rate is that method's."""
    run = {"extractor": {"name": "gumbel", "density": 0.5}, "recipe": {**RUN["recipe"], "lr": 20.0, "weight_decay": 0.01}}
    found = recipes(grid(["gumbel", "supermask", "rigl"], choice, **run))
    assert (found["gumbel"].lr, found["gumbel"].weight_decay) == (20.0, 0.01)
    assert (found["supermask"].lr, found["supermask"].weight_decay) == (100.0, 0.0)
    assert (found["rigl"].lr, found["rigl"].weight_decay) == (found["dense"].lr, found["dense"].weight_decay) == (0.1, 5e-4)


def test_published_settings_are_a_choice():
    found = recipes(grid(["cht", "mest", "rigl"], "published"))
    assert (found["cht"].lr, found["cht"].schedule) == (0.025, "linear")
    assert (found["mest"].weight_decay, found["mest"].schedule) == (1e-4, "cosine")
    assert found["rigl"].gamma == 0.2
    found = recipes(grid(["cht", "mest"], "published", recipe={**RUN["recipe"], "lr": 0.03}))
    assert {recipe.lr for recipe in found.values()} == {0.03}


def test_the_record_says_which_recipe_it_is():
    shared, published = grid(["rigl", "gumbel"]).recipe_record(), grid(["rigl", "gumbel"], "published").recipe_record()
    assert shared["choice"] == "shared"
    assert shared["settings"].items() >= {**SHARED, "nesterov": False, "batch_size": 32}.items()
    assert shared["text"] == (
        "recipe: shared by all methods that train weights: sgd, lr 0.1, momentum 0.9, cosine, weight decay 0.0005, batch 32; "
        "only masks are trained, with published lr and weight_decay: gumbel"
    )
    assert (published["choice"], published["settings"], published["masks_alone"]) == ("published", None, ["gumbel"])
    assert "each method's published settings" in published["text"]
    assert "differences between rows include the recipe" in published["text"]


def test_a_grid_of_different_recipes_says_so():
    one = grid(["rigl"])
    rows = [cell.row for cell in one.cells]
    other = type(rows[0])("other", 0.5, {**rows[0].changes, "recipe.lr": 0.2})
    assert make_grid("toy", one.spec.run, rows, 1).recipe is not None
    mixed = make_grid("toy", one.spec.run, [*rows, other], 1)
    assert mixed.recipe is None
    assert "not the same for all rows" in mixed.recipe_text()


def test_all_arms_of_the_sanity_checks_have_the_methods_published_recipe():
    wanted = sanity_grid("s", check(RunConfig, {**RUN, "extractor": {"name": "synflow", "density": 0.5}}), 1)
    assert wanted.recipe is not None
    settings = get_extractor("synflow").published.recipe
    assert {key: getattr(wanted.recipe, key) for key in settings} == settings
    assert len({recipe.model_dump_json() for recipe in recipes(wanted).values()}) == 1


@pytest.mark.slow
def test_the_commands_say_which_recipe_it_is(capsys, tmp_path):
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(RUN))
    words = ["compare", "toy.yaml", "--extractors", "granet,mest", "--densities", "0.5", "--seeds", 1]
    assert "recipe: shared by all methods that train weights: sgd, lr 0.1, momentum 0.9, cosine" in said(capsys, *words).out
    assert json.loads(said(capsys, *words, "--json").out)["recipe"]["choice"] == "shared"
    shown = said(capsys, *words, "--recipe", "published").out
    assert "recipe: each method's published settings for keys that the configuration does not set" in shown
    assert json.loads(said(capsys, *words, "--recipe", "published", "--json").out)["recipe"]["choice"] == "published"
    assert json.loads(said(capsys, "study", "list", "--json").out)[0]["states"] == {"COMPLETE": 6}  # in one study, side by side
    said(capsys, *words, "--recipe", "mine", code=2)


@pytest.mark.slow
def test_a_comparison_on_another_recipe_goes_on_with_new_cells():
    """One that was stored before the recipe was shared: its trials change no key of the recipe."""
    new = grid(["granet"])
    kept = ("extractor", "unit", "round_to", "target")
    rows = [
        type(cell.row)(cell.row.method, cell.row.density, {k: v for k, v in cell.row.changes.items() if k in kept})
        for cell in new.cells
    ]
    old = make_grid("toy", new.spec.run, rows, 1)
    study, before = complete(old)
    assert {record["state"] for record in before} == {"COMPLETE"}
    study, records = complete(new)
    assert len(study.trials) == 4
    assert {record["state"] for record in records} == {"COMPLETE"}
    assert {record["sha256"] for record in records}.isdisjoint({record["sha256"] for record in before})
    prepare_grid(old, "sqlite:///s.db")
    assert len(study.trials) == 4


def test_a_study_over_methods_has_one_batch_size():
    run = check(RunConfig, {**RUN, "recipe": {"epochs": 2, "device": "cpu"}})
    space = Space({"extractor": {"choice": ["cht", "gumbel", "rigl"]}}, run)
    assert {space.config({"extractor": name}).resolve().recipe.batch_size for name in ("cht", "gumbel", "rigl")} == {128}
