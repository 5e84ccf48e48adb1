"""Run a study's workers on a Ray cluster.

Each Ray actor is one worker: it calls `run_worker` and keeps no state. Ray restarts an actor whose process or node
died on any node with free resources; its trial is requeued when the lease expires and resumes from its checkpoint.

Ray runs in a separate driver process, because it takes over signals, prints to standard output, and exits the process
when the cluster's head node is lost.

The storage URL may hold a password. Ray shows command lines, actor names and runtime environments to all users of the
cluster and stores the arguments of actor constructors. So the URL goes to the driver through a pipe, and to a worker as an
argument of its `run` call, which Ray does not show.
"""

import importlib
import importlib.util
import json
import logging
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url

from subnet_search.core.errors import Interrupted, RunError, UserError
from subnet_search.search.engine.worker import run_worker
from subnet_search.search.storage.connect import load_study, open_storage, scrub
from subnet_search.search.storage.retry import PATIENCE, patiently
from subnet_search.search.storage.study_folder import folder_of

RESTARTS = 3  # of each worker before it counts as failed
POLL_SECONDS = 0.5
CONNECT_SECONDS = 10.0  # timeout of the connection test
STOP_SECONDS = 15.0  # for a worker to confirm that it stops; one that does not is killed
END_SECONDS = 30.0  # for the driver to exit before it is killed
CALLS = 8  # concurrent calls to one worker: `run`, `stop`, and retries of both
OBJECT_STORE = 100 * 2**20  # bytes, of a local Ray: it only passes the workers' arguments

logger = logging.getLogger(__name__)


def run_on_ray(
    name: str,
    url: str,
    *,
    workers: int,
    trials: int | None,
    timeout: float | None,
    address: str | None,
    gpus: float,
    cpus: float,
    allow_imports: Sequence[str] = (),
    should_stop: Callable[[], bool],
) -> None:
    """Run a stored study with workers on a Ray cluster until its budget is used up.

    address       of the cluster, as printed by `ray start` (`auto`: the one on this machine); None starts a local Ray and
                  stops it afterwards
    gpus, cpus    resources of each worker, which runs one trial at a time; gpus may be a fraction below 1

    The other arguments are those of `run_study`. Workers for which the cluster has no free resources wait. Ray's output is
    in `ray.log` in the study's folder. The caller requeues lost trials afterwards.

    Raises UserError if Ray is not installed, the cluster cannot be joined, no node has the resources, or SQLite would be
    used from several machines; Interrupted when stopped, after all workers have stopped; RunError when all workers or Ray
    itself failed.
    """
    if importlib.util.find_spec("ray") is None:
        raise UserError("the engine ray needs Ray: pip install 'subnet-search[ray]'")
    if gpus > 1 and gpus != int(gpus):
        raise UserError(f"--gpus-per-trial takes a whole number or a fraction below 1, got {gpus:g}")
    _check_address(address)
    deadline = None if timeout is None else time.time() + timeout
    actor = {"name": name, "url": url, "trials": trials, "deadline": deadline, "folder": os.getcwd(), "allow": allow_imports}
    job = {"actor": actor, "url": url, "workers": workers, "address": address, "gpus": gpus, "cpus": cpus}
    store = open_storage(url, wait=PATIENCE)
    log = patiently(lambda: folder_of(load_study(name, store))) / "ray.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", "from subnet_search.search.studies.ray_launcher import drive; drive()"]
    with open(log, "wb") as file:  # a new session: Ctrl-C reaches only this process
        pipe = subprocess.PIPE
        driver = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=file, start_new_session=True)
    assert driver.stdin
    assert driver.stdout
    with driver.stdin as orders, driver.stdout as answer:
        try:
            with suppress(BrokenPipeError):
                orders.write(json.dumps(job).encode() + b"\n")
                orders.flush()
            while driver.poll() is None:
                if not orders.closed and should_stop():
                    orders.close()
                time.sleep(POLL_SECONDS)
        finally:
            _end_driver(driver)
        _raise_outcome(answer.read(), log)


