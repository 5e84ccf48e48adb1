"""The pages of the reference that are made from the code when the documentation is built."""

import subprocess
import sys

import mkdocs_gen_files

import subnet_search as ss
from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.schema import sections
from subnet_search.search import StudySpec


def keys(title: str, text: str, found: dict[str, list[dict[str, str]]]) -> list[str]:
    """A section for each part of a configuration, with a table of its keys."""
    lines = [f"## {title}\n", f"{text}\n"]
    for name, rows in found.items():
        lines += [f"### {name}\n", "| key | type | default | meaning |", "|---|---|---|---|"]
        for row in rows:
            cells = (f"`{row['key']}`", row["type"], f"`{row['default']}`" if row["default"] else "", row["meaning"])
            lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
        lines.append("")
    return lines


def page(name: str, lines: list[str]) -> None:
    with mkdocs_gen_files.open(f"reference/{name}.md", "w") as file:
        file.write("\n".join(lines) + "\n")


page(
    "configuration",
    [
        "# Configuration\n",
        "Every key has a default. `subnet-search config` prints the same tables.\n",
        *keys("A run", "Keys of a configuration, and of `-s KEY=VALUE`.", sections(RunConfig, "run")),
        *keys("A study", "Keys of a study's file; `run` takes the keys of a run.", sections(StudySpec, "study")),
    ],
)
COMMAND = ("-m", "typer", "subnet_search.cli.app", "utils", "docs", "--name", "subnet-search", "--title", "Commands")
page("commands", [subprocess.run([sys.executable, *COMMAND], check=True, capture_output=True, text=True).stdout])
names = ["# Python\n", "All names of `import subnet_search as ss`.\n"]
for name in ss.__all__:
    module, own = ss._HOMES[name]
    home = getattr(getattr(ss, name), "__module__", "")  # of a class or function; a type's alias is where it is listed
    names.append(f"::: {home if home.startswith('subnet_search') else f'subnet_search.{module}'}.{own}\n")
page("python", names)
