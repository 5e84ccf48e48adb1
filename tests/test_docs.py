"""Pages that are made from the code say what the code says."""

from pathlib import Path

import pytest

from subnet_search import RunConfig
from subnet_search.extraction.config_file import read_config
from subnet_search.extractors.describe import markdown
from subnet_search.extractors.registry import REGISTRY
from subnet_search.search.spec.study_spec import read_study

ROOT = Path(__file__).parents[1]


def test_the_page_of_methods_is_up_to_date(monkeypatch):
    monkeypatch.delitem(REGISTRY, "redraw")  # the tests' own
    assert (ROOT / "docs" / "methods.md").read_text() == markdown(), "stale: run `make docs`"


@pytest.mark.parametrize("name", [name for name in REGISTRY if name != "redraw"])
def test_every_method_is_a_file_that_states_its_paper_once(name):
    cls = REGISTRY[name]
    source = (ROOT / "subnet_search" / "extractors" / "methods" / f"{cls.__module__.rpartition('.')[2]}.py").read_text()
    assert source.count(cls.paper.arxiv) == 1
    assert cls.paper.title not in source.split('"""')[1]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_reads_and_says_what_it_is(path):
    assert read_config(RunConfig, path).resolve().recipe.epochs > 0
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_reads_and_opens_with_its_question(path):
    assert read_study(path).searched.words()
    assert path.read_text().splitlines()[0].endswith("?")
