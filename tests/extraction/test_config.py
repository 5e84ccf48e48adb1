"""Configurations: complete by default, and every mistake named with its file, its line, its key and what would be right."""

import pytest
import yaml

import subnet_search as ss
from subnet_search.core.errors import UserError
from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.config_file import flatten, put, read_config, with_values
from subnet_search.extractors import extractor_names
from subnet_search.search.spec.study_spec import StudySpec


def written(folder, text, name="run.yaml"):
    path = folder / name
    path.write_text(text)
    return path


def message(call, *arguments):
    """What a call complains about: one line."""
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- reading ---


def test_a_configuration_from_yaml(tmp_path):
    text = """
network: {name: conv2, init: signed_constant}
data: digits
extractor:
  name: random
  density: 0.2
recipe: {epochs: 3, lr: 1e-3, milestones: [0.5]}
seed: 7
"""
    config = read_config(RunConfig, written(tmp_path, text))
    assert (config.network.name, config.network.init, config.data.name, config.seed) == (
        "conv2",
        "signed_constant",
        "digits",
        7,
    )
    assert (config.extractor.name, config.extractor.density, config.extractor.allocation) == ("random", 0.2, "erk")
    assert (config.recipe.epochs, config.recipe.lr, config.recipe.milestones) == (3, 0.001, (0.5,))


def test_without_a_file_everything_has_a_default():
    config = read_config(RunConfig, None)
    assert (config.network.name, config.data.name, config.extractor.name) == ("lenet5", "digits", "gumbel")
    assert config == RunConfig()


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("seed=3", "seed", 3),
        ("network=conv4", "network.name", "conv4"),
        ("recipe.lr=1e-3", "recipe.lr", 0.001),
        ("recipe.augment=[crop, flip]", "recipe.augment", ["crop", "flip"]),
        ("data.limit=100", "data.limit", 100),
        ("data=npz:a=b.npz", "data.name", "npz:a=b.npz"),
        ("extractor.density=0.3", "extractor.density", 0.3),
        ("extractor={name: random, density: 0.3}", "extractor.name", "random"),
        ("extractor=supermask", "extractor.name", "supermask"),
        ("network.options.width=3", "network.options.width", 3),
    ],
)
def test_overrides_reach_every_key(override, key, value):
    assert flatten(read_config(RunConfig, None, [override]).dump())[key] == value


def test_overrides_keep_the_rest_of_the_file_and_the_last_one_wins(tmp_path):
    path = written(tmp_path, "extractor: random\nrecipe: {epochs: 3}\n")
    config = read_config(RunConfig, path, ["extractor.density=0.3", "recipe.lr=0.5", "recipe.lr=0.2"])
    assert (config.extractor.name, config.extractor.density) == ("random", 0.3)
    assert (config.recipe.epochs, config.recipe.lr) == (3, 0.2)


def test_an_override_of_the_whole_extractor_leaves_nothing_of_the_old_one(tmp_path):
    path = written(tmp_path, "extractor: {name: gumbel, temperature: 2}\n")
    config = read_config(RunConfig, path, ["extractor={name: random, density: 0.3}"])
    assert config.dump()["extractor"] == {"name": "random", "density": 0.3, "allocation": "erk"}


# --- mistakes in a file ---


@pytest.mark.parametrize(
    ("text", "line", "parts"),
    [
        ("seed: 0\nsed: 1", 2, ["unknown key 'sed'", "did you mean 'seed'", "extractor", "recipe", "unit"]),
        ("recipe:\n  lr: 0.1\n  epoch: 2", 3, ["'recipe.epoch'", "did you mean 'epochs'", "batch_size", "weight_decay"]),
        ("extractor:\n  densty: 0.2", 2, ["'extractor.densty'", "did you mean 'density'", "temperature"]),
        ("extractor:\n  name: random\n  alocation: er", 3, ["'extractor.alocation'", "did you mean 'allocation'"]),
        ("network:\n  nam: conv2", 2, ["'network.nam'", "did you mean 'name'", "init"]),
        ("data:\n  name: digits\n  limt: 9", 3, ["'data.limt'", "did you mean 'limit'", "split_seed"]),
        ("seed: abc", 1, ["seed:", "integer", "'abc'"]),
        ("recipe:\n  epochs: many", 2, ["recipe.epochs:", "integer", "'many'"]),
        ("recipe: 3", 1, ["recipe:", "3"]),
        ("\nseed: -1", 2, ["seed:", "greater than or equal to 0", "-1"]),
        ("recipe:\n  lr: 0", 2, ["recipe.lr:", "greater than 0", "got 0"]),
        ("extractor: {name: random,\n  density: 1.4}", 2, ["extractor.density:", "less than or equal to 1", "1.4"]),
        ("recipe:\n  optimizer: sdg", 2, ["recipe.optimizer:", "'sgd'", "'adam'", "'sdg'"]),
        ("recipe:\n  augment: [flop]", 2, ["recipe.augment:", "unknown augmentation 'flop'", "'flip'", "cutout"]),
        ("recipe:\n  milestones: [0.9, 0.1]", 2, ["recipe.milestones:", "increasing", "[0.9, 0.1]"]),
        ("recipe:\n  milestones: [x]", 2, ["recipe.milestones", "number", "'x'"]),
        ("network:\n  init: kaiming", 2, ["network.init:", "'kaiming_normal'", "'kaiming'"]),
        ("seed: 1\nnetwork: con2", 2, ["network:", "unknown network 'con2'", "'conv2'", "lenet5", "torchvision:NAME"]),
        ("seed: 1\ndata: digit", 2, ["data:", "unknown data set 'digit'", "'digits'", "npz:FILE"]),
        ("seed: 1\nextractor: gumble", 2, ["extractor:", "unknown extractor 'gumble'", "'gumbel'", *extractor_names()]),
        ("seed: 1\nextractor: 3", 2, ["extractor", "a name", "3"]),
        ("seed: 1\nunit: channl", 2, ["unit:", "'channl'", "channel", "weight"]),
        ("seed: 1\nweights: sed", 2, ["weights:", "'values'", "'seed'", "'sed'"]),
    ],
)
def test_a_mistake_names_file_line_key_and_what_would_be_right(tmp_path, text, line, parts):
    path = written(tmp_path, text)
    found = message(read_config, RunConfig, path)
    for part in (*parts, f"({path}, line {line})"):
        assert part in found


