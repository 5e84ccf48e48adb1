"""Sentences that readers had to read twice: the plain ones that took their place stay."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
MISREAD = (
    "The groups that are none",
    "no matter of course",
    "whose end is told",
    "it said to go on each time",
    "to nobody",
    "No farewell",
    "while a topology is looked for",
    "cannot be looked into",
    "nobody is at work",
    "says nothing to a pruner",
    "Get it:",
    "what it came to",
    "is none of ours",
    "sign of life",
    "nobody to ask",
    "held to be",
    "whoever only looks on",
    "comes about",
)


def test_no_sentence_that_was_misread_comes_back():
    pages = [*(ROOT / "subnet_search").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")]
    found = [f"{path.relative_to(ROOT)}: {words}" for path in pages for words in MISREAD if words in path.read_text()]
    assert found == []
