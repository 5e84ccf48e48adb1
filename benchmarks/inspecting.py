"""Looking into a study of 5,000 trials on SQLite, across four methods and with a pruner. Target: under 2 s a command.

Seconds from the start of the process to its end, medians. `reading` is what Optuna's own reader takes for the same
trials in a process that is running already, and ours (`search/reading.py`) with the long attributes left out.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.samplers import RandomSampler
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import insert
from timing import medians, verdict

from subnet_search.config import check
from subnet_search.extraction import versions
from subnet_search.search.backends import open_storage, rdb
from subnet_search.search.inspect import COLD
from subnet_search.search.launch import prepare_study
from subnet_search.search.leases import whereabouts
from subnet_search.search.reading import read_trials
from subnet_search.search.spec import StudySpec
from subnet_search.search.storage import load_study

COMMANDS = (
    "list",
    "show large",
    "trials large",
    'trials large --sort val_accuracy --desc --filter "density<=0.1" --filter extractor=rigl --limit 20',
    "trials large --json",
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


class Draw:
    """Stands in for a trial: parameters at random."""

    def __init__(self, seed: int) -> None:
        self.sampler, self.params, self.distributions = RandomSampler(seed), dict[str, Any](), dict[str, Any]()

    def _suggest(self, name: str, distribution: Any) -> Any:
        self.distributions[name] = distribution
        self.params[name] = self.sampler.sample_independent(None, None, name, distribution)
        return self.params[name]


def fill(url: str, name: str, count: int) -> None:
    """A study as `count` trials of a search would leave it, written in bulk: made up, but of the real size and shape."""
    spec = check(StudySpec, {**SPEC, "name": name, "trials": count})
    study, here = prepare_study(spec, url), versions()
    rng, worker, began = np.random.default_rng(len(name)), whereabouts(), datetime.now(UTC) - timedelta(days=1)
    with rdb(study._storage).engine.begin() as connection:
        rows: dict[Any, list[dict[str, Any]]] = {}
        for number in range(count):
            draw = Draw(number)
            values = spec.searched.suggest(draw)
            config = spec.config({**values, "seed": number}).resolve()
            density = float(values["extractor.density"])
            method = ["synflow", "gumbel", "rigl", "granet"].index(values["extractor"])
            quality = 0.8 + 0.03 * method + 0.05 * np.log10(density / 0.3) - abs(values["recipe.momentum"] - 0.9) / 5
            quality = float(np.clip(quality + rng.normal(0, 0.01), 0, 1))
            state, epochs, attrs = ending(number, count, density, quality, rng)
            folder = f"{study.user_attrs['folder']}/{number:04d}"
            attrs |= {"config": config.dump(), "seed": number, "folder": folder, "worker": worker, "versions": here}
            if number % 40 == 0:
                attrs["interruptions"] = [{"why": "its worker 123 on a was gone", "host": "a", "pid": 123, "died": True}]
            when = began + timedelta(seconds=10 * number)
            moments = {"_datetime_start_utc": when, "_datetime_complete_utc": when + timedelta(seconds=80)}
            trial = {"trial_id": study._study_id * 1_000_000 + number, "study_id": study._study_id, "number": number}
            rows.setdefault(models.TrialModel, []).append({**trial, "state": state, **moments})
            key = {"trial_id": trial["trial_id"]}
            reported = {epoch: quality * (1 - 0.5**epoch) for epoch in range(1, epochs + 1)}
            system = {"constraints:density": density - 0.1}
            table(rows, models.TrialUserAttributeModel, key, {k: {"value_json": json.dumps(v)} for k, v in attrs.items()}, "key")
            table(rows, models.TrialSystemAttributeModel, key, {k: {"value_json": str(v)} for k, v in system.items()}, "key")
            stored = {
                n: {"param_value": d.to_internal_repr(draw.params[n]), "distribution_json": optuna.distributions.distribution_to_json(d)}
                for n, d in draw.distributions.items()
            }
            table(rows, models.TrialParamModel, key, stored, "param_name")
            steps = {e: {"intermediate_value": v, "intermediate_value_type": "FINITE"} for e, v in reported.items()}
            table(rows, models.TrialIntermediateValueModel, key, steps, "step")
            if state in (TrialState.COMPLETE, TrialState.PRUNED) and reported:
                value = {0: {"value": reported[epochs], "value_type": "FINITE"}}
                table(rows, models.TrialValueModel, key, value, "objective")
        for model, found in rows.items():
            connection.execute(insert(model), found)


def table(rows: dict[Any, list[Any]], model: Any, key: dict[str, Any], cells: dict[Any, dict[str, Any]], column: str) -> None:
    rows.setdefault(model, []).extend({**key, column: name, **cell} for name, cell in cells.items())


def ending(
    number: int, count: int, density: float, quality: float, rng: np.random.Generator
) -> tuple[TrialState, int, dict[str, Any]]:
    """How a trial ended: the last eight are under way, one in fifty failed, one in two was stopped early."""
    if number >= count - 8:
        return TrialState.RUNNING, 3, {"beat": 5}
    if number % 50 == 7:
        lines = [f"2026-01-01 12:00:{second:02d},000 epoch {second}: validation accuracy 0.1" for second in range(20)]
        trace = "Traceback (most recent call last):\n" + '  File "x.py", line 1, in f\n    g()\n' * 20
        return TrialState.FAIL, 2, {"reason": "the loss is nan at step 12", "log": lines, "traceback": trace}
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
        for name in ("large", "other"):
            fill(url, name, count)
        contenders = {words: runner(words, url) for words in COMMANDS}
        took = medians(contenders, 1 if quick else 5, warmup=1)
        rows: list[dict[str, object]] = [
            {"command": f"`study {words}`", "trials": f"{count:,}", "seconds": f"{took[words]:.2f}"}
            | {"target": verdict(took[words], "<", 2, " s")}
            for words in COMMANDS
        ]
        readers = {"Optuna's": lambda s: s.get_trials(deepcopy=False), "ours": lambda s: read_trials(s, without=COLD)}
        for name, read in readers.items():
            study = load_study("large", open_storage(url))  # nothing is in its cache yet
            started = time.perf_counter()
            read(study)
            rows.append({"reading": name, "trials": f"{count:,}", "seconds ": f"{time.perf_counter() - started:.2f}"})
    return rows


def runner(words: str, url: str) -> Callable[[], None]:
    import shlex

    command = [str(Path(sys.executable).with_name("subnet-search")), "study", *shlex.split(words)]

    def run() -> None:
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "SUBNET_SEARCH_STORAGE": url})
        if done.returncode:
            raise RuntimeError(f"{words} failed: {done.stderr.strip()[-300:]}")

    return run