def _check_address(address: str | None) -> None:
    """Raise UserError for an address that accepts no connection: Ray itself would retry for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        return  # not HOST:PORT: Ray checks it
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(f"cannot connect to a Ray cluster at {address}: {error.strerror or error}") from error


def _end_driver(driver: subprocess.Popen[bytes]) -> None:
    """Terminate the driver process, which disconnects from the cluster or stops a local Ray."""
    driver.terminate()
    try:
        driver.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        driver.kill()
        driver.wait()


def _raise_outcome(answer: bytes, log: Path) -> None:
    """Log the failures that the driver reported, and raise its error."""
    if not answer:
        raise RunError(f"Ray exited and stopped the workers; the reason is in {log}")
    outcome = json.loads(answer)
    for failure in outcome["failures"]:
        logger.warning("a worker failed; others finished the study: %s", failure)
    match outcome:
        case {"error": "UserError", "message": message}:
            raise UserError(message)
        case {"error": "Interrupted", "message": message}:
            raise Interrupted(message)
        case {"message": message}:
            raise RunError(f"{message} ({log})")


def drive() -> None:
    """Main function of the driver process: reads a job from standard input, stops when that is closed, and writes JSON."""
    answer = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # Ray's output goes to the log
    job = json.loads(sys.stdin.buffer.readline())
    stopping = threading.Event()

    def listen() -> None:
        os.read(sys.stdin.fileno(), 1)  # returns when the parent closes it or dies
        stopping.set()

    threading.Thread(target=listen, daemon=True).start()
    outcome: dict[str, Any] = {"failures": []}
    try:
        outcome["failures"] = _run_workers(job, stopping.is_set)
    except (UserError, RunError) as error:
        outcome |= {"error": type(error).__name__, "message": str(error)}
    os.write(answer, json.dumps(outcome).encode())


def _run_workers(job: dict[str, Any], should_stop: Callable[[], bool]) -> list[str]:
    """Connect to or start Ray and run a job's workers. Returns the failures of workers if others finished the study."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray: Any = importlib.import_module("ray")
    options: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
    try:
        ray.init(job["address"] or "local", log_to_driver=False, **({} if job["address"] else options))
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        doing = f"join the Ray cluster at {job['address']}" if job["address"] else "start Ray"
        raise UserError(f"cannot {doing}: {_in_one_line(error.__cause__ or error)}") from error
    try:
        _check_nodes(ray.nodes(), job)
        # Calls are retried without limit, so that they reach a restarted worker; only the restarts are limited.
        resources = {"num_gpus": job["gpus"], "num_cpus": job["cpus"], "max_restarts": RESTARTS, "max_task_retries": -1}
        actor = ray.remote(max_concurrency=CALLS, **resources)(StudyWorker)
        runs = {worker.run.remote(**job["actor"]): worker for worker in [actor.remote() for _ in range(job["workers"])]}
        return _wait_for_workers(ray, runs, should_stop)
    finally:
        ray.shutdown()


def _check_nodes(nodes: list[dict[str, Any]], job: dict[str, Any]) -> None:
    """Raise UserError if no node has the resources of a worker, or if SQLite would be used on other machines."""
    alive = [node for node in nodes if node["Alive"]]
    have = {(node["Resources"].get("GPU", 0.0), node["Resources"].get("CPU", 0.0)) for node in alive}
    if not any(gpus >= job["gpus"] and cpus >= job["cpus"] for gpus, cpus in have):
        wants, largest = f"{job['gpus']:g} GPU and {job['cpus']:g} CPU", max(have, default=(0.0, 0.0))
        raise UserError(f"a trial needs {wants}, but the largest node has {largest[0]:g} GPU and {largest[1]:g} CPU")
    others = {node["NodeManagerHostname"] for node in alive} - {socket.gethostname()}
    if others and make_url(job["url"]).get_backend_name() == "sqlite":
        raise UserError(
            f"SQLite supports one machine, and the cluster has others ({min(others)}): give a --storage that all machines can "
            "reach, for example postgresql://me@host/studies"
        )