def test_one_mistake_is_told_and_the_others_are_counted(tmp_path):
    assert message(read_config, RunConfig, written(tmp_path, "sed: 1\nrecip: 2\nunits: 3")).endswith("(and 2 more)")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("seed: 1\nrecipe: [1\nunit: weight\n", ["line 3", "is not YAML"]),
        ("seed: 1\n\tunit: weight\n", ["line 2", "is not YAML"]),
        ("- 1\n", ["must contain keys and values, got list"]),
        ("gumbel\n", ["must contain keys and values, got str"]),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path, text, parts):
    path = written(tmp_path, text)
    found = message(read_config, RunConfig, path)
    assert all(part in found for part in (str(path), *parts))


def test_a_missing_file_names_a_near_one(tmp_path):
    near = written(tmp_path, "seed: 1", "quickstart.yaml")
    found = message(read_config, RunConfig, tmp_path / "quikstart.yaml")
    assert found == f"no such file: {tmp_path}/quikstart.yaml; did you mean {near}?"
    assert message(read_config, RunConfig, tmp_path / "other.yaml") == f"no such file: {tmp_path}/other.yaml"


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"], ids=["a folder", "no text"])
def test_a_file_that_cannot_be_read(tmp_path, content):
    path = tmp_path / "run.yaml"
    path.mkdir() if content is None else path.write_bytes(content)
    assert f"cannot read {path}" in message(read_config, RunConfig, path)


# --- mistakes in overrides ---


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("seed", ["-s takes KEY=VALUE, got 'seed'"]),
        ("=3", ["-s takes KEY=VALUE, got '=3'"]),
        ("seed=[1", ["the value of -s seed", "is not YAML"]),
        ("sed=1", ["unknown key 'sed'", "did you mean 'seed'"]),
        ("extractor.densty=1", ["unknown key 'extractor.densty'", "did you mean 'density'"]),
        ("extractor={name: random, density: 3}", ["extractor.density:", "less than or equal to 1", "3"]),
        ("recipe.epochs=many", ["recipe.epochs:", "integer", "'many'"]),
    ],
)
def test_a_mistake_in_an_override(override, parts):
    found = message(read_config, RunConfig, None, [override])
    assert all(part in found for part in parts)


def test_a_mistake_in_an_override_is_not_blamed_on_the_files_line(tmp_path):
    path = written(tmp_path, "seed: 0\n")
    assert "line 1" not in message(read_config, RunConfig, path, ["seed=abc"])


# --- mistakes in Python ---


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda: ss.extract("lenet5", "digits", "gumbel", density=7), ["density", "less than or equal to 1", "7"]),
        (lambda: ss.extract("lenet5", "digits", "gumbel", densty=0.3), ["densty", "did you mean 'density'"]),
        (lambda: ss.extract("lenet5", "digits", "gumble"), ["unknown extractor 'gumble'", "'gumbel'"]),
        (lambda: ss.extract("con2", "digits"), ["unknown network 'con2'", "'conv2'"]),
        (lambda: ss.extract("con2", "digits", init="signed_constant"), ["unknown network 'con2'", "'conv2'"]),
        (lambda: ss.extract("lenet5", "digit"), ["unknown data set 'digit'", "'digits'"]),
        (lambda: ss.extract("lenet5", "digits", unit="channl"), ["'channl'", "weight"]),
    ],
    ids=["range", "hyperparameter", "extractor", "network", "network with init", "data", "unit"],
)
def test_a_mistake_in_python_is_one_line_too(call, parts):
    found = message(call)
    assert all(part in found for part in parts)


