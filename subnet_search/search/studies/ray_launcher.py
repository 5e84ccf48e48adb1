"""Ray as an engine: it places a study's workers on a cluster, packs them onto its devices and restarts the lost ones.

An actor is one worker: it calls `run_worker` and holds nothing, since the storage is the state. Ray restarts an actor
whose process or node died, on any node with room; the trial it was at is found by its lease, and goes on from its
checkpoint, in that worker or another.

Ray itself is driven from a process of its own: it takes over signals, prints what it likes on standard output, and ends
its process when the cluster's head is lost.

The storage's URL may hold a password. Ray shows a job's command line, the classes and names of actors and their
runtime environment to everybody on the cluster, and keeps in its control store what an actor is made of. So the URL
reaches the driving process through a pipe, and a worker as an argument of the call that runs it, which Ray sends to
that one process and shows nowhere.
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

RESTARTS = 3  # of each worker, before it counts as failed
POLL_SECONDS = 0.5
KNOCK_SECONDS = 10.0  # for a cluster to take a connection
STOP_SECONDS = 15.0  # for a worker to hear that it must stop; one that does not was lost, or never began
END_SECONDS = 30.0  # for Ray to end, when it must at once
CALLS = 8  # at once to one worker: its run, the order to stop, and either again after the connection broke
OBJECT_STORE = 100 * 2**20  # bytes, of a Ray of our own: nothing but a worker's arguments goes through it

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
    """Run a study that is in its storage already, by workers on a Ray cluster, until its budget is met.

    timeout      seconds after which no trial is begun
    address      of a cluster, as `ray start` prints it (`auto`: the one on this machine); None starts a Ray of our own
                 here, and ends it afterwards
    gpus, cpus   what one worker, and so one trial, takes of a node; gpus may be a fraction below 1
    allow_imports   what the workers may import for networks
    should_stop  asked twice a second

    More workers than the cluster has room for wait for a place. What Ray has to say is in `ray.log` in the study's
    folder. The caller reaps the study afterwards.

    Raises UserError when Ray is not installed, the cluster cannot be joined or has no node that is large enough, or
    SQLite would be used from several machines; Interrupted when stopped, after every worker has stopped; RunError
    when every worker has failed, each after three restarts if its process or node was lost, or Ray itself has.
    """
    if importlib.util.find_spec("ray") is None:
        raise UserError("the engine ray needs Ray: pip install 'subnet-search[ray]'")
    if gpus > 1 and gpus != int(gpus):
        raise UserError(f"a trial takes a whole number of GPUs, or a fraction of one: not {gpus:g}")
    _knock(address)
    job = {"name": name, "url": url, "workers": workers, "trials": trials, "folder": os.getcwd()}
    deadline = None if timeout is None else time.time() + timeout
    job |= {"deadline": deadline, "address": address, "gpus": gpus, "cpus": cpus, "allow": list(allow_imports)}
    store = open_storage(url, wait=PATIENCE)
    log = patiently(lambda: folder_of(load_study(name, store))) / "ray.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", "from subnet_search.search.studies.ray_launcher import drive; drive()"]
    with open(log, "wb") as file:  # a session of its own: Ctrl-C reaches this process alone, which stops the workers one way
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
            _end(driver)
        _raise(answer.read(), log)


def _knock(address: str | None) -> None:
    """Refuse an address where nobody listens: Ray itself would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        return  # no place that could be tried: Ray says what it makes of it
    try:
        socket.create_connection((host, int(port)), KNOCK_SECONDS).close()
    except OSError as error:
        raise UserError(f"no Ray cluster answers at {address}: {error.strerror or error}") from error


def _end(driver: subprocess.Popen[bytes]) -> None:
    """End the driving process at once, if it has not ended by itself, and with it its Ray or its part of a cluster."""
    driver.terminate()
    try:
        driver.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        driver.kill()
        driver.wait()


def _raise(answer: bytes, log: Path) -> None:
    """Say here what the driving process had to say."""
    if not answer:
        raise RunError(f"Ray has ended, and with it the workers; it says why in {log}")
    outcome = json.loads(answer)
    for failure in outcome["failures"]:
        logger.warning("a worker failed, and others did its work: %s", failure)
    match outcome["error"]:
        case "UserError":
            raise UserError(outcome["message"])
        case "Interrupted":
            raise Interrupted(outcome["message"])
        case "RunError":
            raise RunError(f"{outcome['message']} ({log})")


def drive() -> None:
    """The process that drives Ray: reads a job from standard input, which is closed to stop it, and answers in JSON."""
    answer = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what Ray prints goes to the log
    job = json.loads(sys.stdin.buffer.readline())
    stopping = threading.Event()

    def listen() -> None:
        os.read(sys.stdin.fileno(), 1)  # returns when the other process closes it, or is gone
        stopping.set()

    threading.Thread(target=listen, daemon=True).start()
    outcome: dict[str, Any] = {"error": None, "failures": []}
    try:
        outcome["failures"] = _run(job, stopping.is_set)
    except (UserError, RunError) as error:
        outcome |= {"error": type(error).__name__, "message": str(error)}
    os.write(answer, json.dumps(outcome).encode())


