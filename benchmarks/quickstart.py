"""The quickstart study, from an empty folder to its best trial, as a user runs it. Targets: < 120 s, >= 0.98."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from timing import verdict

SPEC = Path(__file__).parents[1] / "studies" / "quickstart.yaml"


def main(quick: bool = False) -> list[dict[str, object]]:
    with tempfile.TemporaryDirectory() as folder:
        storage = ["--storage", f"sqlite:///{folder}/studies.db"]
        started = time.perf_counter()
        command(folder, "study", "run", str(SPEC), *storage, *(["--trials", "2"] if quick else []))
        seconds = time.perf_counter() - started
        best = json.loads(command(folder, "study", "best", "quickstart", *storage, "--json"))
    best = best[0] if isinstance(best, list) else best  # several trials where a study has several objectives
    accuracy = best["values"][0]
    return [
        {
            "study": "quickstart, 2 trials" if quick else "quickstart",
            "seconds": f"{seconds:.0f}",
            "target": verdict(seconds, "<", 120, " s"),
            "best validation accuracy": f"{accuracy:.4f}",
            "target ": verdict(accuracy, ">=", 0.98),
        }
    ]


def command(folder: str, *arguments: str) -> str:
    command = [sys.executable, "-m", "subnet_search", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"subnet-search {' '.join(arguments)} failed: {done.stderr.strip()[-300:]}")
    return done.stdout
