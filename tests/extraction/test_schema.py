"""The keys of configurations: as rows, and as a JSON schema that another library's validator uses."""

from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

import subnet_search as ss
from subnet_search.core.documents import plain, read_file
from subnet_search.core.errors import UserError
from subnet_search.extraction.config_file import flatten
from subnet_search.extraction.schema import run_schema, section, sections
from subnet_search.search.spec.study_schema import study_schema

ROOT = Path(__file__).parents[2]
RUN, STUDY = Draft202012Validator(run_schema()), Draft202012Validator(study_schema())


@pytest.mark.parametrize("schema", [RUN, STUDY])
def test_it_is_a_schema(schema):
    Draft202012Validator.check_schema(schema.schema)


@pytest.mark.parametrize(
    "path", [*sorted((ROOT / "configs").glob("*.yaml")), *sorted((ROOT / "studies").glob("*.yaml"))], ids=lambda p: p.stem
)
def test_the_files_of_this_package_are_valid(path):
    schema, other = (RUN, STUDY) if path.parent.name == "configs" else (STUDY, RUN)
    values = plain(read_file(path).values)
    assert [error.message for error in schema.iter_errors(values)] == []
    assert not other.is_valid(values)


def test_a_complete_configuration_is_valid():
    for method in ("gumbel", "granet", "fbs"):
        assert [error.message for error in RUN.iter_errors(ss.RunConfig(extractor=method).resolve().dump())] == []


@pytest.mark.parametrize(
    "given",
    [
        {"network": "mine:Net", "data": "npz:a.npz", "extractor": "largest:Largest", "task": "mine:Task"},
        {"extractor": {"density": 0.3}, "network": {"init": "keep"}, "data": {"limit": 100}},  # of the default names
        {"extractor": {"name": "largest:Largest", "anything": 1}, "task": {"name": "mine:Task", "weight": 0.4}},
        {"task": {"class_weights": "balanced"}, "recipe": {"threads": None, "distill": {"weight": 0.5}}},
    ],
)
def test_what_a_run_takes_is_valid(given):
    assert [error.message for error in RUN.iter_errors(given)] == []


@pytest.mark.parametrize(
    "given",
    [
        {"recipe": {"epoch": 3}},
        {"recipe": {"epochs": -1}},
        {"extractor": {"name": "gumbel", "densty": 0.1}},
        {"extractor": {"densty": 0.1}},
        {"extractor": "gumbl"},
        {"task": {"name": "regression", "nothing": 1}},
        {"network": {"name": "lenet5", "weights": 1}},
        {"recipe": {"distill": {"weigth": 0.5}}},
        {"nothing": 1},
    ],
)
def test_unknown_keys_and_values_are_refused(given):
    assert not RUN.is_valid(given)
    assert not STUDY.is_valid({"name": "a", "run": given})


@pytest.mark.parametrize(
    "more", [{"trails": 5}, {"space": {"recpe.lr": {"float": [0.1, 1]}}}, {"sampler": "tpee"}, {"pruner": {"name": "all"}}]
)
def test_unknown_keys_of_a_study_are_refused(more):
    assert STUDY.is_valid({"name": "a", "objective": ["val_accuracy", "density"], "constraints": {"density": "<= 0.1"}})
    assert not STUDY.is_valid({"name": "a", **more})


def test_every_key_is_listed_once_with_its_meaning():
    found = sections(ss.RunConfig, "run")
    assert list(found) == ["run", "network", "data", "task", "extractor", "recipe"]
    rows = {row["key"]: row for rows in found.values() for row in rows}
    keys = {key for key in flatten(ss.RunConfig().dump()) if not key.startswith(("extractor.", "task."))}
    assert keys <= rows.keys()
    assert all(row["meaning"] for row in rows.values())
    assert rows["recipe.epochs"]["default"] == "20"
    assert rows["network.name"]["default"] == "lenet5"
    assert list(section(found, "recipe")) == ["recipe"]
    with pytest.raises(UserError, match="unknown section 'recpie': did you mean 'recipe'"):
        section(found, "recpie")
    study = sections(ss.StudySpec, "study")["study"]
    assert {row["key"] for row in study} == ss.StudySpec.model_fields.keys() - {"run"}