def _wait_for_workers(ray: Any, under_way: dict[Any, Any], should_stop: Callable[[], bool]) -> list[str]:
    """Wait for all workers, given by the reference to their `run` call; stop them when `should_stop` is True."""
    placed = {run: worker.__ray_ready__.remote() for run, worker in under_way.items()}
    failures: list[str] = []
    stopped = finished = False
    while under_way:
        for run in ray.wait(list(under_way), timeout=POLL_SECONDS)[0]:
            failure = _failure_of(ray, run)
            ray.kill(under_way.pop(run))  # frees its resources for a waiting worker
            finished |= failure is None
            failures += [] if failure is None else [failure]
        stopped = stopped or should_stop()
        if stopped or finished:  # no more trials to start
            _kill_unanswered(ray, under_way, placed)
        if stopped:  # repeated, because a restarted worker does not know about it
            _kill_unanswered(ray, under_way, {run: worker.stop.remote() for run, worker in under_way.items()}, STOP_SECONDS)
    if stopped:
        raise Interrupted("stopped; the running trials are queued to resume")
    if not finished:
        raise RunError(f"all workers failed, the last: {failures[-1]}")
    return failures


def _kill_unanswered(ray: Any, under_way: dict[Any, Any], answers: dict[Any, Any], patience: float = 0.0) -> None:
    """Kill the workers that have not answered: they wait for resources or were lost. Their trials are requeued by lease."""
    asked = [answers[run] for run in under_way]
    answered = set(ray.wait(asked, num_returns=len(asked), timeout=patience)[0]) if asked else set()
    for run in [run for run in under_way if answers[run] not in answered]:
        ray.kill(under_way.pop(run))


def _failure_of(ray: Any, run: Any) -> str | None:
    """The failure that `run` returned, or in one line why Ray lost the worker; None on success."""
    try:
        reason: str | None = ray.get(run)
    except ray.exceptions.RayError as error:
        return _in_one_line(error)
    return reason


def _in_one_line(error: BaseException) -> str:
    """Ray's error message in one line, without traceback and actor details."""
    text = str(error).strip() or type(error).__name__
    message = text.splitlines()[-1] if "Traceback" in text or "actor_id" in text else text
    return textwrap.shorten(message, 250, placeholder=" ...")


class StudyWorker:
    """The Ray actor. Ray calls `stop` in a second thread while `run` is running."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._running = threading.Lock()

    def run(
        self, name: str, url: str, trials: int | None, deadline: float | None, folder: str, allow: Sequence[str] = ()
    ) -> str | None:
        """Run trials until the study is finished. Returns None, or the reason why this worker failed.

        deadline  Unix time in seconds after which no trial is started; a restarted worker keeps it
        folder    folder that the study was started in, for relative paths; ignored if this machine does not have it
        allow     names or modules that may be imported
        """
        if os.path.isdir(folder):
            os.chdir(folder)
        with self._running:  # Ray repeats the call after a broken connection, while the first may still be running
            timeout = None if deadline is None else max(deadline - time.time(), 1e-9)  # 0 means no limit
            try:
                stop = self._stopping.is_set
                run_worker(name, url, trials=trials, timeout=timeout, wait=PATIENCE, allow_imports=allow, should_stop=stop)
            except Interrupted:
                return None
            except (UserError, RunError) as error:
                return str(error)
            except Exception as error:  # from any package: reported to the caller in one line
                logger.error("a worker failed: %s", scrub(traceback.format_exc()))
                return scrub(f"{type(error).__name__}: {' '.join(str(error).split())}")
        return None

    def stop(self) -> None:
        """Stop: the running trial writes a checkpoint at its next step, and `run` returns."""
        self._stopping.set()
