"""Time until `subnet-search --help` is back, and what a run imports, against an empty Python and one that imports torch."""

import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

from timing import medians, verdict

TORCH = "python -c 'import torch'"
COMMANDS = {
    "subnet-search --help": [str(Path(sysconfig.get_path("scripts")) / "subnet-search"), "--help"],
    "python -m subnet_search --help": [sys.executable, "-m", "subnet_search", "--help"],
    "all that a study's worker imports": [sys.executable, "-c", "import subnet_search.search.engine.worker"],
    "python -c pass": [sys.executable, "-c", "pass"],
    TORCH: [sys.executable, "-c", "import torch"],
}


def main(quick: bool = False) -> list[dict[str, object]]:
    took = medians({name: runner(command) for name, command in COMMANDS.items()}, 3 if quick else 10, warmup=1)
    return [
        {
            "command": f"`{name}`",
            "seconds": f"{seconds:.2f}",
            "x import torch": took.ratio(name, TORCH, "lower"),
            "target": verdict(seconds, "<", 0.6, " s") if "--help" in name else "",
        }
        for name, seconds in took.items()
    ]


def runner(command: list[str]) -> Callable[[], None]:
    def run() -> None:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()[-300:]}")

    return run
