"""Looking into a study of 5,000 trials on SQLite, over four methods, with a pruner. Target: under 2 s a command.

Seconds from the start of a process to its end, medians. The last table is reading the trials alone: with Optuna's
`get_trials`, and with `search/reading.py` without the long attributes that no table shows.
"""

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState
from timing import medians, verdict

from subnet_search.extraction.config_file import check
from subnet_search.extraction.provenance import versions
from subnet_search.search.spec.study_spec import StudySpec
from subnet_search.search.storage.connect import load_study, open_storage, rdb
from subnet_search.search.storage.read import COLD, read_trials
from subnet_search.search.storage.write import insert_trials
from subnet_search.search.studies.launcher import prepare_study

COMMANDS = (
    "list",
    "show large",
    "trials large",
    'trials large --sort val_accuracy --desc --filter "density<=0.1" --filter extractor=rigl --limit 20',
    "trials large --json",
    "trials large --csv",
    "trial large 4000",
    "best large",
    "compare large other",
    "pareto large --objectives val_accuracy,density",
    "importance large",
    "importance large --evaluator fanova",
)
SPEC = {
    "run": {"network": "lenet5", "data": "digits", "recipe": {"epochs": 27}},
    "space": {
        "extractor": {"choice": ["gumbel", "granet", "rigl", "synflow"]},
        "extractor.density": {"float": [0.01, 0.3], "log": True},
        "recipe.lr": [
            {"when": {"extractor": "gumbel"}, "float": [10, 100], "log": True},
            {"when": {"extractor": ["granet", "rigl", "synflow"]}, "float": [0.01, 0.3], "log": True},
        ],
        "recipe.momentum": {"float": [0.5, 0.99]},
        "network.init": {"choice": ["kaiming_normal", "signed_constant"]},
    },
    "objective": ["val_accuracy"],
    "constraints": {"density": "<= 0.1"},
    "pruner": "hyperband",
    "repeats": 3,
}
QUALITY = {"synflow": 0.8, "gumbel": 0.83, "rigl": 0.86, "granet": 0.89}


class Draw:
    """Stands in for a trial: parameters at random."""

    def __init__(self, seed: int) -> None:
        self.sampler, self.params, self.distributions = RandomSampler(seed), dict[str, Any](), dict[str, Any]()

    def _suggest(self, name: str, distribution: Any) -> Any:
        self.distributions[name] = distribution
        self.params[name] = self.sampler.sample_independent(None, None, name, distribution)
        return self.params[name]


def fill(url: str, name: str, count: int, seed: int = 0) -> None:
    """A study as `count` trials of a search would leave it: made up, but of the real size and shape."""
    spec = check(StudySpec, {**SPEC, "name": name, "trials": count})
    study = prepare_study(spec, url)
    began = datetime.now() - timedelta(days=2)
    rng, here = np.random.default_rng(seed), versions()
    trials = []
    for number in range(count):
        draw = Draw(seed * count + number)
        values = spec.searched.suggest(draw)
        density = float(values["extractor.density"])
        quality = QUALITY[values["extractor"]] + 0.05 * np.log10(density / 0.3) - abs(values["recipe.momentum"] - 0.9) / 5
        state, epochs, attrs = ending(number, count, density, float(np.clip(quality + rng.normal(0, 0.01), 0, 1)), rng)
        attrs["config"] = spec.config({**values, "seed": number}).resolve().dump()
        attrs |= {"seed": number, "folder": f"{study.user_attrs['folder']}/{number:04d}", "versions": here}
        attrs["worker"] = {"host": "node-17", "pid": 4711, "token": f"{number:032x}", "started": "23", "boot": f"{1:036x}"}
        if number % 40 == 0:
            attrs["interruptions"] = [
                {"why": "its worker 123 on node-16 was gone", "host": "node-16", "pid": 123, "died": True}
            ]
        reports = {epoch: attrs.get("val_accuracy", 0.5) * (1 - 0.5**epoch) for epoch in range(1, epochs + 1)}
        start = began + timedelta(seconds=30 * number)
        finished = state in (TrialState.COMPLETE, TrialState.PRUNED)
        trials.append(
            FrozenTrial(
                number=number,
                trial_id=-1,
                state=state,
                value=attrs["val_accuracy"] if finished else None,
                datetime_start=start,
                datetime_complete=start + timedelta(seconds=80) if state.is_finished() else None,
                params=draw.params,
                distributions=draw.distributions,
                user_attrs=attrs,
                system_attrs={"constraints:density": density - 0.1},
                intermediate_values=reports,
            )
        )
    insert_trials(rdb(study._storage), study._study_id, trials)


def ending(
    number: int, count: int, density: float, quality: float, rng: np.random.Generator
) -> tuple[TrialState, int, dict[str, Any]]:
    """How a trial ended: the last eight are under way, one in fifty failed, half of the others were stopped early."""
    if number >= count - 8:
        return TrialState.RUNNING, 3, {"beat": 5}
    if number % 50 == 7:
        lines = [f"2026-01-01 12:00:{second:02d},000 epoch {second}: validation accuracy 0.1" for second in range(20)]
        trace = "Traceback (most recent call last):\n" + '  File "x.py", line 1, in f\n    g()\n' * 20
        return TrialState.FAIL, 2, {"reason": f"the loss is nan at step {number}", "log": lines, "traceback": trace}
    epochs = int(rng.choice([1, 3, 9, 27], p=[0.3, 0.1, 0.1, 0.5]))
    accuracy = quality * (1 - 0.5**epochs)
    found = {"density": density, "val_accuracy": accuracy, "seconds": 2.5 * epochs, "steps": 9 * epochs}
    if epochs < 27:
        return TrialState.PRUNED, epochs, {**found, "reason": f"hyperband stopped it after epoch {epochs}"}
    more = {"test_accuracy": accuracy - 0.01, "passes": {"forward": 243, "backward": 243}, "sha256": f"{number:064x}"}
    return TrialState.COMPLETE, epochs, {**found, **more}


def main(quick: bool = False) -> list[dict[str, object]]:
    count = 200 if quick else 5000
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/studies.db"
        for seed, name in enumerate(("large", "other")):
            fill(url, name, count, seed)
        took = medians({words: runner(words, url) for words in COMMANDS}, 1 if quick else 5, warmup=1)
        rows: list[dict[str, object]] = [
            {
                "command": f"`study {words}`".replace("|", "\\|"),
                "trials": f"{count:,}",
                "seconds": f"{took[words]:.2f}",
                "target": verdict(took[words], "<", 2, " s"),
            }
            for words in COMMANDS
        ]
        readers = {
            "Optuna's": lambda study: study.get_trials(deepcopy=False),
            "ours": lambda study: read_trials(study, without=COLD),
        }
        for name, read in readers.items():
            study = load_study("large", open_storage(url))  # of which nothing is in a cache yet
            started = time.perf_counter()
            read(study)
            rows.append({"reader": name, "trials": f"{count:,}", "seconds": f"{time.perf_counter() - started:.2f}"})
    return rows


def runner(words: str, url: str) -> Callable[[], None]:
    command = [sys.executable, "-m", "subnet_search", "study", *shlex.split(words)]

    def run() -> None:
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "SUBNET_SEARCH_STORAGE": url})
        if done.returncode:
            raise RuntimeError(f"study {words} failed: {done.stderr.strip()[-300:]}")

    return run
