"""What a method's class must say, found without training."""

import yaml

from subnet_search.extraction.config import DEFAULT_UNITS, RunConfig
from subnet_search.extraction.config_file import check
from subnet_search.extractors.describe import describe
from subnet_search.testing.method import Failed, Method
from subnet_search.training import Recipe

MORE_THAN_WEIGHTS = ("batch_size", "relevance_optimizer", "relevance_lr", "relevance_decay", "scale_lr")


def describes_itself(method: Method) -> None:
    """States its paper, formula, paradigm, units and hyperparameters."""
    if not method.cls.__doc__:
        raise Failed("the class has no docstring: its first line is the method's summary")
    said = describe(method.name)
    for key, what in (("paper", "paper"), ("formula", "paper.formula"), ("units", "paradigm.units")):
        if not said[key]:
            raise Failed(f"{what} is empty: state it")
    for key in ("mask_from", "weights_from", "schedule"):
        if not said["paradigm"][key]:
            raise Failed(f"paradigm.{key} is empty: state it")
    if wrong := set(said["units"]) - set(DEFAULT_UNITS):
        raise Failed(f"paradigm.units has {', '.join(sorted(wrong))}: a unit is one of {', '.join(DEFAULT_UNITS)}")
    for field in said["hyperparameters"]:
        if not field["help"].endswith("."):
            raise Failed(
                f"the hyperparameter {field['name']} has no help: write a docstring below it, that ends with a full stop"
            )
        if method.cls.model_fields[field["name"]].is_required():
            raise Failed(f"the hyperparameter {field['name']} has no default: give it one")


def states_published_settings(method: Method) -> None:
    """States the training settings of its paper, or that none apply."""
    if "published" not in vars(method.cls):
        raise Failed('published is not declared: Published(source, recipe), or Published.none("why")')
    from subnet_search.search.studies.method_grid import WEIGHTS  # here, since it imports Optuna

    published, may_set = method.cls.published, {*WEIGHTS, *MORE_THAN_WEIGHTS}
    if wrong := set(published.recipe) - may_set:
        raise Failed(f"published.recipe sets {', '.join(sorted(wrong))}: only {', '.join(sorted(may_set))} may be set")
    Recipe(**published.recipe)
    if published.source.startswith("none: "):
        if published.recipe or published.epochs is not None:
            raise Failed("published has settings though its source says that none apply: leave out one of the two")
        return
    if not any(mark in published.source for mark in ("/", "section")):
        raise Failed(f"published.source is {published.source!r}: name the file of a repository, or the section of a paper")
    if not {"lr", "batch_size", "schedule"} & set(published.recipe):
        raise Failed('published.recipe sets no lr, batch_size or schedule: state them, or Published.none("why")')
    if published.epochs is not None and published.epochs <= 0:
        raise Failed("published.epochs must be positive, or None where the source does not state it")


def comes_back_from_yaml(method: Method) -> None:
    """Has the same configuration after it was written as YAML and read."""
    before = method.config().resolve()
    after = check(RunConfig, yaml.safe_load(yaml.safe_dump(before.dump())))
    if after != before:
        raise Failed("a hyperparameter is another after it was written and read: use numbers, words, lists and mappings")
