"""Every code block of the documentation runs: Python, commands and configurations, page by page, from the top.

A page is run in an empty folder that holds `configs/`, `studies/` and `examples/`. A block whose first line is a comment
with a file's name is written to that file. Commands are the same but for their length (two epochs on 200 items, one seed, four
trials, no times) and for CIFAR, in place of which they get random images. A block that cannot run here has a comment before it
that says why: `<!-- skip: next "needs a cluster" -->`.
"""

import contextlib
import re
import shlex
import shutil
import subprocess
import sys
import unittest
from pathlib import Path

import numpy as np
import pytest
import yaml
from sybil import Document, Example, Region, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser, SkipParser

from subnet_search import RunConfig, StudySpec
from subnet_search.cli import main
from subnet_search.extraction.config_file import check

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
NAMED = re.compile(r"# ([\w./-]+\.(?:py|ya?ml))\b")
# Words in the names of pages that take longer than 10 s.
LONG = re.compile(
    "move|faster|running|pandas|studies|networks|deploy|across|compare|transformers|extractor|CONTRIB|isometry|reports"
)
LANGUAGES = ("python", "yaml", "sh", "text", "json", "sql", "dockerfile")
FEW = ["-s", "recipe.epochs=2", "-s", "data.limit=200", "-s", "recipe.batch_size=32"]
SHORT = {
    "extract": FEW,
    "compare": [*FEW, "--seeds", "1", "--workers", "1"],
    "sanity": [*FEW, "--seeds", "1"],
    "plasticity": [*FEW, "--epochs", "1", "-s", "recipe.epochs=10"],
}
STUDY = ["--trials", "4", "-s", "run.recipe.epochs=2", "-s", "run.data.limit=200", "-s", "sampler.n_startup_trials=2"]
DOWNLOADED = re.compile(r"\bdata=(cifar10|cifar100)\b")


def named_file(block: Example) -> bool:
    """Write a block that begins with a file's name; whether it was one."""
    if found := NAMED.match(block.parsed):
        path = Path(found[1])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.parsed)
    return bool(found)


def python(block: Example) -> None:
    if not named_file(block):
        PythonEvaluator()(block)


def configuration(block: Example) -> None:
    named_file(block)
    values = yaml.safe_load(block.parsed)
    study = not values.keys() <= RunConfig.model_fields.keys()
    check(StudySpec if study else RunConfig, {"name": "page", "trials": 1, **values} if study else values)


def commands(block: Example) -> None:
    for line in block.parsed.replace("\\\n", " ").splitlines():
        words = shlex.split(DOWNLOADED.sub("data=npz:small_cifar.npz", line), comments=True)
        if words[:1] == ["subnet-search"]:
            command(words[1:], line)
        elif words[:1] == ["python"]:
            done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True)
            assert done.returncode == 0, f"{line}\n{done.stderr}"
        else:
            assert not words, f"no way to run {line!r}: say why in a skip comment before the block"


def command(words: list[str], line: str) -> None:
    short = [] if {"--resume", "recipe.epochs=0"} & set(words) else SHORT.get(words[0], [])
    if words[:2] == ["study", "run"]:
        words = ["1" if before == "--workers" else word for before, word in zip(["", *words], words, strict=False)]
        short = STUDY if words[2].endswith(".yaml") else ["--trials", "4"]
    untimed = ["--no-latency"] if words[0] == "export" or "--export" in words else []
    with pytest.raises(SystemExit) as ended:
        main([*words, *short, *untimed])
    assert ended.value.code == 0, line


class Text:
    """Blocks of output and of other languages, which are not run. A block must have a language."""

    def __call__(self, document: Document) -> list[Region]:
        for fence in re.finditer(r"^```(\w*)\n.*?^```$", document.text, re.M | re.S):
            before = document.text[: fence.start()].rstrip().splitlines()[-1:]
            assert before != ["<!-- skip: next -->"], "a block that is not run has a reason"
            assert fence[1] in LANGUAGES, f"a block of {document.path} is {fence[1]!r}"
        return []


SYBIL = Sybil(
    [
        SkipParser(),
        CodeBlockParser("python", python),
        CodeBlockParser("yaml", configuration),
        CodeBlockParser("sh", commands),
        Text(),
    ]
)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty folder with the examples, as after `subnet-search init`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for folder in ("configs", "studies", "examples"):
        shutil.copytree(ROOT / folder, folder)
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (200, 32, 32, 3), dtype=np.uint8), np.arange(200) % 10
    np.savez("small_cifar.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def in_turn(page):
    marks = pytest.mark.long if LONG.search(page.name) else ()
    return pytest.param(page, id=str(page.relative_to(ROOT)), marks=marks)


@pytest.mark.slow
@pytest.mark.parametrize("page", [in_turn(page) for page in PAGES])
def test_every_code_block_runs(page, project):
    for block in SYBIL.parse(page).examples():
        with contextlib.suppress(unittest.SkipTest):
            block.evaluate()
