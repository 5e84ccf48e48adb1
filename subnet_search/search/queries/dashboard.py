"""optuna-dashboard over a storage, for this machine alone, with what it cannot know of our studies.

It runs inside this process, so that no URL with a password stands on a command line. What the dashboard is shown beside
the storage's own content (constraints in the form it reads, the best trial that keeps them, two plots that follow the
study) is made up as it asks; nothing but a note on a study that has none is written.
"""

import io
import json
import logging
import math
import sys
from collections.abc import Iterable, Sequence
from itertools import accumulate
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
import yaml
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from subnet_search.analysis.plots import COLOURS, PERCENT, REFERENCE, SYMBOLS
from subnet_search.core.errors import UserError
from subnet_search.search.storage.artifact_protocol import ArtifactStore
from subnet_search.search.storage.connect import rdb, scrub
from subnet_search.search.storage.optuna_private import CachedStorage, FrozenStudy, StudyInfo
from subnet_search.search.storage.ranking import is_feasible, objectives, rank
from subnet_search.search.storage.read import read_trials
from subnet_search.search.storage.records import plain_spec
from subnet_search.search.storage.retry import in_one_line

HOST = "127.0.0.1"
CONSTRAINTS = "constraints"  # system attribute: a list, as the dashboard reads it; Optuna writes one attribute for each
PLOT = "dashboard:plot_data:"

log = logging.getLogger(__name__)


class Server(ThreadingMixIn, WSGIServer):
    """Requests run beside each other, and end with the process."""

    daemon_threads = True
    page = ""  # the address to open

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle of an answer is no news."""
        if not isinstance(error := sys.exception(), ConnectionError | TimeoutError) and error:
            log.warning("the dashboard could not answer: %s", in_one_line(error))


class _Quiet(WSGIRequestHandler):
    """Of what goes wrong, one line is logged, and no traceback."""

    def log_message(self, *_: Any) -> None:
        pass

    def get_stderr(self) -> Any:
        self.errors = io.StringIO()
        return self.errors

    def handle(self) -> None:
        self.errors = io.StringIO()
        super().handle()
        if said := self.errors.getvalue().strip():
            log.warning("the dashboard could not answer %s: %s", self.path, scrub(said.splitlines()[-1]))


class _InOneLine(logging.Handler):
    """What the dashboard logs with tracebacks, as a line of our own log."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        said = in_one_line(error) if error else scrub((record.getMessage().splitlines() or [""])[0])
        log.log(min(record.levelno, logging.WARNING), "the dashboard: %s", said)


