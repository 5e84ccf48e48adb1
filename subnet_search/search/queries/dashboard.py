"""optuna-dashboard over a storage, for this machine alone, with what it cannot know of our studies.

It runs inside this process, so that no URL with a password stands on a command line. `optuna_dashboard.run_server` does not
do: it answers pages of other sites too, and prints tracebacks. What the dashboard is shown beside the storage's own content
(constraints in the form it reads, the best trial that keeps them, a plot that follows the study) is computed for each
request; nothing but a note on a study that has none is written.
"""

import io
import json
import logging
import sys
from collections.abc import Container, Iterable, Sequence
from socketserver import ThreadingMixIn
from types import SimpleNamespace
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
import yaml
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from subnet_search.analysis.plots import COLOURS, PERCENT, SYMBOLS
from subnet_search.core.errors import UserError
from subnet_search.core.task_metrics import TaskMetrics, in_words, is_fraction
from subnet_search.search.storage.artifact_protocol import ArtifactStore
from subnet_search.search.storage.connect import rdb, scrub
from subnet_search.search.storage.optuna_private import CachedStorage, FrozenStudy
from subnet_search.search.storage.ranking import is_feasible, objectives, rank
from subnet_search.search.storage.records import TASK, plain_spec
from subnet_search.search.storage.retry import in_one_line

HOST = "127.0.0.1"
CONSTRAINTS = "constraints"  # system attribute: a list, as the dashboard reads it; Optuna writes one attribute for each

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
        shown.get_all_trials(studies[0]._study_id, deepcopy=False)  # so that the first page has its plot
    app = optuna_dashboard.wsgi(shown, artifact_store=_common_store(studies))
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


def _common_store(studies: Iterable[optuna.Study]) -> ArtifactStore | None:
    """The store of the studies, if all that keep artifacts have one and the same."""
    keep = {json.dumps(settings): study for study in studies if (settings := plain_spec(study).get("artifacts"))}
    if len(keep) != 1:
        return None
    from subnet_search.search.engine.artifact_store import open_store
    from subnet_search.search.spec.study_spec import trusted_spec_of

    try:
        [study] = keep.values()
        return open_store(trusted_spec_of(study, ()))
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

    def __init__(self, database: RDBStorage) -> None:
        super().__init__(database)
        self.seen: set[int] = set()  # studies that somebody has looked at

    def get_all_studies(self) -> list[FrozenStudy]:
        """With a plot for those that somebody has looked at."""
        studies = super().get_all_studies()
        for study in studies:
            if study._study_id in self.seen:
                metrics = TaskMetrics.read(study.user_attrs.get(TASK))
                study.system_attrs.update(_plot(self.get_all_trials(study._study_id, deepcopy=False), metrics))
        return studies

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """The best of those that keep the constraints, by the mean over its seeds; Optuna's own when there is none."""
        study = optuna.load_study(study_name=self.get_study_name_from_id(study_id), storage=self)
        best = rank(study)
        return best[0].trial if best else super().get_best_trial(study_id)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """With their constraints as the dashboard reads them."""
        trials = super().get_all_trials(study_id, deepcopy, states)
        for trial in trials:
            if CONSTRAINTS not in trial.system_attrs and trial.constraints:
                trial.system_attrs[CONSTRAINTS] = list(trial.constraints.values())
        self.seen.add(study_id)
        return trials


def _plot(trials: Iterable[FrozenTrial], metrics: TaskMetrics) -> dict[str, str]:
    """The task's leading metric on validation data over density, which the dashboard cannot plot, as attributes of a study."""
    from optuna_dashboard import save_plotly_graph_object

    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not (measured := [trial for trial in complete if {"density", metrics.val} <= trial.user_attrs.keys()]):
        return {}
    aside = optuna.create_study()  # in memory: nothing is written to the study itself
    figure = SimpleNamespace(to_json=lambda: json.dumps(_over_density(measured, metrics)))  # plotly need not be installed
    save_plotly_graph_object(aside, figure, graph_object_id="density")
    found: dict[str, str] = aside._storage.get_study_system_attrs(aside._study_id)
    return found


def _over_density(trials: Iterable[FrozenTrial], metrics: TaskMetrics) -> dict[str, Any]:
    """Plotly's JSON of the leading metric over density, by method; hollow where a constraint is broken."""
    methods: dict[str, list[FrozenTrial]] = {}
    for trial in trials:
        methods.setdefault(trial.user_attrs.get("config", {}).get("extractor", {}).get("name", "complete"), []).append(trial)
    return {
        "data": [_points(method, points, place, metrics.val) for place, (method, points) in enumerate(sorted(methods.items()))],
        "layout": {
            "title": {"text": f"{in_words(metrics.leading, 'validation')} over density"},
            "xaxis": {"title": {"text": "density"}, "tickformat": PERCENT, "type": "log", "dtick": "D2"},
            "yaxis": {"title": {"text": metrics.val}, **({"tickformat": PERCENT} if is_fraction(metrics.val) else {})},
            "legend": {"orientation": "h", "y": -0.25},
            "showlegend": True,
        },
    }


def _points(name: str, trials: Sequence[FrozenTrial], place: int, key: str) -> dict[str, Any]:
    symbol = SYMBOLS[place % len(SYMBOLS)]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [trial.user_attrs["density"] for trial in trials],
        "y": [trial.user_attrs[key] for trial in trials],
        "text": [f"trial {trial.number}" for trial in trials],
        "hovertemplate": "%{y}<br>%{text}<extra></extra>",
        "marker": {
            "color": COLOURS[place % len(COLOURS)],
            "symbol": [symbol if is_feasible(trial) else f"{symbol}-open" for trial in trials],
            "size": 8 if len(trials) < 300 else 4,
        },
    }