def _run(job: dict[str, Any], should_stop: Callable[[], bool]) -> list[str]:
    """Join or start a Ray, and run a job's workers on it. Returns why some failed, when others did their work."""
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
        # A call is repeated as often as it takes to reach a restarted worker; how often one is restarted has its limit.
        room = {"num_gpus": job["gpus"], "num_cpus": job["cpus"], "max_restarts": RESTARTS, "max_task_retries": -1}
        actor = ray.remote(max_concurrency=CALLS, **room)(StudyWorker)
        order = [job[key] for key in ("name", "url", "trials", "deadline", "folder", "allow")]
        crew = {worker.run.remote(*order): worker for worker in [actor.remote() for _ in range(job["workers"])]}
        return _follow(ray, crew, should_stop)
    finally:
        ray.shutdown()


def _check_nodes(nodes: list[dict[str, Any]], job: dict[str, Any]) -> None:
    """Refuse what no node has room for, and SQLite on more machines than this one."""
    alive = [node for node in nodes if node["Alive"]]
    have = {(node["Resources"].get("GPU", 0.0), node["Resources"].get("CPU", 0.0)) for node in alive}
    if not any(gpus >= job["gpus"] and cpus >= job["cpus"] for gpus, cpus in have):
        wants, largest = f"{job['gpus']:g} GPU and {job['cpus']:g} CPU", max(have, default=(0.0, 0.0))
        raise UserError(f"a trial takes {wants}, and no node has that: the largest has {largest[0]:g} and {largest[1]:g}")
    others = {node["NodeManagerHostname"] for node in alive} - {socket.gethostname()}
    if others and make_url(job["url"]).get_backend_name() == "sqlite":
        raise UserError(
            f"SQLite is for one machine, and the cluster has others ({min(others)}): give a --storage that all can reach, "
            "for example postgresql://me@host/studies"
        )


def _follow(ray: Any, under_way: dict[Any, Any], should_stop: Callable[[], bool]) -> list[str]:
    """Wait for all workers, by the reference to what their `run` returns; stop them when asked to."""
    placed = {run: worker.__ray_ready__.remote() for run, worker in under_way.items()}
    failures: list[str] = []
    stopped = finished = False
    while under_way:
        for run in ray.wait(list(under_way), timeout=POLL_SECONDS)[0]:
            failure = _outcome(ray, run)
            ray.kill(under_way.pop(run))  # its place is for one that waits
            finished |= failure is None
            failures += [] if failure is None else [failure]
        stopped = stopped or should_stop()
        if stopped or finished:  # there is nothing more to begin
            _dismiss(ray, under_way, placed)
        if stopped:  # said again and again: a worker that was restarted has not heard it
            _dismiss(ray, under_way, {run: worker.stop.remote() for run, worker in under_way.items()}, STOP_SECONDS)
    if stopped:
        raise Interrupted("stopped; the trials under way wait to go on")
    if not finished:
        raise RunError(f"no worker is left: {failures[-1]}")
    return failures


def _dismiss(ray: Any, under_way: dict[Any, Any], answers: dict[Any, Any], patience: float = 0.0) -> None:
    """Kill the workers that have not answered: they wait for a place, or were lost. What they held is found by its lease."""
    asked = [answers[run] for run in under_way]
    answered = set(ray.wait(asked, num_returns=len(asked), timeout=patience)[0]) if asked else set()
    for run in [run for run in under_way if answers[run] not in answered]:
        ray.kill(under_way.pop(run))


def _outcome(ray: Any, run: Any) -> str | None:
    """What `run` returned, or in one line why Ray has given the worker up."""
    try:
        reason: str | None = ray.get(run)
    except ray.exceptions.RayError as error:
        return _in_one_line(error)
    return reason


def _in_one_line(error: BaseException) -> str:
    """What Ray says, without the traceback or the particulars that it puts before the reason."""
    text = str(error).strip() or type(error).__name__
    told = text.splitlines()[-1] if "Traceback" in text or "actor_id" in text else text
    return textwrap.shorten(told, 250, placeholder=" ...")


class StudyWorker:
    """The actor. Ray calls `stop` in a second thread while `run` is under way."""

    def __init__(self) -> None:
        self._stopping = False
        self._running = threading.Lock()

    def run(
        self, name: str, url: str, trials: int | None, deadline: float | None, folder: str, allow: Sequence[str] = ()
    ) -> str | None:
        """Run trials until the study is finished, and return None; or the reason why this worker cannot go on.

        deadline  when to begin no more trials (seconds since 1970), the same for a worker that was restarted
        folder    where the study was started, which relative paths are relative to; used where there is such a folder
        allow     what may be imported for networks
        """
        if os.path.isdir(folder):
            os.chdir(folder)
        with self._running:  # Ray calls again when the connection broke, though the first call may be at work still
            timeout = None if deadline is None else max(deadline - time.time(), 1e-9)  # 0 would be no limit
            try:
                stop = lambda: self._stopping  # noqa: E731
                run_worker(name, url, trials=trials, timeout=timeout, wait=PATIENCE, allow_imports=allow, should_stop=stop)
            except Interrupted:
                return None
            except (UserError, RunError) as error:
                return str(error)
            except Exception as error:  # of any package: it must reach the caller, as a line, from wherever it was raised
                logger.error("a worker failed: %s", scrub(traceback.format_exc()))
                return scrub(f"{type(error).__name__}: {' '.join(str(error).split())}")
        return None

    def stop(self) -> None:
        """The trial under way writes a checkpoint at its next step, and `run` returns."""
        self._stopping = True
