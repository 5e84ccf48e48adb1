"""Side-by-side measurements: `python benchmarks/run.py [NAME]... [--quick | --compare]`.

Each benchmark is a file with a docstring, which becomes its text, and `main(quick)`, which returns the rows of its tables.
Its section of benchmarks/RESULTS.md is written anew; those that were not named stay as they are. The numbers of every run
are a file in benchmarks/results/, and `--compare` holds the newest against the one before. The quick form only prints.
What counts are ratios within one run: times are of the machine they were taken on.
"""

import argparse
import importlib
import itertools
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any

# As the command line does, before torch starts its threads: without it a busy neighbour makes any step many times slower.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import records
import torch
from timing import THREADS

NAMES = (
    "step_time",
    "digits",
    "seed_size",
    "selection",
    "topology_change",
    "data_paths",
    "memory",
    "larger_than_memory",
    "startup",
    "inspecting",
    "workers",
    "faults",
    "hyperband",
    "across",
    "quickstart",
    "short_runs",
    "paradigms",
    "isometry",
    "readout",
    "ensembles",
    "compact",
    "compact_families",
    "speed",
    "sparse",
    "dynamic",
)
RESULTS = Path(__file__).with_name("RESULTS.md")
HEADING = """# Benchmarks

Written by `python benchmarks/run.py` (`make bench`), or for one of them `python benchmarks/run.py NAME`. Medians of
interleaved runs; ratios count, times are of the machine.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one or more of {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller cases: does it run?")
    parser.add_argument("--compare", action="store_true", help="measure nothing: print the newest results against those before")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in NAMES]:
        parser.error(f"no benchmark {unknown[0]!r}; valid: {', '.join(NAMES)}")
    if options.compare:
        lines = [line for name in options.names or NAMES for line in records.compare(name)]
        print("\n".join(lines or ["no benchmark has two results to compare"]))
        return int(any(line.endswith("WORSE") for line in lines))
    torch.set_num_threads(THREADS)
    failed = []
    for name in options.names or NAMES:
        try:
            measure(name, options.quick)
        except Exception:  # the others still run, and what was measured before stays
            traceback.print_exc()
            failed.append(name)
    return 1 if failed else 0


def write(name: str, section: str) -> None:
    """Put a section in its place in RESULTS.md."""
    _, *parts = re.split(r"(?m)^(?=## )", RESULTS.read_text() if RESULTS.exists() else "")
    sections = {part.split()[1]: part.strip() + "\n" for part in parts} | {name: section.strip() + "\n"}
    RESULTS.write_text("\n".join([HEADING, *(sections[known] for known in NAMES if known in sections)]))


def measure(name: str, quick: bool) -> None:
    """Run a benchmark, print its section, and keep it unless it was the quick form."""
    when, benchmark = records.circumstances(), importlib.import_module(name)
    rows = benchmark.main(quick)
    tables = [table(list(group)) for _, group in itertools.groupby(rows, key=lambda row: tuple(row))]
    section = "\n".join([f"## {name}\n", benchmark.__doc__.strip() + "\n", *tables, f"{in_words(when)}\n"])
    print(section, flush=True)
    if not quick:
        write(name, section)
        records.write(name, when, rows)


def in_words(when: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in when["versions"].items())
    machine = when["machine"]
    load = "" if when["load"] is None else f", load {when['load']} at the start"
    return f"{when['date']}; {packages}; {machine['system']}, {machine['processors']} processors, {THREADS} threads{load}."


def table(rows: list[dict[str, object]]) -> str:
    """A markdown table of rows with the same keys."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