# --- complete and round ---


@pytest.mark.parametrize("name", extractor_names())
def test_a_resolved_configuration_leaves_nothing_open(name):
    config = read_config(RunConfig, None, [f"extractor={name}"]).resolve()
    assert config.network.init == "kaiming_normal"
    assert config.recipe.threads >= 1
    assert config.recipe.device != "auto"
    published = config.extractor.published.recipe
    assert {key: getattr(config.recipe, key) for key in published} == dict(published)
    assert config.resolve() == config


def test_what_the_user_sets_goes_before_what_the_paper_says():
    config = read_config(RunConfig, None, ["recipe.lr=3", "recipe.threads=1"]).resolve()
    assert (config.recipe.lr, config.recipe.threads) == (3, 1)


@pytest.mark.parametrize("resolved", [True, False])
@pytest.mark.parametrize("name", extractor_names())
def test_a_dump_reads_back_as_the_same_configuration(tmp_path, name, resolved):
    network = "network={name: conv2, init: scaled, init_density: 0.3}"
    config = read_config(RunConfig, None, [f"extractor={name}", network, "recipe.augment=[flip]"])
    config = config.resolve() if resolved else config
    path = written(tmp_path, yaml.safe_dump(config.dump()))
    assert read_config(RunConfig, path) == config
    assert read_config(RunConfig, path).resolve().dump()["network"] == config.resolve().dump()["network"]


def test_given_holds_only_what_was_set():
    config = read_config(RunConfig, None, ["extractor.density=0.3", "recipe.epochs=2", "network=conv2"])
    given = config.given()
    assert given == {"network": {"name": "conv2"}, "extractor": {"name": "gumbel", "density": 0.3}, "recipe": {"epochs": 2}}
    assert RunConfig.model_validate(given) == config


def test_configurations_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().seed = 3


# --- dotted keys ---


def test_put_makes_a_mapping_of_a_bare_name():
    values = {"extractor": "random", "seed": 1}
    put(values, "extractor.density", 0.3)
    put(values, "recipe.epochs", 2)
    assert values == {"extractor": {"name": "random", "density": 0.3}, "seed": 1, "recipe": {"epochs": 2}}


def test_with_values_leaves_the_original_alone():
    before = {"recipe": {"epochs": 2}}
    assert with_values(before, {"recipe.lr": 0.1}) == {"recipe": {"epochs": 2, "lr": 0.1}}
    assert before == {"recipe": {"epochs": 2}}


def test_flatten_dots_the_keys():
    assert flatten({"a": {"b": {"c": 1}, "d": {}}, "e": None}) == {"a.b.c": 1, "a.d": {}, "e": None}


def test_a_unit_needs_no_quotes(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("extractor: rigl\nunit: 2:4\nrecipe: {epochs: 3}\n")
    assert read_config(RunConfig, path).unit == "2:4"
    assert read_config(RunConfig, None, ["unit=1:4", "extractor=rigl", "seed=12"]).unit == "1:4"
    path.write_text("name: s\nrun: {extractor: rigl}\nspace: {unit: {choice: [weight, 2:4]}, recipe.lr: {float: [0.1, 1]}}\n")
    assert read_config(StudySpec, path).searched.words()["unit"] == "weight | 2:4"


def test_a_mistake_in_the_statistics_names_its_line(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("data:\n  name: digits\n  mean: [0.5]\n  std: [0]\n")
    with pytest.raises(UserError, match=r"^data\.std: must be .* got 0\.0 \(.*run\.yaml, line 4\)$"):
        read_config(RunConfig, path)
    with pytest.raises(UserError, match=r"^data: mean is set without std: set both$"):
        read_config(RunConfig, None, ["data.mean=[0.5]"])


def test_statistics_are_in_the_configuration_as_they_were_set():
    config = read_config(RunConfig, None, ["data.mean=[0.485, 0.456, 0.406]", "data.std=[0.229, 0.224, 0.225]"])
    assert config.dump()["data"]["std"] == [0.229, 0.224, 0.225]
    assert RunConfig.model_validate(config.dump()).data == config.data
    assert RunConfig().dump()["data"]["mean"] is None


# --- the other kind of file ---


def test_a_study_in_place_of_a_run_and_the_reverse(tmp_path):
    study = written(tmp_path, "name: mine\nspace: {seed: {choice: [1, 2]}}\n", "study.yaml")
    run = written(tmp_path, "network: lenet5\nseed: 1\n")
    assert message(read_config, RunConfig, study) == (
        f"{study} is a study, not one run: start it with subnet-search study run {study}"
    )
    assert message(read_config, StudySpec, run) == (
        f"{run} is the configuration of one run: start it with subnet-search extract {run}"
    )
    assert "unknown key 'recipe'" in message(read_config, StudySpec, written(tmp_path, "name: mine\nrecipe: {epochs: 1}\n"))
    assert "unknown key 'run'" in message(read_config, RunConfig, written(tmp_path, "network: lenet5\nrun: {seed: 1}\n"))
