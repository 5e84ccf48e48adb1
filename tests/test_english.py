"""Plain technical English: names and phrases that readers misread do not come back.

Misread names became the field's terms: `judging` is evaluate, `warm` warm_start, `settle` fold_gates, `anchor` rewind_state.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "subnet_search"
MODULES = """
    trials known judging measures footprint dispatch objective warm entries inspect look page show listing pieces shares
"""
NAMES = "settle drop_anchor explored pieces shares untrue become try_out one_goes_ahead"  # of functions and classes
IDENTIFIERS = "anchor _tell _run _read"  # of functions, variables, arguments, attributes and imports
MISREAD = (  # everywhere
    "The groups that are none",
    "no matter of course",
    "whose end is told",
    "it said to go on each time",
    "what it came to",
    "to nobody",
    "No farewell",
    "while a topology is looked for",
    "held to be",
    "be looked into",
    "nobody is at work",
    "says nothing to a pruner",
    "Get it:",
    "sign of life",
    "nobody to ask",
    "whoever only looks on",
    "comes about",
    "none of ours",
    "says so",
    "said to be",
    "at work",
    "stands for",
    "of its own",
    "handed in",
    "goes on",
    "go on",
    "hand it in",
    "let wait",
    "lost touch",
)


def found(phrases, pages):
    return [f"{path.relative_to(ROOT)}: {words}" for path in pages for words in phrases if words in path.read_text()]


def test_no_sentence_that_was_misread_comes_back():
    pages = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), *(ROOT / "examples").glob("*.[pi]*")]
    assert found(MISREAD, [*PACKAGE.rglob("*.py"), *pages]) == []


def test_no_name_that_was_misread_comes_back():
    files = list(PACKAGE.rglob("*.py"))
    assert [path for path in files if path.stem in MODULES.split()] == []
    defined = {
        (path.name, node.name)
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    assert [(file, name) for file, name in sorted(defined) if name in NAMES.split()] == []


def test_no_identifier_that_was_misread_comes_back():
    nodes = [(path.name, node) for path in PACKAGE.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    used = {(file, getattr(node, field, None)) for file, node in nodes for field in ("name", "asname", "id", "attr", "arg")}
    assert [(file, name) for file, name in used if name in IDENTIFIERS.split()] == []
