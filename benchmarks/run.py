"""Side-by-side measurements: `python benchmarks/run.py [NAME]... [--quick]`.

Each benchmark is a file with a docstring, which becomes its text, and `main(quick)`, which returns the rows of its tables.
Its section of benchmarks/RESULTS.md is written anew; those that were not named stay as they are. The quick form only
prints. What counts are ratios within one run: times are of the machine they were taken on.
"""

import argparse
import importlib.metadata
import itertools
import os
import platform
import re
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path

# As the command line does, before torch starts its threads: without it a busy neighbour makes any step many times slower.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import torch
from timing import THREADS

NAMES = (
    "step_time",
    "digits",
    "seed_size",
    "selection",
    "topology_change",
    "memory",
    "startup",
    "inspecting",
    "workers",
    "faults",
    "hyperband",
    "across",
    "quickstart",
    "short_runs",
    "paradigms",
    "compact",
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
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in NAMES]:
        parser.error(f"no benchmark {unknown[0]!r}; valid: {', '.join(NAMES)}")
    torch.set_num_threads(THREADS)
    failed = []
    for name in options.names or NAMES:
        try:
            section = measure(name, options.quick)
        except Exception:  # the others still run, and what was measured before stays
            traceback.print_exc()
            failed.append(name)
            continue
        print(section, flush=True)
        if not options.quick:
            write(name, section)
    return 1 if failed else 0


def write(name: str, section: str) -> None:
    """Put a section in its place in RESULTS.md."""
    _, *parts = re.split(r"(?m)^(?=## )", RESULTS.read_text() if RESULTS.exists() else "")
    sections = {part.split()[1]: part.strip() + "\n" for part in parts} | {name: section.strip() + "\n"}
    RESULTS.write_text("\n".join([HEADING, *(sections[known] for known in NAMES if known in sections)]))


def circumstances() -> str:
    load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("subnet-search", "torch", "numpy"))
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC; {packages}, python {platform.python_version()}; "
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors, {THREADS} threads{load}."
    )


def measure(name: str, quick: bool) -> str:
    when, benchmark = circumstances(), importlib.import_module(name)
    rows = benchmark.main(quick)
    tables = [table(list(group)) for _, group in itertools.groupby(rows, key=lambda row: tuple(row))]
    return "\n".join([f"## {name}\n", benchmark.__doc__.strip() + "\n", *tables, f"{when}\n"])


def table(rows: list[dict[str, object]]) -> str:
    """A markdown table of rows with the same keys."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
