"""Docstrings are complete: ruff checks that they exist and their form, these tests what ruff cannot.

ruff does not know that a method may have the docstring of the one that it overrides, nor how arguments are described here:
by name in the docstring, in that of the class, or in a docstring below the field.
"""

import ast
import importlib
import inspect
import itertools
import pkgutil
import re
import textwrap

import subnet_search
from subnet_search.extractors import author

ERRORS = ("UserError", "RunError")
OTHERS = re.compile(r"[Aa]rguments[^.]*`(\w+)`")  # of which other function this one has the arguments
MODULES = [m.name for m in pkgutil.walk_packages(subnet_search.__path__, "subnet_search.") if not m.name.endswith("__main__")]
PUBLIC = {name: getattr(subnet_search, name) for name in subnet_search.__all__} | vars(author)


def own(thing):
    return getattr(thing, "__module__", "").startswith("subnet_search") and not inspect.ismodule(thing)


def tree(thing):
    return ast.parse(textwrap.dedent(inspect.getsource(thing)))


def methods(cls):
    """The public methods and properties that a class defines, by name, as functions."""
    for name, value in vars(cls).items():
        function = getattr(value, "fget", None) or getattr(value, "__func__", value)
        if not name.startswith("_") and inspect.isfunction(function) and own(function):
            yield name, function


def described(cls):
    """The docstrings of a class and its bases, and the names of their fields that have a docstring."""
    for base in filter(own, cls.__mro__):
        yield base.__doc__ or ""
        body = tree(base).body[0].body
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                yield field.target.id


def callables():
    """Each public function, class and method: its name, itself, the functions that may raise, the text."""
    for name, thing in PUBLIC.items():
        if inspect.isfunction(thing) and own(thing):
            text = inspect.getdoc(thing) or ""
            yield name, thing, [thing], " ".join([text, *(inspect.getdoc(PUBLIC[other]) for other in OTHERS.findall(text))])
        elif inspect.isclass(thing) and own(thing) and not getattr(thing, "_is_protocol", False):
            text = " ".join(described(thing))
            made = [getattr(thing, one, None) for one in ("__init__", "__post_init__")]
            yield name, thing, [one for one in made if inspect.isfunction(one) and one.__code__.co_filename != "<string>"], text
            for method, function in methods(thing):
                yield f"{name}.{method}", function, [function], f"{inspect.getdoc(getattr(thing, method))} {text}"


def raised(functions):
    """The names of the errors that functions raise themselves."""
    nodes = [
        node.exc for function in functions if own(function) for node in ast.walk(tree(function)) if isinstance(node, ast.Raise)
    ]
    return {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}


def test_every_public_method_has_a_docstring_or_inherits_one():
    classes = [
        cls for name in MODULES for cls in vars(importlib.import_module(name)).values() if inspect.isclass(cls) and own(cls)
    ]
    public = [(cls, name) for cls in classes if not cls.__name__.startswith("_") for name, _ in methods(cls)]
    assert len(public) > 500
    assert [f"{cls.__name__}.{name}" for cls, name in public if not inspect.getdoc(getattr(cls, name))] == []


def test_public_docstrings_name_every_argument_and_error():
    missing = []
    for name, called, raising, text in callables():
        wanted = (inspect.signature(called).parameters.keys() - {"self", "cls"}) | raised(raising).intersection(ERRORS)
        missing += [f"{name}: {word}" for word in sorted(wanted) if not re.search(rf"\b{word}\b", text)]
    assert missing == []