def _for_here_alone(app: Any, port: int) -> Any:
    """`app`, for requests that were made to this machine by its own names, from its own pages.

    A page of another site can point its own name at 127.0.0.1 (DNS rebinding), and then read and delete studies: but the
    request still has that name in it.
    """
    names = [f"{host}:{port}" for host in ("127.0.0.1", "localhost", "[::1]")]
    places = {*names, *(host.removesuffix(":80") for host in names)}

    def guard(environ: dict[str, Any], start_response: Any) -> Any:
        asked, page = environ.get("HTTP_HOST", ""), environ.get("HTTP_ORIGIN")
        if asked.lower() in places and (page is None or page.lower().removeprefix("http://") in places):
            return app(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
        return [f"This dashboard is for this machine alone: open it as http://{HOST}:{port}/dashboard\n".encode()]

    return guard


def dashboard(storage: BaseStorage, name: str | None = None, port: int = 8080) -> Server:
    """A server on 127.0.0.1 that answers when asked to (`handle_request`, `serve_forever`), at the study `name` or the list.

    It answers requests alone that were made to this machine by its own names (localhost, 127.0.0.1, ::1) and its port.

    Port 0 is any that is free. Raises UserError when optuna-dashboard is not installed or the port is taken.
    """
    try:
        import optuna_dashboard
    except ImportError as error:
        raise UserError("the dashboard needs optuna-dashboard: pip install 'subnet-search[dashboard]'") from error
    if (database := rdb(storage)) is None:
        raise UserError("the dashboard needs a database")
    names = [name] if name else optuna.get_all_study_names(storage)
    studies = [optuna.load_study(study_name=each, storage=storage) for each in names]
    for study in studies:
        if "spec" in study.user_attrs and not optuna_dashboard.get_note(study):
            optuna_dashboard.save_note(study, note(study))
    shown = _Shown(database)
    if name:
        shown.get_all_trials(studies[0]._study_id, deepcopy=False)  # so that the first page has its plots
    app = optuna_dashboard.wsgi(shown, artifact_store=_artifacts(studies))
    try:
        server = make_server(HOST, port, app, Server, _Quiet)
    except OSError as error:
        raise UserError(f"cannot listen on port {port}: {error.strerror}; choose another with --port") from error
    server.set_app(_for_here_alone(app, server.server_port))
    theirs = logging.getLogger("optuna_dashboard")
    theirs.handlers, theirs.propagate = [_InOneLine()], False
    at = f"/studies/{studies[0]._study_id}" if name else ""
    server.page = f"http://{HOST}:{server.server_port}/dashboard{at}"
    return server


def _artifacts(studies: Iterable[optuna.Study]) -> ArtifactStore | None:
    """The store of the studies, if all that keep artifacts have one and the same."""
    keep = {json.dumps(settings): study for study in studies if (settings := plain_spec(study).get("artifacts"))}
    if len(keep) != 1:
        return None
    from subnet_search.search.engine.artifact_store import open_store
    from subnet_search.search.spec.study_spec import spec_of

    try:
        return open_store(spec_of(*keep.values()))
    except UserError as error:
        log.warning("the dashboard shows no artifacts: %s", error)
        return None


def note(study: optuna.Study) -> str:
    """What a study asks, in Markdown."""
    spec = plain_spec(study)
    wanted = " and ".join(
        f"the {'highest' if direction == StudyDirection.MAXIMIZE else 'lowest'} **{name}**"
        for name, direction in zip(objectives(study), study.directions, strict=True)
    )
    bounds = ", ".join(f"{name} {text}" for name, text in spec.get("constraints", {}).items())
    lines = [f"# {study.study_name}", f"Looks for {wanted}{f', where {bounds}' if bounds else ''}."]
    if spec:
        keys = ("run", "space", "sampler", "pruner", "trials", "repeats", "seed")
        asked = yaml.safe_dump({key: spec[key] for key in keys if spec.get(key)}, sort_keys=False, default_flow_style=None)
        lines += [f"```yaml\n{asked}```", f"One page about it: `subnet-search study show {study.study_name}`"]
    return "\n\n".join(lines)


class _Shown(CachedStorage):
    """A storage as the dashboard is shown it."""

    def get_all_studies(self) -> list[FrozenStudy]:
        """With plots for those that somebody has looked at."""
        studies = super().get_all_studies()
        for study in studies:
            with self._lock:
                seen = self._studies.get(study._study_id)
                trials = [trial for _, trial in sorted(seen.trials.items())] if seen else []
            if trials:
                names = study.system_attrs.get("study:metric_names") or ["value"]
                for key, figure in _figures(trials, names[0], study.directions[0]).items():
                    study.system_attrs[f"{PLOT}{key}:0"] = json.dumps(figure)
        return studies

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """The best of those that keep the constraints, by the mean over its seeds; Optuna's own when there is none."""
        study = optuna.load_study(study_name=self.get_study_name_from_id(study_id), storage=self)
        best = rank(study)
        return best[0].trial if best else super().get_best_trial(study_id)

    def _read_trials_from_remote_storage(self, study_id: int) -> None:
        """At first all of them, fast; then those that changed."""
        with self._lock:
            known = study_id in self._studies and self._studies[study_id].trials
        if not known:
            trials = read_trials(optuna.load_study(study_name=self.get_study_name_from_id(study_id), storage=self._backend))
            with self._lock:
                study = self._studies.setdefault(study_id, StudyInfo())
                self._add_trials_to_cache(study_id, trials)
                study.unfinished_trial_ids = {trial._trial_id for trial in trials if not trial.state.is_finished()}
                ended = (trial._trial_id for trial in trials if trial.state.is_finished())
                study.last_finished_trial_id = max(ended, default=-1)
        super()._read_trials_from_remote_storage(study_id)

    def _add_trials_to_cache(self, study_id: int, trials: list[FrozenTrial]) -> None:
        for trial in trials:
            if CONSTRAINTS not in trial.system_attrs and trial.constraints:
                trial.system_attrs[CONSTRAINTS] = list(trial.constraints.values())
        super()._add_trials_to_cache(study_id, trials)


def _figures(trials: Sequence[FrozenTrial], name: str, direction: StudyDirection) -> dict[str, dict[str, Any]]:
    """Plots by their ids, as plotly's JSON."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    measured = [trial for trial in complete if {"density", "val_accuracy"} <= trial.user_attrs.keys()]
    return {"trials": _over_trials(trials, name, direction)} | ({"density": _over_density(measured)} if measured else {})


def _over_trials(trials: Iterable[FrozenTrial], name: str, direction: StudyDirection) -> dict[str, Any]:
    """The objective over the trials: complete ones, those stopped early at their last value, failed ones at the bottom."""
    kinds: dict[str, list[tuple[FrozenTrial, float]]] = {"stopped early": [], "breaks a constraint": [], "complete": []}
    failed = []
    for trial in trials:
        if trial.state == TrialState.COMPLETE:
            kinds["complete" if is_feasible(trial) else "breaks a constraint"].append((trial, trial.values[0]))
        elif trial.state == TrialState.PRUNED and trial.last_step is not None:
            kinds["stopped early"].append((trial, trial.intermediate_values[trial.last_step]))
        elif trial.state == TrialState.FAIL:
            failed.append(trial)
    kinds = {kind: [point for point in points if math.isfinite(point[1])] for kind, points in kinds.items()}
    kinds["failed"] = [(t, min((y for points in kinds.values() for _, y in points), default=0.0)) for t in failed]
    kept = kinds["complete"]
    best = accumulate((value for _, value in kept), max if direction == StudyDirection.MAXIMIZE else min)
    line = {"type": "scatter", "mode": "lines", "name": "best so far", "line": {**REFERENCE, "shape": "hv"}}
    return {
        "data": [
            *(_points(kind, points, place) for place, (kind, points) in enumerate(kinds.items()) if points),
            {**line, "x": [trial.number for trial, _ in kept], "y": list(best)},
        ],
        "layout": _layout(f"{name} over trials", {"title": {"text": "trial"}}, _axis(name)),
    }


def _over_density(trials: Iterable[FrozenTrial]) -> dict[str, Any]:
    """Validation accuracy of complete trials over density, by method; hollow where a constraint is broken."""
    methods: dict[str, list[tuple[FrozenTrial, float]]] = {}
    for trial in trials:
        method = trial.user_attrs.get("config", {}).get("extractor", {}).get("name", "complete")
        methods.setdefault(method, []).append((trial, trial.user_attrs["val_accuracy"]))
    data = [_points(method, points, place) for place, (method, points) in enumerate(sorted(methods.items()))]
    for shown, (_, points) in zip(data, sorted(methods.items()), strict=True):
        symbol = shown["marker"]["symbol"]
        shown["x"] = [trial.user_attrs["density"] for trial, _ in points]
        shown["marker"]["symbol"] = [symbol if is_feasible(trial) else f"{symbol}-open" for trial, _ in points]
    across = {**_axis("density"), "type": "log", "dtick": "D2"}
    return {"data": data, "layout": _layout("validation accuracy over density", across, _axis("val_accuracy"))}


def _points(name: str, points: Sequence[tuple[FrozenTrial, float]], place: int) -> dict[str, Any]:
    size = 8 if len(points) < 300 else 4
    reasons = (trial.user_attrs.get("reason", "") for trial, _ in points)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [trial.number for trial, _ in points],
        "y": [value for _, value in points],
        "text": [f"trial {trial.number}<br>{reason}" for (trial, _), reason in zip(points, reasons, strict=True)],
        "hovertemplate": "%{y}<br>%{text}<extra></extra>",
        "marker": {"color": COLOURS[place % len(COLOURS)], "symbol": SYMBOLS[place % len(SYMBOLS)], "size": size},
    }


def _axis(name: str) -> dict[str, Any]:
    return {"title": {"text": name}, **({"tickformat": PERCENT} if "accuracy" in name or name == "density" else {})}


def _layout(title: str, across: dict[str, Any], up: dict[str, Any]) -> dict[str, Any]:
    legend = {"orientation": "h", "y": -0.25}
    return {"title": {"text": title}, "xaxis": across, "yaxis": up, "legend": legend, "showlegend": True}
