"""Who may import whom, read from the source of every module."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import subnet_search

ROOT = Path(subnet_search.__file__).parent
LAYERS = (  # from the lowest up: a folder may import those before it, and none after it
    "core",
    "topology",
    "nets",
    "data",
    "evaluation",
    "tasks",
    "extractors",
    "structure",
    "training",
    "artifact",
    "deploy",
    "extraction",
    "analysis",
    "search.storage",
    "search.spec",
    "search.engine",
    "search.queries",
    "search.studies",
    "search",
    "reports",
    "testing",
    "cli",
    "__main__",
)
ONLY = {  # folders that may import fewer of those before them
    "topology": {"core"},
    "extractors": {"core", "topology"},
    "search.storage": {"core"},
}
PRIVATE_OPTUNA = {"search.storage"}
"""The only folder that may import Optuna's private modules."""
LAZY = {"torchvision", "sklearn", "plotly", "matplotlib", "jinja2", "ray", "torchmetrics", "pandas"}  # heavy, and needed by few


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# By dotted name inside the package; the package's own __init__, "", only tells type checkers where the public names are.
TREES = {module_name(path): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}
INIT = TREES.pop("")


def imported(nodes):
    """Full dotted names of all modules and names that the import statements among `nodes` mention."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written out in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inside(tree):
    """The modules of this package that a module imports, inside functions too."""
    for name in imported(ast.walk(tree)):
        package, _, rest = name.partition(".")
        if package == "subnet_search":
            while rest not in TREES and rest:
                rest = rest.rpartition(".")[0]
            yield rest


def layer(module):
    """The folder of a module: `search` counts by its parts."""
    parts = module.split(".")
    two = ".".join(parts[:2])
    return two if two in LAYERS else parts[0]


IMPORTS = {module: set(inside(tree)) - {module} for module, tree in TREES.items()}


def test_every_module_is_in_a_layer():
    assert {layer(module) for module in TREES} == set(LAYERS)


def test_imports_point_down():
    wrong = []
    for module, others in IMPORTS.items():
        here = layer(module)
        for other in others:
            there = layer(other)
            if there == here:
                continue
            allowed = there in ONLY[here] if here in ONLY else there in LAYERS[: LAYERS.index(here)]
            if other == "" or not allowed:
                wrong.append(f"{module} imports {other or 'the package itself'}")
    assert wrong == []


def test_no_circle_of_modules():
    assert set(graphlib.TopologicalSorter(IMPORTS).static_order()) >= set(TREES)  # raises CycleError, which names the circle


def test_methods_import_no_other_method():
    methods = {m for m in TREES if m.startswith("extractors.methods.") and not m.rpartition(".")[2].startswith("_")}
    wrong = [f"{module} imports {other}" for module in methods for other in IMPORTS[module] & methods]
    assert wrong == []


def test_only_search_and_reports_import_optuna():
    wrong = []
    for module, tree in TREES.items():
        for name in imported(ast.walk(tree)):
            package, *rest = name.split(".")
            private = any(part.startswith("_") for part in rest)
            if package == "optuna" and (
                not module.startswith(("search", "reports")) or (private and layer(module) not in PRIVATE_OPTUNA)
            ):
                wrong.append(f"{module} imports {name}")
    assert wrong == []


def test_heavy_packages_are_imported_where_they_are_used():
    at_the_top = {module: {name.partition(".")[0] for name in imported(tree.body)} for module, tree in TREES.items()}
    assert {module: found & LAZY for module, found in at_the_top.items() if found & LAZY} == {}


def test_importing_the_package_stays_light():
    heavy = ("torch", "optuna", "torchvision", "sklearn", "plotly", "torchmetrics")
    code = f"import sys, subnet_search; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there():
    assert set(dir(subnet_search)) == set(subnet_search.__all__) == set(subnet_search._HOMES)
    declared = {
        alias.asname or alias.name for node in ast.walk(INIT) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert set(subnet_search.__all__) <= declared
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = subnet_search.nothing
