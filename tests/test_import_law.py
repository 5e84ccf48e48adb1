"""Who may import whom: the floors of the house, read from the source of every module."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import subnet_search

ROOT = Path(subnet_search.__file__).parent
FLOORS = [
    {"errors", "redaction", "documents", "settings", "seeds", "files", "domains", "timing"},
    {"topology", "nets", "data"},
    {"extractors", "deploy", "evaluation"},
    {"training"},
    {"config", "extraction", "runfolder", "judging", "measures", "exporting", "footprint", "plasticity", "analyses", "plots"},
    {"search"},
    {"cli", "__main__"},
]
NEIGHBOURS = (0, 4, 6)  # the floors whose rooms may look into each other
BELOW = {  # what these may see of the floors below, besides the ground floor; everybody else may see all
    "extractors": {"topology"},
    "deploy": {"topology", "nets"},
    "evaluation": {"topology", "data", "nets"},
    "training": {"topology", "nets", "data", "extractors", "deploy", "evaluation"},
}
LAZY = {"torchvision", "sklearn", "plotly", "ray"}  # heavy, and needed by few


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# By dotted name inside the package; the package's own face, "", only tells type checkers where the public names are.
TREES = {module_name(path): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}
FACE = TREES.pop("")


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


def room(module):
    return module.partition(".")[0]


def floor(module):
    return next((i for i, rooms in enumerate(FLOORS) if room(module) in rooms), None)


IMPORTS = {module: set(inside(tree)) - {module} for module, tree in TREES.items()}


@pytest.mark.parametrize("module", TREES)
def test_every_arrow_points_down(module):
    here = floor(module)
    assert here is not None, f"{module} is in no room of the house"
    assert "" not in IMPORTS[module], "the public face is for users; import from where a name lives"
    for other in IMPORTS[module]:
        if room(other) == room(module):
            continue
        there = floor(other)
        assert there is not None, f"{other} is in no room of the house"
        assert there < here or (there == here and here in NEIGHBOURS), f"{module} may not import {other}"
        if room(module) in BELOW and there > 0:
            assert room(other) in BELOW[room(module)], f"{module} may not import {other}"


def test_no_circle_of_folders():
    graph = {}
    for module, others in IMPORTS.items():
        graph.setdefault(room(module), set()).update(room(other) for other in others if room(other) != room(module))
    in_order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle
    assert in_order.index("topology") < in_order.index("extractors") < in_order.index("cli")


def test_no_circle_of_modules():
    assert set(graphlib.TopologicalSorter(IMPORTS).static_order()) >= set(TREES)


@pytest.mark.parametrize("module", [m for m in TREES if m.startswith("extractors.") and m != "extractors.base"])
def test_extractors_import_no_other_extractor(module):
    others = {other for other in IMPORTS[module] if room(other) == "extractors"}
    assert not {other for other in others if "@register(" in Path(ROOT, *other.split(".")).with_suffix(".py").read_text()}


@pytest.mark.parametrize("module", TREES)
def test_only_search_imports_optuna(module):
    packages = {name.partition(".")[0] for name in imported(ast.walk(TREES[module]))}
    assert "optuna" not in packages or room(module) == "search"


@pytest.mark.parametrize("module", TREES)
def test_heavy_packages_are_imported_where_they_are_used(module):
    assert not LAZY & {name.partition(".")[0] for name in imported(TREES[module].body)}


def test_importing_the_package_stays_light():
    heavy = ("torch", "optuna", "torchvision", "sklearn", "plotly")
    code = f"import sys, subnet_search; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there():
    assert set(dir(subnet_search)) == set(subnet_search.__all__) == set(subnet_search._HOMES)
    declared = {
        alias.asname or alias.name for node in ast.walk(FACE) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert set(subnet_search.__all__) <= declared
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = subnet_search.nothing
