"""Worker processes of a study on this machine."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

import optuna

from subnet_search.core.errors import Interrupted, RunError
from subnet_search.core.tensor_files import write_atomically
from subnet_search.search.engine.scheduler import Scheduler
from subnet_search.search.spec.study_spec import StudySpec, spec_of
from subnet_search.search.storage.connect import scrub
from subnet_search.search.storage.records import FINISHED, TrialRecord
from subnet_search.search.storage.retry import PATIENCE, patiently
from subnet_search.search.storage.study_folder import folder_of

STORAGE_VARIABLE = "SUBNET_SEARCH_STORAGE"
RESTARTS = 10  # of a killed worker process while no trial is finished
STOPPED_EXIT_CODE = 130  # of a worker that was stopped by a signal


def finished(study: optuna.Study) -> int:
    """Number of finished trials, without imported results and repeats."""
    trials = patiently(lambda: study.get_trials(deepcopy=False, states=FINISHED))
    return sum(TrialRecord(trial).counts for trial in trials)


def release_lost_trials(study: optuna.Study) -> list[int]:
    """Requeue the trials whose worker process on this machine is dead; returns their numbers."""
    return patiently(lambda: Scheduler(study, spec_of(study), 0).release_lost_trials())


def run_processes(
    study: optuna.Study,
    spec: StudySpec,
    url: str,
    count: int,
    budget: int,
    limit: float | None,
    allowed: Collection[str],
    should_stop: Callable[[], bool],
) -> None:
    """Run workers as processes, each with a log file, until all end; a killed one is restarted."""
    end, folder = time.monotonic() + (limit or float("inf")), patiently(folder_of, study)
    processes = [_Process(spec, url, budget, folder, index, allowed) for index in range(count)]
    for process in processes:
        process.start(limit)
    stopped = False
    try:
        while True:
            if not stopped and should_stop():
                stopped = True
                for process in processes:
                    process.stop()
            for process in processes:
                if not stopped and process.was_killed() and time.monotonic() < end and process.may_restart(finished(study)):
                    process.start(end - time.monotonic() if limit else None)
            if not any(process.alive() for process in processes):
                break
            time.sleep(0.1)
    finally:
        for process in processes:
            process.stop()
    release_lost_trials(study)
    if stopped:
        raise Interrupted("stopped; the running trials are queued to resume")
    ended_early = [process for process in processes if process.code() != 0]
    if ended_early and time.monotonic() < end and not (spec.compares or finished(study) >= budget):
        failed = [process for process in ended_early if process.code() != STOPPED_EXIT_CODE]
        if not failed:
            raise Interrupted("the workers were stopped; the running trials are queued to resume")
        raise RunError(f"a worker failed: {failed[0].failure_reason()} ({failed[0].log})")


class _Process:
    """A worker process."""

    def __init__(self, spec: StudySpec, url: str, budget: int, folder: Path, index: int, allowed: Collection[str]) -> None:
        self.log = folder / f"worker-{os.getpid()}-{index}.log"  # the process id separates several launches
        # Not on the command line: other users of the machine could read the password.
        self.environment = {**os.environ, STORAGE_VARIABLE: url, "OMP_NUM_THREADS": str(spec.run.recipe.threads or 1)}
        self.command = [sys.executable, "-m", "subnet_search", "study", "worker", "--trials", str(budget)]
        self.command += [f"--wait={PATIENCE:g}", *(f"--allow-import={name}" for name in allowed)]
        self.name = spec.name
        self.starts, self.unproductive_restarts, self.finished = 0, 0, 0

    def start(self, limit: float | None) -> None:
        if self.starts == 0:
            write_atomically(self.log, b"")
        self.starts += 1
        with open(self.log, "ab") as file:
            # A new session, so that Ctrl-C reaches only this process, which then stops the workers.
            self.process = subprocess.Popen(
                # The name comes last because it may start with a dash.
                [*self.command, *(["--timeout", str(max(0.001, limit))] if limit else []), "--", self.name],
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def alive(self) -> bool:
        return self.process.poll() is None

    def code(self) -> int:
        return self.process.returncode

    def was_killed(self) -> bool:
        """Whether a signal ended the process and restarts are left."""
        return not self.alive() and self.process.returncode < 0 and self.unproductive_restarts <= RESTARTS

    def may_restart(self, finished: int) -> bool:
        """Whether to restart it after a kill. finished: number of finished trials of the study."""
        self.unproductive_restarts = 0 if finished > self.finished else self.unproductive_restarts + 1
        self.finished = finished
        return self.unproductive_restarts <= RESTARTS

    def stop(self) -> None:
        if self.alive():
            self.process.send_signal(signal.SIGTERM)

    def failure_reason(self) -> str:
        if self.code() < 0:
            times = f"killed {self.unproductive_restarts} times (signal {-self.code()})"
            return f"{times} while no trial was finished; possibly out of memory"
        lines = scrub(self.log.read_text(errors="replace")).strip().splitlines()
        return lines[-1] if lines else "no reason given"
