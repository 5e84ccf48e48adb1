"""The docstrings below the attributes of a class, read from its source when they are asked for.

Pydantic can read them when a class is made (`use_attribute_docstrings`), which takes 10 ms a class: half a second of every
start of this package. They are needed for help and JSON schemas alone.
"""

import ast
import inspect
import linecache
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise


def attribute_docs(cls: type) -> dict[str, str]:
    """The docstring below each annotated attribute of a class and its bases; none where the source is not available."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if "__annotations__" in vars(base) and (file := _file(base)):
            found |= _docs(file).get(base.__qualname__, {})
    return found


def _file(cls: type) -> str | None:
    """The file that defines a class; for a cell of a notebook, the name under which its lines are kept."""
    functions = (value for value in vars(cls).values() if inspect.isfunction(value) and value.__module__ == cls.__module__)
    named = next((function.__code__.co_filename for function in functions), None)
    return named or getattr(sys.modules.get(cls.__module__), "__file__", None)


@cache
def _docs(file: str) -> dict[str, dict[str, str]]:
    """The docstrings of attributes, by the qualified name of their class."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return {}
    return dict(_of_classes(tree, ""))


def _of_classes(tree: ast.AST, prefix: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The qualified name of each class in a tree, and the docstrings of its attributes."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield f"{prefix}{node.name}", dict(_of_attributes(node.body))
            yield from _of_classes(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef):
            yield from _of_classes(node, f"{prefix}{node.name}.<locals>.")
        else:
            yield from _of_classes(node, prefix)


def _of_attributes(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for attribute, after in pairwise(body):
        match attribute, after:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(value=ast.Constant(value=str(text))):
                yield name, inspect.cleandoc(text)
