"""Docstrings below attributes, of classes in files, in functions, in notebooks, and without a source."""

import linecache
from typing import Annotated

from pydantic import Field

from subnet_search.core.attribute_docs import attribute_docs
from subnet_search.core.settings import Settings


class Outer(Settings):
    """A class with settings."""

    first: int = 1
    """The first."""
    second: Annotated[str, "x"] = "a"
    """Two lines,
    of which this is the last."""
    third: int = 3
    other: int = Field(4, alias="fourth")
    """The fourth."""


class Inner(Outer):
    first: int = 2
    """Another first."""


def test_docstrings_of_a_class_and_its_bases():
    assert attribute_docs(Outer)["second"] == "Two lines,\nof which this is the last."
    assert Inner.helps() == {
        "first": "Another first.",
        "second": "Two lines, of which this is the last.",
        "other": "The fourth.",
    }


def test_keys_of_a_schema_have_them():
    keys = Inner.model_json_schema()["properties"]
    assert {name: key.get("description") for name, key in keys.items()} == {
        "first": "Another first.",
        "second": "Two lines,\nof which this is the last.",
        "third": None,
        "fourth": "The fourth.",
    }


def test_a_description_of_pydantic_comes_first():
    class Described(Settings):
        value: int = Field(0, description="As given.")
        """Another text."""

    assert Described.helps() == {"value": "As given."}
    assert Described.model_json_schema()["properties"]["value"]["description"] == "As given."


def test_a_class_in_a_function():
    class Local(Settings):
        value: int = 0
        """A value."""

    assert Local.helps() == {"value": "A value."}


CELL = '''
class Method(Settings):
    strength: float = 1.0
    """How much."""

    def begin(self):
        return self.strength
'''


def test_a_cell_of_a_notebook_and_a_class_without_source():
    names = {"Settings": Settings, "__name__": "__main__"}
    exec(compile(CELL, "<cell 7>", "exec"), names)
    assert names["Method"].helps() == {}
    linecache.cache["<cell 8>"] = (len(CELL), None, CELL.splitlines(keepends=True), "<cell 8>")  # as IPython does
    exec(compile(CELL, "<cell 8>", "exec"), names)
    assert names["Method"].helps() == {"strength": "How much."}
